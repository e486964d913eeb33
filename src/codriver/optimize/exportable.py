"""A GGUF file of a language model, as writers of other formats need it: with nothing in it that they would leave out.

The rule kept here: a file that holds anything which a writer would leave out, or that leaves out what a writer needs,
is refused by the name of the key or the tensor; no answer is computed from a model that is only nearly the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from codriver.core.errors import BadModelFile

from .decoder import (
    EMBEDDING,
    LAST_NORM,
    MATRICES,
    NORMS,
    OUTPUT,
    ROPE_FACTORS,
    Decoder,
    none_missing,
    none_unknown,
    read_decoder,
)
from .ggml import Floats
from .gguf_file import GgufFile


def exportable(path: Path) -> Decoder:
    """Errors: :class:`MissingFile`; :class:`BadModelFile` naming the key or the tensor that is not as it must be."""
    return read_decoder(GgufFile(path), _none_strange, none_missing, none_unknown, _all_in_shape)


def vector(decoder: Decoder, name: str) -> Floats | None:
    """A norm's weight or a bias, as float32; ``None`` where the file has none."""
    return decoder.file.weights(decoder.file[name]).reshape(-1) if name in decoder.file else None


def rotation(decoder: Decoder, positions: int) -> tuple[Floats, Floats]:
    """Cosines and sines of the rotary embedding, each (positions, head_width / 2)."""
    step = decoder.rope_base ** (-np.arange(0, decoder.head_width, 2, dtype=np.float64) / decoder.head_width)
    factors = vector(decoder, ROPE_FACTORS)
    if factors is not None:
        step = step / factors
    angle = np.arange(positions, dtype=np.float64)[:, None] * step
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _none_strange(decoder: Decoder) -> None:
    """What changes the answer and is not written."""
    told = decoder.file.header.metadata
    usual: dict[str, tuple[object, ...]] = {
        "rope.scaling.type": ("none", ""),
        "rope.dimension_count": (decoder.head_width,),
        "attention.value_length": (decoder.head_width,),
        "attention.sliding_window": (0,),
    }
    for key, allowed in usual.items():
        name = decoder.key(key)
        if name in told and told[name] not in allowed:
            raise BadModelFile(f"{decoder.file.path} has '{name}' = {told[name]!r}, which no writer carries over.")


def _all_in_shape(decoder: Decoder) -> None:
    path, width, channels = decoder.file.path, decoder.width, decoder.channels
    if len(decoder.file[EMBEDDING].shape) != 2:
        raise BadModelFile(f"{path} has no matrix '{EMBEDDING}'.")
    q, kv = decoder.heads * decoder.head_width, decoder.kv_heads * decoder.head_width
    sizes = ((width, q), (width, kv), (width, kv), (q, width), (width, channels), (width, channels), (channels, width))
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (width, decoder.vocabulary),
        OUTPUT: (width, decoder.vocabulary),
        LAST_NORM: (width,),
        ROPE_FACTORS: (decoder.head_width // 2,),
    }
    for layer in range(decoder.layers):
        for part, shape in zip(MATRICES, sizes, strict=True):
            shapes |= {f"blk.{layer}.{part}.weight": shape, f"blk.{layer}.{part}.bias": shape[1:]}
        shapes |= {f"blk.{layer}.{part}.weight": (width,) for part in NORMS}
    for tensor in decoder.file:
        if tensor.shape != shapes[tensor.name]:
            raise BadModelFile(
                f"The tensor '{tensor.name}' of {path} has the shape {tensor.shape}, not {shapes[tensor.name]}."
            )
