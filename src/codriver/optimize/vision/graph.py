"""A graph in memory: which convolutions it has, who reads what, and what flows through it on pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from .runtime import OrtGraph

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Convolution:
    """``weight`` and ``bias`` are names of initialisers, the bias ``""`` where there is none."""

    node: onnx.NodeProto
    weight: str
    bias: str
    groups: int


class Wiring:
    """``constants`` by name; who makes and who reads each value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {one.name: one for one in model.graph.initializer}
        self.maker = {output: node for node in model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.results = {one.name for one in model.graph.output}

    def convolutions(self) -> list[Convolution]:
        """Those whose weights are constants, in the graph's order."""
        found = []
        for node in self.model.graph.node:
            if node.op_type == "Conv" and node.input[1] in self.constants:
                bias = node.input[2] if len(node.input) > 2 else ""
                found.append(Convolution(node, node.input[1], bias, attribute(node, "group", 1)))
        return found

    def floats(self, name: str) -> Floats:
        return np.array(numpy_helper.to_array(self.constants[name]), np.float32)

    def put(self, name: str, values: NDArray[np.generic]) -> None:
        self.constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def watch(
    model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[Floats], see: Callable[[str, Floats], None]
) -> None:
    """Run the graph on each picture and hand over the values ``names``; a picture's are gone before the next one's."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {one.name for one in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    graph = OrtGraph(copy.SerializeToString(), 1, extended=False)
    wanted = set(names)
    for picture in pictures:
        for name, values in zip(graph.outputs, graph.run(picture), strict=True):
            if name in wanted:
                see(name, values)


def outputs_of(file: Path | bytes, pictures: Sequence[Floats]) -> list[list[Floats]]:
    graph = OrtGraph(file, 1)
    return [graph.run(picture) for picture in pictures]
