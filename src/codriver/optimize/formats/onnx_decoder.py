"""A decoder of a GGUF file as an ONNX graph in ONNX Runtime's own operators, as ONNX Runtime GenAI drives it.

One token's way: ``GatherBlockQuantized``, then per layer RMS norm, ``MatMulNBits``, ``GroupQueryAttention`` (which
turns and keeps keys and values), a gate. Logits are of the last position only, as that is all that a next token needs.
The rule kept here: one layer's input of products in memory at a time; weights stand beside the graph in one file,
written as they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..decoder import Decoder
from ..exportable import rotation, vector
from .onnx_graph import CONTRIB, DATA, Graph
from .onnx_products import BlockProducts, ChannelProducts, Packer, Products, multiply_blocks, store_blocks
from .onnx_weights import BLOCK, Packed

GRAPH = "model.onnx"
FIRST = "first_position"  # the constant that says of which position on there are logits: of the last


def write_decoder(
    decoder: Decoder, folder: Path, packers: tuple[Packer, Packer | None], told: Callable[[int, int], None]
) -> None:
    """:data:`GRAPH` and its weights in ``folder``. ``packers`` make the blocks of a matrix by its name in GGUF: of
    what tokens become and the logits, and of the layers' matrices; ``None`` for those in whole rows of 8 bits.
    """
    with (folder / DATA).open("wb") as data:
        graph = Graph(data)
        of_tokens, of_layers = packers
        products: Products = (
            ChannelProducts(graph, decoder) if of_layers is None else BlockProducts(graph, decoder, of_layers)
        )
        model = _Builder(graph, decoder, of_tokens, products).build(told)
    (folder / GRAPH).write_bytes(model.SerializeToString())


class _Builder:
    def __init__(self, graph: Graph, decoder: Decoder, pack: Packer, products: Products) -> None:
        self._graph, self._decoder, self._pack, self._products = graph, decoder, pack, products

    def build(self, told: Callable[[int, int], None]) -> onnx.ModelProto:
        decoder = self._decoder
        self._lengths()
        cosines, sines = rotation(decoder, decoder.context_tokens)
        self._graph.weight("cosines", cosines)
        self._graph.weight("sines", sines)
        head = self._pack("token_embd.weight" if decoder.tied else "output.weight")
        rows = head if decoder.tied else self._pack("token_embd.weight")
        self._embed(rows)
        if not decoder.tied:
            store_blocks(self._graph, "head", head)
        stream, added = "vectors", ""
        for layer in range(decoder.layers):
            told(layer, decoder.layers)
            stream, added = self._layer(layer, stream, added)
        normed, _ = self._norm("output_norm", stream, added)
        self._logits(normed, "rows" if decoder.tied else "head", head)
        told(decoder.layers, decoder.layers)
        return self._graph.model(decoder.architecture, *self._ports())

    def _lengths(self) -> None:
        """What the attention must know of lengths, from the mask: the last position, and all of them."""
        values = {"one": [1], "one_scalar": 1, FIRST: [-1], "end": [np.iinfo(np.int64).max]}
        for name, value in values.items():
            self._graph.constant(name, np.array(value, np.int64))
        self._graph.node("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0)
        self._graph.node("Sub", ["lengths", "one_scalar"], ["last_positions"])
        self._graph.node("Cast", ["last_positions"], ["seqlens_k"], to=TensorProto.INT32)
        self._graph.node("Shape", ["attention_mask"], ["mask_shape"])
        self._graph.node("Gather", ["mask_shape", "one_scalar"], ["mask_length"])
        self._graph.node("Cast", ["mask_length"], ["total_length"], to=TensorProto.INT32)

    def _embed(self, rows: Packed) -> None:
        if rows.offsets is not None:
            raise ValueError("rows of tokens cannot have offsets")
        store_blocks(self._graph, "rows", rows)
        flat = (len(rows.codes), rows.scales.shape[1])
        self._graph.weight("rows.scales_in_place", rows.scales.reshape(*flat, 1))
        inputs = ["rows.codes", "input_ids", "rows.scales_in_place"]
        self._graph.node(
            "GatherBlockQuantized", inputs, ["blocks_of_vectors"], domain=CONTRIB,
            bits=rows.bits, block_size=BLOCK, gather_axis=0, quantize_axis=2,
        )  # fmt: skip
        self._graph.constant("vectors_shape", np.array([0, 0, self._decoder.width], np.int64))
        self._graph.node("Reshape", ["blocks_of_vectors", "vectors_shape"], ["vectors"])

    def _layer(self, layer: int, stream: str, added: str) -> tuple[str, str]:
        """The stream behind the attention, and what the gate adds to it."""
        here = f"blk.{layer}"
        normed, stream = self._norm(f"{here}.attn_norm", stream, added)
        attended = self._attend(layer, normed)
        if layer == self._decoder.layers - 1:
            # Of all other positions, keys and values were all that is needed any more.
            self._products.only_last()
            attended, stream = self._from_first(attended), self._from_first(stream)
        made = self._products.product(f"{here}.attn_output", attended, [f"{here}.attn_output"])[0]
        normed, stream = self._norm(f"{here}.ffn_norm", stream, made)
        gate, up = (
            self._products.product(f"{here}.{part}", normed, [f"{here}.{part}"])[0] for part in ("ffn_gate", "ffn_up")
        )
        self._graph.node("Sigmoid", [gate], [f"{here}.opened"])
        self._graph.node("Mul", [gate, f"{here}.opened"], [f"{here}.silu"])
        self._graph.node("Mul", [f"{here}.silu", up], [f"{here}.gated"])
        down = self._products.product(f"{here}.ffn_down", f"{here}.gated", [f"{here}.ffn_down"])[0]
        return stream, down

    def _attend(self, layer: int, normed: str) -> str:
        decoder, here = self._decoder, f"blk.{layer}"
        parts = self._products.product(f"{here}.qkv", normed, [f"{here}.attn_{part}" for part in "qkv"])
        parts += [""] * (3 - len(parts))
        cache = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        told = ["seqlens_k", "total_length", "cosines", "sines"]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        self._graph.node(
            "GroupQueryAttention", [*parts, *cache, *told], [f"{here}.attended", *present], domain=CONTRIB,
            num_heads=decoder.heads, kv_num_heads=decoder.kv_heads, do_rotary=1,
            rotary_interleaved=int(decoder.interleaved), scale=decoder.head_width**-0.5,
        )  # fmt: skip
        return f"{here}.attended"

    def _norm(self, name: str, stream: str, added: str) -> tuple[str, str]:
        """The normed sum of the stream and what is added, and the sum itself."""
        weight = vector(self._decoder, f"{name}.weight")
        assert weight is not None  # checked when the file was read
        self._graph.weight(f"{name}.weight", weight)
        epsilon = self._decoder.epsilon
        if not added:
            self._graph.node(
                "SimplifiedLayerNormalization", [stream, f"{name}.weight"], [name], axis=-1, epsilon=epsilon
            )
            return name, stream
        outputs = [name, "", "", f"{name}.sum"]
        self._graph.node(
            "SkipSimplifiedLayerNormalization", [stream, added, f"{name}.weight"], outputs,
            domain=CONTRIB, epsilon=epsilon,
        )  # fmt: skip
        return name, f"{name}.sum"

    def _from_first(self, name: str) -> str:
        self._graph.node("Slice", [name, FIRST, "end", "one"], [f"{name}.last"])
        return f"{name}.last"

    def _logits(self, normed: str, weight: str, packed: Packed) -> None:
        multiply_blocks(self._graph, "logits", normed, (weight, packed))

    def _ports(self) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
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
        return inputs, outputs
