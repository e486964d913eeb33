"""What is really in a vision graph: bits per weight, the type of each tensor, and which layers compute in floats.

A file is called int8 and some of its layers are not: their weights stayed float, or their weights are integers and what
they read is not, or nothing rounds what they give, so that ONNX Runtime, which computes a convolution in integers only
between a ``DequantizeLinear`` and a ``QuantizeLinear`` (``qdq_selectors.cc``), turns it back into floats. Among
integer layers these are told as what was put in silently. Nothing of the file runs. Limit: graphs within a graph (the
branches of an ``If``, the body of a ``Loop``) are not looked into; it is said where there are any.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from ..inspect import Share
from .graph import Wiring
from .onnx_file import read_model

_TYPES: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("F32", 32), TensorProto.FLOAT16: ("F16", 16), TensorProto.BFLOAT16: ("BF16", 16),
    TensorProto.DOUBLE: ("F64", 64), TensorProto.INT8: ("INT8", 8), TensorProto.UINT8: ("UINT8", 8),
    TensorProto.INT16: ("INT16", 16), TensorProto.UINT16: ("UINT16", 16), TensorProto.INT32: ("INT32", 32),
    TensorProto.INT64: ("INT64", 64), TensorProto.INT4: ("INT4", 4), TensorProto.UINT4: ("UINT4", 4),
    TensorProto.FLOAT8E4M3FN: ("F8_E4M3", 8), TensorProto.FLOAT8E5M2: ("F8_E5M2", 8), TensorProto.BOOL: ("BOOL", 8),
}  # fmt: skip
_FLOATS = ("F32", "F16", "BF16", "F64")
# Shapes, axes and the like.
_SETTINGS = ("INT64", "BOOL")
# Layers with weights → where those stand among the inputs.
_LAYERS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_INTEGER_LAYERS = {"QLinearConv": 3, "ConvInteger": 1, "QLinearMatMul": 3, "MatMulInteger": 1}
_CLIPPING = ("Relu", "Clip")  # the rounding behind them cuts off what they would


@dataclass(frozen=True)
class GraphTensor:
    """``shape`` as the file has it. ``scale``: it is a scale or a zero point of another, and no weight by itself."""

    name: str
    type: str
    shape: tuple[int, ...]
    bits: int
    scale: bool = False

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return (self.weights * self.bits + 7) // 8


@dataclass(frozen=True)
class FloatLayer:
    """A layer that computes in floats among integer ones; ``tensor``: its weights. ``stored``: their type."""

    node: str
    tensor: GraphTensor
    why: str
    wanted: str = "INT8"

    @property
    def stored(self) -> str:
        return self.tensor.type

    @property
    def extra_bytes(self) -> int:
        return self.tensor.size_bytes - self.tensor.weights


@dataclass(frozen=True)
class GraphInspection:
    """``operators`` by kind, ``layers`` with weights, of which ``integer`` have integer weights and inputs, and
    ``open_ended`` of those nothing that rounds behind them.
    """

    file: Path
    size_bytes: int
    architecture: str
    named: str
    tensors: tuple[GraphTensor, ...]
    substitutions: tuple[FloatLayer, ...]
    operators: Counter[str]
    layers: int
    integer: int
    open_ended: int
    inner_graphs: int

    @property
    def weights(self) -> int:
        return sum(one.weights for one in self._weighty() if not one.scale)

    @property
    def bits(self) -> float:
        """Effective bits per weight: scales and zero points are counted as bytes and not as weights."""
        return 8 * sum(one.size_bytes for one in self._weighty()) / max(1, self.weights)

    def shares(self) -> list[Share]:
        """By type, the largest first; shapes and other settings among them."""
        found: dict[str, Share] = {}
        for one in self.tensors:
            name = f"{one.type} scales" if one.scale else one.type
            had = found.get(name, Share(name, 0, 0, 0))
            found[name] = Share(name, had.tensors + 1, had.weights + one.weights, had.size_bytes + one.size_bytes)
        return sorted(found.values(), key=lambda share: -share.size_bytes)

    def sentences(self) -> list[str]:
        """What a reader should know, in words."""
        told = []
        if self.integer:
            told.append(f"{self.integer} of {self.layers} layers with weights have integer weights and inputs.")
        for why in dict.fromkeys(one.why for one in self.substitutions):
            names = [one.node for one in self.substitutions if one.why == why]
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            told.append(f"{len(names)} compute in floats, as {why}: {shown}.")
        if self.open_ended:
            told.append(
                f"Nothing rounds what {self.open_ended} of the integer layers give: ONNX Runtime computes these in "
                "floats, OpenVINO in integers."
            )
        if self.inner_graphs:
            told.append(f"{self.inner_graphs} graphs within the graph were not looked into.")
        return told

    def _weighty(self) -> Iterator[GraphTensor]:
        return (one for one in self.tensors if one.type not in _SETTINGS)


def inspect(file: Path) -> GraphInspection:
    """Errors: :class:`MissingFile`; :class:`BadModelFile` naming the file, and the tensor or layer."""
    model = read_model(file)
    looked = _Look(model)
    kinds = Counter(node.op_type for node in model.graph.node)
    named = "int8" if looked.integer else "float"
    if kinds["QuantizeLinear"] or kinds["DequantizeLinear"]:
        named = "int8 (QDQ)" if looked.integer else "float among integers (QDQ)"
    return GraphInspection(
        file=file,
        size_bytes=file.stat().st_size,
        architecture=model.graph.name or model.producer_name,
        named=named,
        tensors=tuple(looked.tensors.values()),
        substitutions=tuple(looked.floats) if looked.integer else (),
        operators=kinds,
        layers=looked.layers,
        integer=looked.integer,
        open_ended=looked.open_ended,
        inner_graphs=sum(one.HasField("g") + len(one.graphs) for node in model.graph.node for one in node.attribute),
    )


class _Look:
    """One reading of the nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._wiring = Wiring(model)
        scales = {name for node in model.graph.node for name in _scales(node)}
        self.tensors = {one.name: _told(one, one.name, one.name in scales) for one in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and (held := [one.t for one in node.attribute if one.name == "value"]):
                self.tensors[node.output[0]] = _told(held[0], node.output[0], node.output[0] in scales)
        self.floats: list[FloatLayer] = []
        self.layers = self.integer = self.open_ended = 0
        for at, node in enumerate(model.graph.node):
            self._see(node, node.name or f"{node.op_type}_{at}")

    def _see(self, node: onnx.NodeProto, called: str) -> None:
        if node.op_type in _INTEGER_LAYERS:
            self.layers, self.integer = self.layers + 1, self.integer + 1
            return
        weight = self._weight(node)
        if weight is None:
            return
        self.layers += 1
        rounded = self._dequantised(node.input[0])
        if weight.type in _FLOATS or not rounded:
            what = "what they read is not rounded" if weight.type not in _FLOATS else "their weights are"
            self.floats.append(FloatLayer(called, weight, what))
            return
        self.integer += 1
        self.open_ended += not self._closed(node.output[0])

    def _weight(self, node: onnx.NodeProto) -> GraphTensor | None:
        """As it is stored, behind a ``DequantizeLinear`` too; none where both inputs are values."""
        place = _LAYERS.get(node.op_type)
        if place is None or len(node.input) <= place:
            return None
        name = node.input[place]
        maker = self._wiring.maker.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[0]
        return self.tensors.get(name)

    def _dequantised(self, name: str) -> bool:
        maker = self._wiring.maker.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _closed(self, name: str) -> bool:
        readers = self._wiring.readers.get(name, [])
        if len(readers) == 1 and readers[0].op_type in _CLIPPING:
            readers = self._wiring.readers.get(readers[0].output[0], [])
        return bool(readers) and all(node.op_type == "QuantizeLinear" for node in readers)


def _scales(node: onnx.NodeProto) -> list[str]:
    """Inputs that are scales or zero points."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return list(node.input[1:])
    if node.op_type in ("QLinearConv", "QLinearMatMul"):
        return [*node.input[1:3], *node.input[4:8]]
    if node.op_type in ("ConvInteger", "MatMulInteger"):
        return list(node.input[2:])
    return list(node.input[2:4]) if node.op_type == "MatMulNBits" else []


def _told(tensor: onnx.TensorProto, name: str, scale: bool) -> GraphTensor:
    kind, bits = _TYPES.get(tensor.data_type, (str(tensor.data_type), 8))
    return GraphTensor(name, kind, tuple(tensor.dims), bits, scale)
