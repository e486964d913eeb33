"""Models of two layers, cut out of a real one: with a real tokenizer, and small enough to be rounded in seconds. The
tiny ones, of a llama and of a qwen2, are narrow as well, and can be trained in seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codriver.core.gguf import GgufTensor
from codriver.optimize.ggml import Bytes, quantise
from codriver.optimize.gguf_file import Changes, GgufFile, _pairs, _text, rewrite
from codriver.optimize.rounding import write_reference

LAYERS = 2


@pytest.fixture(scope="session")
def short_model(model_file: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = GgufFile(model_file("smollm2.gguf"))
    later = frozenset(t.name for t in source if t.name.startswith("blk.") and int(t.name.split(".")[1]) >= LAYERS)
    file = tmp_path_factory.mktemp("short") / "short.gguf"
    rewrite(source, file, Changes({}, {"llama.block_count": LAYERS}, later), source.raw)
    return file


@pytest.fixture(scope="session")
def plain_model(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``short_model`` as F32."""
    file = tmp_path_factory.mktemp("plain") / "plain.gguf"
    write_reference(GgufFile(short_model), file, "F32")
    return file


_NARROW = {
    "llama.embedding_length": 128,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
}


@pytest.fixture(scope="session")
def narrow_model(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corners of the real model's matrices, 128 wide: read ten times as fast, and as bad as one may think."""
    source = GgufFile(short_model)
    sizes = {576: 128, 1536: 256, 192: 128, 49152: 49152}
    infos, data = b"", b""
    for tensor in source:
        shape = tuple(sizes[size] for size in tensor.shape)
        weights = source.weights(tensor)
        rows = shape[1] if len(shape) > 1 else 1
        cut = np.ascontiguousarray(weights[:rows, : shape[0]])
        infos += _text(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += cut.tobytes()
    head = struct.pack("<IIQQ", 0x46554747, 3, len(source.header.tensors), source.header.pairs)
    head += _pairs(source, _NARROW) + infos
    file = tmp_path_factory.mktemp("narrow") / "narrow.gguf"
    file.write_bytes(head + bytes(-len(head) % 32) + data)
    return file


TINY = {
    "embedding_length": 64, "feed_forward_length": 128, "attention.head_count": 4, "attention.head_count_kv": 2,
    "attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16,
}  # fmt: skip
_TINY_SHAPES = {
    "attn_q": (64, 64), "attn_k": (64, 32), "attn_v": (64, 32), "attn_output": (64, 64),
    "ffn_gate": (64, 128), "ffn_up": (64, 128), "ffn_down": (128, 64), "token_embd": (64, 49152),
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corner of each of the two layers' matrices, as F32."""
    source, file = GgufFile(short_model), tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    shapes = {t.name: _TINY_SHAPES.get(t.name.split(".")[-2], (64,)) for t in source}

    def corner(tensor: GgufTensor) -> Bytes:
        shape = shapes[tensor.name]
        return quantise("F32", 3 * source.weights(tensor)[: shape[1] if len(shape) == 2 else 1, : shape[0]])

    told = {f"llama.{key}": value for key, value in TINY.items()}
    rewrite(source, file, Changes(dict.fromkeys(shapes, "F32"), told, shapes=shapes), corner)
    return file


@pytest.fixture(scope="session")
def tiny_qwen2(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same numbers as a qwen2, with biases: other positions, and one more thing to cut."""
    source, file = GgufFile(tiny_model), tmp_path_factory.mktemp("tiny") / "qwen2.gguf"
    header, raw = source.header, bytearray(tiny_model.read_bytes())
    for key, at in header.value_at.items():
        if key.startswith("llama."):
            raw[at - 4 - len(key) : at - 4 - len(key) + 5] = b"qwen2"
    named = header.value_at["general.architecture"] + 8
    raw[named : named + 5] = b"qwen2"
    drawn = np.random.default_rng(3)
    tensors = [(t.name, t.shape, source.raw(t).tobytes()) for t in source]
    for part, rows in (("q", 64), ("k", 32), ("v", 32)):
        for block in range(LAYERS):
            bias = drawn.standard_normal(rows).astype(np.float32)
            tensors.append((f"blk.{block}.attn_{part}.bias", (rows,), bias.tobytes()))
    infos, data = b"", b""
    for name, shape, content in tensors:
        infos += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}QIQ", *shape, 0, len(data))
        data += content + bytes(-len(content) % 32)
    head = raw[:8] + struct.pack("<Q", len(tensors)) + raw[16 : header.pairs_end] + infos
    file.write_bytes(head + bytes(-len(head) % 32) + data)
    return file


@pytest.fixture(scope="session")
def sentences() -> str:
    """Words enough for a few windows of 512 tokens, none of them from a licensed text."""
    who = ("The driver", "A passenger", "The navigation", "An engineer", "The old mechanic", "My neighbour")
    does = ("asks for", "forgets", "repairs", "looks at", "writes about", "waits for")
    what = (
        "the window",
        "a charging station",
        "the tyre pressure",
        "two maps of the north",
        "a quiet road",
        "the radio",
    )
    when = ("in the morning", "after the rain", "before the tunnel", "every second week", "at 21 degrees", "by mistake")
    told = [
        f"{who[a]} {does[b]} {what[c]} {when[(a + b + 2 * c) % 6]}."
        for a in range(6)
        for b in range(6)
        for c in range(6)
    ]
    return " ".join(told[(7 * at) % len(told)] for at in range(9 * len(told)))
