"""A graph whose weights are stored as int8 and multiplied as float32, made to multiply in integers.

Files that were only made small hold ``MatMul(x, Cast(int8) * scale)``; ONNX Runtime unfolds such weights to float32
when it loads them, four times the memory, and multiplies at float32's speed. Here x is quantised as the graph runs (one
scale and zero point for each tensor, ONNX's ``DynamicQuantizeLinear``) and multiplied by the weights as they are stored
(``MatMulInteger``), once for all products of one x. The weights stand as uint8 with their zero point at 128: int8 would
saturate in the products of x86 cores without VNNI, and give other answers there than on the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

_ZERO = 128
_ZERO_NAME = "codriver/zero"
# The graph is held several times over while it is changed.
_MOST_BYTES = 256 << 20
_LEAST_OPSET = 11  # DynamicQuantizeLinear


@dataclass(frozen=True)
class _Weight:
    """The names of a matrix of int8 and of its scale."""

    stored: str
    scale: str

    @property
    def shifted(self) -> str:
        return f"{self.stored}/uint8"

    @property
    def flat(self) -> str:
        return f"{self.scale}/flat"


class _Graph:
    def __init__(self, graph: Any) -> None:
        # What is an input too, whoever runs the graph may give another value.
        inputs = {value.name for value in graph.input}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._fixed = {name: tensor for name, tensor in self.tensors.items() if name not in inputs}
        self._made_by = {output: node for node in graph.node for output in node.output}

    def weight(self, node: Any) -> _Weight | None:
        """What ``node`` multiplies by, if that is a matrix of int8 with one scale for each column, or one for all."""
        if node.op_type != "MatMul":
            return None
        scaled = self._made_by.get(node.input[1])
        if scaled is None or scaled.op_type != "Mul" or scaled.input[1] not in self._fixed:
            return None
        cast = self._made_by.get(scaled.input[0])
        stored = self._fixed.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        if stored is None or stored.data_type != TensorProto.INT8 or len(stored.dims) != 2:
            return None
        scale = self.tensors[scaled.input[1]]
        columns = stored.dims[1]
        if scale.data_type != TensorProto.FLOAT or list(scale.dims) not in ([], [1], [columns], [1, columns], [1, 1]):
            return None
        return _Weight(stored.name, scale.name)


def in_integers(file: Path) -> bytes | None:
    """The graph of ``file`` with its int8 products in integers; None where it has none, or cannot be changed: over 256
    MiB, with weights in other files, with subgraphs, older than opset 11, or no graph at all, which whoever runs the
    file says.

    What it gives differs from the float32 products by x's rounding to 8 bits (all-MiniLM-L6-v2: cosine .995 to .997).
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            return None
        return _changed(onnx.load(str(file), load_external_data=False))
    except (OSError, ValueError, IndexError, DecodeError):
        return None


def _changed(model: Any) -> bytes | None:
    graph = model.graph
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    nested = any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)
    outside = any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer)
    if opset < _LEAST_OPSET or nested or outside:
        return None
    known = _Graph(graph)
    weights = {node.output[0]: weight for node in graph.node if (weight := known.weight(node)) is not None}
    if not weights:
        return None
    nodes: list[Any] = []
    quantised: set[str] = set()
    for node in graph.node:
        weight = weights.get(node.output[0])
        nodes += [node] if weight is None else _product(node, weight, quantised)
    nodes = _still_needed(nodes, {output.name for output in graph.output})
    taken = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in _tensors(known, weights.values()) if tensor.name in taken]
    _put(graph.node, nodes)
    _put(graph.initializer, tensors)
    made: bytes = model.SerializeToString()
    return made


def _product(node: Any, weight: _Weight, quantised: set[str]) -> list[Any]:
    """The nodes that take the place of a product; ``quantised``: whose x is there already."""
    x, name = node.input[0], node.output[0]
    parts = [f"{x}/q", f"{x}/scale", f"{x}/zero"]
    made = [] if x in quantised else [helper.make_node("DynamicQuantizeLinear", [x], parts)]
    quantised.add(x)
    return [
        *made,
        helper.make_node("MatMulInteger", [parts[0], weight.shifted, parts[2], _ZERO_NAME], [f"{name}/int32"]),
        helper.make_node("Cast", [f"{name}/int32"], [f"{name}/float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [parts[1], weight.flat], [f"{name}/scale"]),
        helper.make_node("Mul", [f"{name}/float", f"{name}/scale"], [name]),
    ]


def _still_needed(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """Without the nodes whose output nobody takes any more, in their order."""
    taken, kept = set(outputs), []
    for node in reversed(nodes):
        if taken.intersection(node.output):
            taken.update(node.input)
            kept.append(node)
    return kept[::-1]


def _tensors(known: _Graph, weights: Iterable[_Weight]) -> list[Any]:
    found = dict(known.tensors)
    for weight in weights:
        stored, scale = (numpy_helper.to_array(known.tensors[name]) for name in (weight.stored, weight.scale))
        found[weight.shifted] = numpy_helper.from_array(
            (stored.astype(np.int16) + _ZERO).astype(np.uint8), weight.shifted
        )
        found[weight.flat] = numpy_helper.from_array(scale.reshape(-1), weight.flat)
    return [*found.values(), numpy_helper.from_array(np.array(_ZERO, np.uint8), _ZERO_NAME)]


def _put(members: Any, found: list[Any]) -> None:
    """``found`` as the members of a list in a protobuf message."""
    kept = [type(one).FromString(one.SerializeToString()) for one in found]
    del members[:]
    members.extend(kept)
