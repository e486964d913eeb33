"""The arrays in a GGUF file's metadata, which the header passes over: tokens, merges, kinds and scores of tokens.

Limits: all are read at once, so only where they are needed. The rule kept: the header was read before, and found whole.
"""

from __future__ import annotations

import struct

import numpy as np

from .gguf_file import GgufFile

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def arrays(file: GgufFile) -> dict[str, list[str] | list[int] | list[float]]:
    """All of them by their keys; an array of arrays is empty."""
    header = file.header
    with file.path.open("rb") as source:
        source.seek(header.pairs_begin)
        data = source.read(header.pairs_end - header.pairs_begin)
    found: dict[str, list[str] | list[int] | list[float]] = {}
    at = 0
    for _ in range(header.pairs):
        key, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        if kind == _STRING:
            _, at = _text(data, at)
        elif kind == _ARRAY:
            found[key], at = _array(data, at)
        else:
            at += struct.calcsize(_SCALARS[kind])
    return found


def _text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length].decode("utf-8", "replace"), at + 8 + length


def _array(data: bytes, at: int) -> tuple[list[str] | list[int] | list[float], int]:
    kind, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind == _STRING:
        texts: list[str] = []
        for _ in range(length):
            text, at = _text(data, at)
            texts.append(text)
        return texts, at
    if kind == _ARRAY:  # no writer needs arrays of arrays; they are passed over
        for _ in range(length):
            _, at = _array(data, at)
        return [], at
    code = _SCALARS[kind]
    size = struct.calcsize(code)
    return list(np.frombuffer(data, code, length, at).tolist()), at + size * length
