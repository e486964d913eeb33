"""Whole language models of a few thousand random weights, as GGUF: every part that a writer must carry over."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from codriver.optimize.formats.gguf_writer import Planned, Value, write_gguf

WIDTH, INNER, HEADS, KV_HEADS, HEAD, LAYERS = 128, 256, 4, 2, 32, 2


def _byte_letters() -> list[str]:
    """The 256 letters that byte-pair tokenizers write bytes with (GPT-2's ``bytes_to_unicode``)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    found = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(rest)}
    return [found[byte] for byte in range(256)]


def tokenizer(pre: str) -> dict[str, Value]:
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "1 2"]
    tokens = ["<|endoftext|>", "<|im_end|>", *_byte_letters(), *(pair.replace(" ", "") for pair in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *([1] * (len(tokens) - 2))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }


def write_tiny(
    file: Path, architecture: str, kind: str, more: dict[str, Value] | None = None, extra: tuple[Planned, ...] = ()
) -> Path:
    """``llama`` with tied tokens, ``qwen2`` with biases and an output of its own; matrices of type ``kind``."""
    told = tokenizer("smollm" if architecture == "llama" else "qwen2")
    vocabulary = len(told["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    a = architecture
    whole: dict[str, Value] = {
        "general.architecture": a,
        f"{a}.block_count": LAYERS,
        f"{a}.context_length": 256,
        f"{a}.embedding_length": WIDTH,
        f"{a}.feed_forward_length": INNER,
        f"{a}.attention.head_count": HEADS,
        f"{a}.attention.head_count_kv": KV_HEADS,
        f"{a}.rope.freq_base": 10000.0,
        f"{a}.rope.dimension_count": HEAD,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.vocab_size": vocabulary,
    }
    random = np.random.default_rng(7)

    def plan(name: str, stored: str, *shape: int, about: float = 0.0, spread: float = 0.1) -> Planned:
        values = (about + spread * random.standard_normal(shape)).astype(np.float32)
        return Planned(name, stored, shape, lambda: values)

    tensors = [plan("token_embd.weight", "Q8_0", vocabulary, WIDTH, spread=0.2)]
    tensors.append(plan("output_norm.weight", "F32", WIDTH, about=1.0))
    if a == "qwen2":
        tensors.append(plan("output.weight", "F16", vocabulary, WIDTH))
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    shapes = {
        "attn_q": (q, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH), "attn_output": (WIDTH, q),
        "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
    }  # fmt: skip
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            tensors.append(plan(f"blk.{layer}.{norm}.weight", "F32", WIDTH, about=1.0))
        for part, shape in shapes.items():
            tensors.append(plan(f"blk.{layer}.{part}.weight", kind, *shape))
            if a == "qwen2" and part in ("attn_q", "attn_k", "attn_v"):
                tensors.append(plan(f"blk.{layer}.{part}.bias", "F32", shape[0], spread=0.5))
    write_gguf(file, whole | told | (more or {}), [*tensors, *extra])
    return file
