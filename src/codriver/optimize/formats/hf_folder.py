"""A GGUF file of a language model as a folder of safetensors, as Hugging Face's transformers and vLLM load it.

``safetensors`` holds the weights as F16; ``compressed-tensors`` holds matrices in groups of 32 as 4 bits (or 8) with a
scale, both ways from zero (``pack-quantized``: eight codes, or four, to a 32-bit number, the first one lowest; see the
package compressed-tensors). ``Q4_0`` and ``Q8_0`` are copied; others are rounded to the nearest. Queries and keys go
back to the order that transformers turns. The rule kept here: the folder has its name when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decoder import Decoder
from ..exportable import exportable
from ..ggml import Floats
from .onnx_weights import BLOCK, Packed, codes_of, copied, rounded
from .safetensors_file import Made, write_tensors
from .tokenizer_files import end_tokens, write_tokenizer
from .whole_folder import whole_folder

Told = Callable[[str], None]
WEIGHTS, CONFIG = "model.safetensors", "config.json"
# GGUF's name of each part of a layer, and that of Hugging Face's llama and qwen2.
MATRIX_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORM_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def write_plain(source: Path, target: Path, told: Told) -> None:
    """F16. Errors: those of :func:`exportable` and :func:`write_tokenizer`; :class:`DiskFull`."""
    _write(source, target, told, None)


def write_w4a16(source: Path, target: Path, told: Told) -> None:
    """Matrices of 4 bits, tokens and logits F16. Errors: as :func:`write_plain`."""
    _write(source, target, told, 4)


def write_w8a16(source: Path, target: Path, told: Told) -> None:
    """Matrices of 8 bits, tokens and logits F16. Errors: as :func:`write_plain`."""
    _write(source, target, told, 8)


def _write(source: Path, target: Path, told: Told, bits: int | None) -> None:
    decoder = exportable(source)
    with whole_folder(target) as folder:
        told("writes the tokenizer")
        write_tokenizer(decoder.file, folder)
        config = json.dumps(_config(decoder, bits), indent=1)
        (folder / CONFIG).write_text(config, encoding="utf-8")
        told("writes the weights")
        write_tensors(folder / WEIGHTS, _tensors(decoder, bits))


def names(decoder: Decoder) -> Iterator[tuple[str, str]]:
    """GGUF's name of each tensor, and Hugging Face's."""
    yield "token_embd.weight", "model.embed_tokens.weight"
    yield "output_norm.weight", "model.norm.weight"
    if not decoder.tied:
        yield "output.weight", "lm_head.weight"
    for layer in range(decoder.layers):
        here, there = f"blk.{layer}", f"model.layers.{layer}"
        for part, name in NORM_NAMES.items():
            yield f"{here}.{part}.weight", f"{there}.{name}.weight"
        for part, name in MATRIX_NAMES.items():
            for kind in ("weight", "bias"):
                if f"{here}.{part}.{kind}" in decoder.file:
                    yield f"{here}.{part}.{kind}", f"{there}.{name}.{kind}"


def _tensors(decoder: Decoder, bits: int | None) -> Iterator[Made]:
    for own, name in names(decoder):
        tensor = decoder.file[own]
        shape = tensor.shape[::-1]
        if bits is None or not own.startswith("blk.") or len(shape) != 2:
            yield Made(name, "F16", shape, lambda own=own: _weights(decoder, own))  # type: ignore[misc]
            continue
        base = name.removesuffix("weight")
        groups = (shape[0], -(-shape[1] // BLOCK))
        whole = -(-shape[1] * bits // 32)
        last: list[Packed] = []  # codes and scales of one matrix are written one after the other

        def packed(own: str = own, last: list[Packed] = last) -> Packed:
            if not last:
                last.append(_packed(decoder, own, bits))
            return last[0]

        def scales(packed: Callable[[], Packed] = packed, last: list[Packed] = last) -> Floats:
            found = packed().scales
            last.clear()
            return found

        yield Made(f"{base}weight_packed", "I32", (shape[0], whole), lambda packed=packed: _words(packed()))  # type: ignore[misc]
        yield Made(f"{base}weight_scale", "F16", groups, scales)
        yield Made(f"{base}weight_shape", "I64", (2,), lambda shape=shape: np.array(shape, np.int64))  # type: ignore[misc]


def _packed(decoder: Decoder, own: str, bits: int) -> Packed:
    tensor = decoder.file[own]
    found = copied(decoder.file, tensor)
    if found is None or found.bits != bits or found.offsets is not None:
        found = rounded(decoder.file.weights(tensor), bits, symmetric=True)
        # Codes are made for the scales as they will stand in the file.
    order = turned(decoder, own)
    if order is None:
        return found
    return Packed(found.bits, found.width, found.codes[order], found.scales[order])


def _words(packed: Packed) -> NDArray[np.int32]:
    """Codes as 32-bit numbers, the first code lowest."""
    codes = codes_of(packed).reshape(packed.rows, -1)[:, : packed.width].astype(np.uint32)
    each = 32 // packed.bits
    filled = np.zeros((len(codes), -(-packed.width // each) * each), np.uint32)
    filled[:, : packed.width] = codes
    shifts = np.arange(each, dtype=np.uint32) * packed.bits
    found: NDArray[np.int32] = np.bitwise_or.reduce(filled.reshape(len(codes), -1, each) << shifts, axis=-1).view(
        np.int32
    )
    return found


def _weights(decoder: Decoder, own: str) -> Floats:
    tensor = decoder.file[own]
    found = decoder.file.weights(tensor)
    order = turned(decoder, own)
    if len(tensor.shape) == 1:
        found = found.reshape(-1)
    return found if order is None else found[order]


def turned(decoder: Decoder, own: str) -> NDArray[np.int64] | None:
    """Which row of GGUF's each row of Hugging Face's is: llama's rotary pairs are neighbours in GGUF, halves there."""
    part = own.split(".")[-2]
    if not decoder.interleaved or part not in ("attn_q", "attn_k"):
        return None
    heads = decoder.heads if part == "attn_q" else decoder.kv_heads
    return np.arange(heads * decoder.head_width).reshape(heads, decoder.head_width // 2, 2).swapaxes(1, 2).reshape(-1)


def _config(decoder: Decoder, bits: int | None) -> dict[str, Any]:
    told = decoder.file.header.metadata
    begin, ends = told.get("tokenizer.ggml.bos_token_id"), end_tokens(decoder.file)
    attention = any(name.endswith("attn_q.bias") for name, _ in names(decoder))
    found: dict[str, Any] = {
        "architectures": [_CLASSES[decoder.architecture]],
        "model_type": decoder.architecture,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.channels,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_width,
        "vocab_size": decoder.vocabulary,
        "max_position_embeddings": decoder.context_tokens,
        "rms_norm_eps": decoder.epsilon,
        "rope_theta": decoder.rope_base,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": attention,
        "tie_word_embeddings": decoder.tied,
        "torch_dtype": "float16",
        "bos_token_id": begin,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
    }
    if bits is not None:
        found["quantization_config"] = _compression(bits)
    return found


def _compression(bits: int) -> dict[str, Any]:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": BLOCK,
        "dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
