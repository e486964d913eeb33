"""A decoder of a GGUF file as an ONNX graph in ONNX Runtime's own operators, as ONNX Runtime GenAI drives it.

One token's way: ``GatherBlockQuantized``, then per layer RMS norm, ``MatMulNBits``, ``GroupQueryAttention`` (which
turns and keeps keys and values), a gate. Logits are of the last position only, as that is all that a next token needs.
The rule kept here: one layer's input of products in memory at a time; weights stand beside the graph in one file,
written as they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..decoder import Decoder
from ..exportable import rotation, vector
from .onnx_weights import BLOCK, Packed, joined

GRAPH, DATA = "model.onnx", "model.onnx.data"
LAST = "last_position"  # the node that leaves out all logits but the last
_CONTRIB = "com.microsoft"
_ALIGNED = 4096  # so that the weights can be mapped
_INT8_INPUTS = 4  # accuracy level: inputs of products rounded to int8 by blocks, as llama.cpp does
Packer = Callable[[str], Packed]


def write_decoder(decoder: Decoder, folder: Path, pack: Packer, told: Callable[[int, int], None]) -> None:
    """``GRAPH`` and ``DATA`` in ``folder``; ``pack`` makes the blocks of a matrix by its name in GGUF."""
    with (folder / DATA).open("wb") as data:
        graph = _Graph(data, decoder, pack)
        graph.build(told)
    model = helper.make_model(
        graph.proto(),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(_CONTRIB, 1)],
        ir_version=10,
        producer_name="codriver",
    )
    (folder / GRAPH).write_bytes(model.SerializeToString())


class _Graph:
    def __init__(self, data: BinaryIO, decoder: Decoder, pack: Packer) -> None:
        self._data, self._decoder, self._pack = data, decoder, pack
        self._nodes: list[onnx.NodeProto] = []
        self._kept: list[onnx.TensorProto] = []
        self._summed: set[str] = set()

    def build(self, told: Callable[[int, int], None]) -> None:
        decoder = self._decoder
        self._lengths()
        cosines, sines = rotation(decoder, decoder.context_tokens)
        self._keep("cosines", cosines)
        self._keep("sines", sines)
        head = self._pack("token_embd.weight" if decoder.tied else "output.weight")
        rows = head if decoder.tied else self._pack("token_embd.weight")
        self._embed(rows)
        if not decoder.tied:
            self._store("head", head)
        stream, added = "vectors", ""
        for layer in range(decoder.layers):
            told(layer, decoder.layers)
            stream, added = self._layer(layer, stream, added)
        normed, _ = self._norm("output_norm", stream, added)
        self._logits(normed, "rows" if decoder.tied else "head", head)
        told(decoder.layers, decoder.layers)

    def _lengths(self) -> None:
        """What the attention must know of lengths, from the mask: the last position, and all of them."""
        for name, value in (("one", [1]), ("one_scalar", 1), ("minus_one", -1), ("three", [3])):
            self._constant(name, np.array(value, np.int64))
        self._node("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0)
        self._node("Sub", ["lengths", "one_scalar"], ["last_positions"])
        self._node("Cast", ["last_positions"], ["seqlens_k"], to=TensorProto.INT32)
        self._node("Shape", ["attention_mask"], ["mask_shape"])
        self._node("Gather", ["mask_shape", "one_scalar"], ["mask_length"])
        self._node("Cast", ["mask_length"], ["total_length"], to=TensorProto.INT32)

    def _embed(self, rows: Packed) -> None:
        if rows.offsets is not None:
            raise ValueError("rows of tokens cannot have offsets")
        self._store("rows", rows)
        flat = (len(rows.codes), rows.scales.shape[1])
        self._keep("rows.scales_in_place", rows.scales.reshape(*flat, 1))
        inputs = ["rows.codes", "input_ids", "rows.scales_in_place"]
        self._node(
            "GatherBlockQuantized", inputs, ["blocks_of_vectors"], domain=_CONTRIB,
            bits=rows.bits, block_size=BLOCK, gather_axis=0, quantize_axis=2,
        )  # fmt: skip
        self._constant("vectors_shape", np.array([0, 0, self._decoder.width], np.int64))
        self._node("Reshape", ["blocks_of_vectors", "vectors_shape"], ["vectors"])

    def _layer(self, layer: int, stream: str, added: str) -> tuple[str, str]:
        """The stream behind the attention, and what the gate adds to it."""
        here = f"blk.{layer}"
        normed, stream = self._norm(f"{here}.attn_norm", stream, added)
        attended = self._attend(layer, normed)
        made = self._products(f"{here}.attn_output", attended, [f"{here}.attn_output"])[0]
        normed, stream = self._norm(f"{here}.ffn_norm", stream, made)
        gate, up = (self._products(f"{here}.{part}", normed, [f"{here}.{part}"])[0] for part in ("ffn_gate", "ffn_up"))
        self._node("Sigmoid", [gate], [f"{here}.opened"])
        self._node("Mul", [gate, f"{here}.opened"], [f"{here}.silu"])
        self._node("Mul", [f"{here}.silu", up], [f"{here}.gated"])
        down = self._products(f"{here}.ffn_down", f"{here}.gated", [f"{here}.ffn_down"])[0]
        return stream, down

    def _attend(self, layer: int, normed: str) -> str:
        decoder, here = self._decoder, f"blk.{layer}"
        parts = self._products(f"{here}.qkv", normed, [f"{here}.attn_{part}" for part in "qkv"])
        parts += [""] * (3 - len(parts))
        cache = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        told = ["seqlens_k", "total_length", "cosines", "sines"]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        self._node(
            "GroupQueryAttention", [*parts, *cache, *told], [f"{here}.attended", *present], domain=_CONTRIB,
            num_heads=decoder.heads, kv_num_heads=decoder.kv_heads, do_rotary=1,
            rotary_interleaved=int(decoder.interleaved), scale=decoder.head_width**-0.5,
        )  # fmt: skip
        return f"{here}.attended"

    def _norm(self, name: str, stream: str, added: str) -> tuple[str, str]:
        """The normed sum of the stream and what is added, and the sum itself."""
        weight = vector(self._decoder, f"{name}.weight")
        assert weight is not None  # checked when the file was read
        self._keep(f"{name}.weight", weight)
        epsilon = self._decoder.epsilon
        if not added:
            self._node("SimplifiedLayerNormalization", [stream, f"{name}.weight"], [name], axis=-1, epsilon=epsilon)
            return name, stream
        outputs = [name, "", "", f"{name}.sum"]
        self._node(
            "SkipSimplifiedLayerNormalization", [stream, added, f"{name}.weight"], outputs,
            domain=_CONTRIB, epsilon=epsilon,
        )  # fmt: skip
        return name, f"{name}.sum"

    def _products(self, name: str, given: str, matrices: Sequence[str]) -> list[str]:
        """``given`` times each matrix: one output where they could be joined to one."""
        packed = [self._pack(f"{matrix}.weight") for matrix in matrices]
        biases = [vector(self._decoder, f"{matrix}.bias") for matrix in matrices]
        whole = joined(packed)
        if whole is None:
            for matrix, part, bias in zip(matrices, packed, biases, strict=True):
                self._product(matrix, given, part, bias)
            return list(matrices)
        bias = None
        if any(one is not None for one in biases):
            bias = np.concatenate(
                [np.zeros(p.rows, np.float32) if b is None else b for p, b in zip(packed, biases, strict=True)]
            )
        self._product(name, given, whole, bias)
        return [name]

    def _product(self, name: str, given: str, packed: Packed, bias: NDArray[Any] | None) -> None:
        self._store(f"{name}.weight", packed)
        coded = name if packed.offsets is None else f"{name}.coded"
        self._multiply(coded, given, f"{name}.weight", packed)
        if bias is not None:
            self._keep(f"{name}.bias", bias)
            self._nodes[-1].input.extend(["", f"{name}.bias"] if packed.zeros is not None else ["", "", f"{name}.bias"])
        if packed.offsets is not None:
            self._keep(f"{name}.offsets", np.ascontiguousarray(packed.offsets.T))
            self._node("MatMul", [self._sums(given, packed.offsets.shape[1]), f"{name}.offsets"], [f"{name}.shift"])
            self._node("Add", [coded, f"{name}.shift"], [name])

    def _sums(self, given: str, blocks: int) -> str:
        """The sums over blocks of what goes into products: an offset of a block adds that often. Made once."""
        if f"{given}.sums" not in self._summed:
            self._summed.add(f"{given}.sums")
            shape = f"{blocks}_blocks"
            if shape not in self._summed:
                self._summed.add(shape)
                self._constant(shape, np.array([0, 0, blocks, BLOCK], np.int64))
            self._node("Reshape", [given, shape], [f"{given}.blocks"])
            self._node("ReduceSum", [f"{given}.blocks", "three"], [f"{given}.sums"], keepdims=0)
        return f"{given}.sums"

    def _multiply(self, name: str, given: str, weight: str, packed: Packed) -> None:
        inputs = [given, f"{weight}.codes", f"{weight}.scales"]
        inputs += [f"{weight}.zeros"] if packed.zeros is not None else []
        self._node(
            "MatMulNBits", inputs, [name], domain=_CONTRIB, K=packed.width, N=packed.rows,
            bits=packed.bits, block_size=BLOCK, accuracy_level=_INT8_INPUTS,
        )  # fmt: skip

    def _logits(self, normed: str, weight: str, packed: Packed) -> None:
        self._node("Gather", [normed, "minus_one"], ["last"], axis=1, name=LAST)
        self._node("Unsqueeze", ["last", "one"], ["last_normed"])
        self._multiply("logits", "last_normed", weight, packed)

    def _store(self, name: str, packed: Packed) -> None:
        self._keep(f"{name}.codes", packed.codes)
        self._keep(f"{name}.scales", packed.scales)
        if packed.zeros is not None:
            self._keep(f"{name}.zeros", packed.zeros)

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **settings: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, **({"name": outputs[0]} | settings)))

    def _constant(self, name: str, value: NDArray[Any]) -> None:
        self._kept.append(onnx.numpy_helper.from_array(value, name))

    def _keep(self, name: str, value: NDArray[Any]) -> None:
        """Weights go to the file beside the graph at once."""
        self._data.write(bytes(-self._data.tell() % _ALIGNED))
        tensor = TensorProto(name=name, dims=value.shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        place = {"location": DATA, "offset": self._data.tell(), "length": value.nbytes}
        for key, told in place.items():
            tensor.external_data.add(key=key, value=str(told))
        self._data.write(np.ascontiguousarray(value).tobytes())
        self._kept.append(tensor)

    def proto(self) -> onnx.GraphProto:
        decoder = self._decoder
        shape: list[int | str | None] = ["batch", decoder.kv_heads, "past", decoder.head_width]
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "all_tokens"]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, decoder.vocabulary])]
        for layer in range(decoder.layers):
            for part in ("key", "value"):
                name, kept = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
                inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
                outputs.append(helper.make_tensor_value_info(kept, TensorProto.FLOAT, [*shape[:2], "all", shape[3]]))
        return helper.make_graph(self._nodes, decoder.architecture, inputs, outputs, self._kept)
