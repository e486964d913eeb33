"""How a layer's matrices multiply in ONNX Runtime: weights in blocks, or whole rows of eight bits in integers.

:class:`BlockProducts` keeps a scale for each 32 weights, which is faithful, and for a prompt slower than float32: each
block is scaled by itself. :class:`ChannelProducts` keeps one scale a row of weights and one a token of inputs, so that
the whole sum is of integers and scaled once: 205 GFLOP/s against 116 (and 148 in float32) for 512 tokens through a
matrix of 576 x 3072 on two cores with AVX2. Scales of inputs are found as they come (dynamic W8A8; Yao et al. 2022,
arXiv:2206.01861). What stands out in a few columns would take all of a token's steps: before an input is rounded it
is turned by a Hadamard matrix in blocks of 64, and the weights with it, which changes no product (Ashkboos et al. 2024,
arXiv:2404.00456, who do so where it cannot be folded). It needs no text to calibrate on. SmolLM2-135M, KL without and
with it: .034 and .008; with blocks of 16, .010.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..decoder import Decoder
from ..exportable import vector
from .onnx_graph import CONTRIB, Graph
from .onnx_weights import BLOCK, ROW_MIDDLE, Packed, joined, rounded_rows, turn, turn_size, turned

Packer = Callable[[str], Packed]
_INT8_INPUTS = 4  # accuracy level: inputs of products rounded to int8 by blocks, as llama.cpp does
_LEAST_STEP = 1e-30  # an input of zeros has a scale, too


class Products(Protocol):
    def product(self, name: str, given: str, matrices: Sequence[str]) -> list[str]:
        """``given`` times each of ``matrices``, by names without ``.weight``: one output where they are joined."""

    def only_last(self) -> None:
        """From here on, what is given is of the last position alone."""


class BlockProducts:
    """``pack`` makes the blocks of a matrix by its name in GGUF."""

    def __init__(self, graph: Graph, decoder: Decoder, pack: Packer) -> None:
        self._graph, self._decoder, self._pack = graph, decoder, pack

    def only_last(self) -> None:
        pass  # nothing here knows how many positions there are

    def product(self, name: str, given: str, matrices: Sequence[str]) -> list[str]:
        packed = [self._pack(f"{matrix}.weight") for matrix in matrices]
        whole = joined(packed)
        if whole is None:
            for matrix, part in zip(matrices, packed, strict=True):
                self._one(matrix, given, part, bias_of(self._decoder, [matrix], [part.rows]))
            return list(matrices)
        self._one(name, given, whole, bias_of(self._decoder, matrices, [part.rows for part in packed]))
        return [name]

    def _one(self, name: str, given: str, packed: Packed, bias: NDArray[Any] | None) -> None:
        store_blocks(self._graph, f"{name}.weight", packed)
        coded = name if packed.offsets is None else f"{name}.coded"
        if bias is not None:
            self._graph.weight(f"{name}.bias", bias)
        multiply_blocks(self._graph, coded, given, (f"{name}.weight", packed), "" if bias is None else f"{name}.bias")
        if packed.offsets is not None:
            self._graph.weight(f"{name}.offsets", np.ascontiguousarray(packed.offsets.T))
            sums = self._sums(given, packed.offsets.shape[1])
            self._graph.node("MatMul", [sums, f"{name}.offsets"], [f"{name}.shift"])
            self._graph.node("Add", [coded, f"{name}.shift"], [name])

    def _sums(self, given: str, blocks: int) -> str:
        """The sums over blocks of what goes into products: an offset of a block adds that often. Made once."""
        graph = self._graph
        if graph.is_new(f"{given}.sums"):
            shape = graph.constant(f"{blocks}_blocks", np.array([0, 0, blocks, BLOCK], np.int64))
            graph.node("Reshape", [given, shape], [f"{given}.blocks"])
            last = graph.constant("three", np.array([3], np.int64))
            graph.node("ReduceSum", [f"{given}.blocks", last], [f"{given}.sums"], keepdims=0)
        return f"{given}.sums"


class ChannelProducts:
    """Weights by row and inputs by token in 8 bits, both ways from 128."""

    def __init__(self, graph: Graph, decoder: Decoder) -> None:
        self._graph, self._decoder = graph, decoder
        self._middles = "middles"

    def only_last(self) -> None:
        self._middles = "last_middles"

    def product(self, name: str, given: str, matrices: Sequence[str]) -> list[str]:
        file, graph = self._decoder.file, self._graph
        parts = [rounded_rows(turned(file.weights(file[f"{matrix}.weight"]))) for matrix in matrices]
        graph.weight(f"{name}.codes", np.concatenate([codes for codes, _ in parts]).T)
        graph.weight(f"{name}.scales", np.concatenate([scales for _, scales in parts]))
        width = int(file[f"{matrices[0]}.weight"].shape[0])
        codes, scale = self._rounded(given, width)
        one = graph.constant("one_float", np.float32(1))
        middle = graph.constant("middle", np.uint8(ROW_MIDDLE))
        inputs = [codes, f"{name}.codes", one, f"{name}.scales", middle, middle]
        graph.node("MatMulIntegerToFloat", inputs, [f"{name}.by_row"], domain=CONTRIB)
        bias = bias_of(self._decoder, matrices, [len(scales) for _, scales in parts])
        scaled = name if bias is None else f"{name}.scaled"
        graph.node("Mul", [f"{name}.by_row", scale], [scaled])
        if bias is not None:
            graph.weight(f"{name}.bias", bias)
            graph.node("Add", [scaled, f"{name}.bias"], [name])
        return [name]

    def _rounded(self, given: str, width: int) -> tuple[str, str]:
        """Codes of ``given`` and their scales, one for each token: (batch, tokens, 1). Made once."""
        graph, codes, scale = self._graph, f"{given}.codes", f"{given}.scale"
        if graph.is_new(codes):
            turned = self._turned(given, width)
            last = graph.constant("last_axis", np.array([-1], np.int64))
            step = graph.constant("step", np.float32(1 / (ROW_MIDDLE - 1)))
            least = graph.constant("least_step", np.float32(_LEAST_STEP))
            graph.node("Abs", [turned], [f"{given}.size"])
            graph.node("ReduceMax", [f"{given}.size", last], [f"{given}.most"], keepdims=1)
            graph.node("Mul", [f"{given}.most", step], [f"{given}.step"])
            graph.node("Max", [f"{given}.step", least], [scale])
            if graph.is_new(self._middles):
                graph.node("Shape", [scale], [f"{self._middles}.shape"])
                middle = helper.make_tensor("middle", TensorProto.UINT8, [1], [ROW_MIDDLE])
                graph.node("ConstantOfShape", [f"{self._middles}.shape"], [self._middles], value=middle)
            inputs = [turned, scale, self._middles]
            graph.node("QuantizeLinear", inputs, [codes], axis=2, block_size=width)
        return codes, scale

    def _turned(self, given: str, width: int) -> str:
        graph, size = self._graph, turn_size(width)
        if size == 1:
            return given
        if graph.is_new(f"turn.{size}"):
            graph.weight(f"turn.{size}", turn(size))
        blocks = graph.constant(f"{width}_in_{size}", np.array([0, -1, width // size, size], np.int64))
        whole = graph.constant(f"{width}_whole", np.array([0, -1, width], np.int64))
        graph.node("Reshape", [given, blocks], [f"{given}.blocks"])
        graph.node("MatMul", [f"{given}.blocks", f"turn.{size}"], [f"{given}.turned_blocks"])
        graph.node("Reshape", [f"{given}.turned_blocks", whole], [f"{given}.turned"])
        return f"{given}.turned"


def store_blocks(graph: Graph, name: str, packed: Packed) -> None:
    graph.weight(f"{name}.codes", packed.codes)
    graph.weight(f"{name}.scales", packed.scales)
    if packed.zeros is not None:
        graph.weight(f"{name}.zeros", packed.zeros)


def multiply_blocks(graph: Graph, name: str, given: str, weight: tuple[str, Packed], bias: str = "") -> None:
    """``given`` times the ``weight`` that was stored by its name; ``bias`` is a name, too."""
    stored, packed = weight
    inputs = [given, f"{stored}.codes", f"{stored}.scales"]
    inputs += [f"{stored}.zeros"] if packed.zeros is not None else []
    if bias:
        inputs += [""] * (5 - len(inputs)) + [bias]
    graph.node(
        "MatMulNBits", inputs, [name], domain=CONTRIB, K=packed.width, N=packed.rows,
        bits=packed.bits, block_size=BLOCK, accuracy_level=_INT8_INPUTS,
    )  # fmt: skip


def bias_of(decoder: Decoder, matrices: Sequence[str], rows: Sequence[int]) -> NDArray[Any] | None:
    """What is added to the joined outputs; ``None`` where no matrix has a bias."""
    found = [vector(decoder, f"{matrix}.bias") for matrix in matrices]
    if all(one is None for one in found):
        return None
    return np.concatenate(
        [np.zeros(count, np.float32) if one is None else one for count, one in zip(rows, found, strict=True)]
    )
