"""Small GGUF files made on the spot: a writer of a few lines, for headers and for a tiny LoRA adapter."""

from __future__ import annotations

import struct
from pathlib import Path

Tensor = tuple[str, tuple[int, ...], int, bytes]  # name, dimensions (fastest first), ggml type, data


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def write_gguf(path: Path, metadata: dict[str, str | int | float], tensors: list[Tensor]) -> Path:
    head = struct.pack("<IIQQ", 0x46554747, 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key)
        if isinstance(value, str):
            head += struct.pack("<I", 8) + _text(value)
        elif isinstance(value, float):
            head += struct.pack("<If", 6, value)
        else:
            head += struct.pack("<II", 4, value)
    data = b""
    for name, dimensions, kind, content in tensors:
        head += _text(name) + struct.pack("<I", len(dimensions)) + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        head += struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def write_lora(path: Path) -> Path:
    """An adapter for SmolLM2-135M (576 wide) that adds 0.5 × ones of rank 1 to every layer's attention output."""
    metadata: dict[str, str | int | float] = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 1.0,
    }
    row = struct.pack("<576f", *([0.5] * 576))
    tensors: list[Tensor] = []
    for layer in range(30):
        name = f"blk.{layer}.attn_output.weight"
        tensors.append((f"{name}.lora_a", (576, 1), 0, row))
        tensors.append((f"{name}.lora_b", (1, 576), 0, row))
    return write_gguf(path, metadata, tensors)
