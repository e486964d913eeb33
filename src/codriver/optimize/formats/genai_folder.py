"""A GGUF file of a language model as the folder that ONNX Runtime GenAI loads: graph, weights, tokenizer, settings.

``onnx-genai`` keeps the file's own values where its formats stand on a grid of even steps in blocks of 32, and 8 bits
for the rest; ``-int8`` and ``-int4`` round every matrix anew, ``-w8a8`` to whole rows, which prompts are read fastest
by. The rule kept here: the folder has its name when it is
whole, and not before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..decoder import Decoder
from ..exportable import exportable
from .onnx_decoder import GRAPH, write_decoder
from .onnx_weights import Packed, copied, rounded
from .tokenizer_files import end_tokens, write_tokenizer
from .whole_folder import whole_folder

Told = Callable[[str], None]


def write_as_is(source: Path, target: Path, told: Told) -> None:
    """The file's own values. Errors: those of :func:`exportable` and :func:`write_tokenizer`; :class:`DiskFull`."""
    _write(source, target, told, None)


def write_int8(source: Path, target: Path, told: Told) -> None:
    """Blocks of 32 in 8 bits, both ways from zero. Errors: as :func:`write_as_is`."""
    _write(source, target, told, 8)


def write_int4(source: Path, target: Path, told: Told) -> None:
    """Blocks of 32 in 4 bits with a zero of their own; tokens and logits in 8. Errors: as :func:`write_as_is`."""
    _write(source, target, told, 4)


def write_w8a8(source: Path, target: Path, told: Told) -> None:
    """Rows of 8 bits times inputs of 8 bits, in integers: the fastest for prompts. Errors: as :func:`write_as_is`."""
    _write(source, target, told, None, blocks=False)


def _write(source: Path, target: Path, told: Told, bits: int | None, blocks: bool = True) -> None:
    decoder = exportable(source)
    with whole_folder(target) as folder:
        told("writes the tokenizer")
        write_tokenizer(decoder.file, folder)
        told("writes the graph and its weights")

        def pack(name: str) -> Packed:
            return _packed(decoder, name, bits)

        write_decoder(decoder, folder, (pack, pack if blocks else None), lambda done, of: None)
        settings = json.dumps(_settings(decoder), indent=1)
        (folder / "genai_config.json").write_text(settings, encoding="utf-8")


def _packed(decoder: Decoder, name: str, bits: int | None) -> Packed:
    tensor = decoder.file[name]
    tokens = name in ("token_embd.weight", "output.weight")
    own = copied(decoder.file, tensor) if bits != 4 or tokens else None
    if own is not None and (own.offsets is None or not tokens) and (bits is None or own.bits == 8):
        return own
    weights = decoder.file.weights(tensor)
    return rounded(weights, 4) if bits == 4 and not tokens else rounded(weights, 8, symmetric=True)


def _settings(decoder: Decoder) -> dict[str, Any]:
    told = decoder.file.header.metadata
    named = {key: told.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "padding")}
    eos = end_tokens(decoder.file)
    cache = "past_key_values.%d.", "present.%d."
    return {
        "model": {
            "type": decoder.architecture,
            "bos_token_id": named["bos"] if isinstance(named["bos"], int) else eos[0],
            "eos_token_id": eos,
            "pad_token_id": named["padding"] if isinstance(named["padding"], int) else eos[0],
            "context_length": decoder.context_tokens,
            "vocab_size": decoder.vocabulary,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": GRAPH,
                "head_size": decoder.head_width,
                "hidden_size": decoder.width,
                "num_attention_heads": decoder.heads,
                "num_hidden_layers": decoder.layers,
                "num_key_value_heads": decoder.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": cache[0] + "key",
                    "past_value_names": cache[0] + "value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": cache[1] + "key",
                    "present_value_names": cache[1] + "value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": decoder.context_tokens,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
        },
    }
