"""A new GGUF file from metadata and tensors, one tensor in memory at a time.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3. The rule kept here: a file that is not
complete never has its name.
"""

from __future__ import annotations

import errno
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codriver.core.errors import BadModelFile, DiskFull

from ..ggml import NUMBERS, Floats, quantise, size_bytes

Value = bool | int | float | str | Sequence[str] | Sequence[int]
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_ALIGNED = 32


@dataclass(frozen=True)
class Planned:
    """``shape``: rows first. ``make`` gives the weights when their turn comes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    make: Callable[[], Floats]


def write_gguf(target: Path, told: Mapping[str, Value], tensors: Sequence[Planned]) -> None:
    """Errors: :class:`BadModelFile` where ``make`` gives another shape; :class:`DiskFull`."""
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            _write(file.write, told, tensors)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"There is no room for {target}; nothing of it was kept.") from error
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write(write: Callable[[bytes], object], told: Mapping[str, Value], tensors: Sequence[Planned]) -> None:
    head = struct.pack("<IIQQ", 0x46554747, 3, len(tensors), len(told))
    head += b"".join(_text(key) + _value(value) for key, value in told.items())
    at = 0
    for one in tensors:
        head += _text(one.name) + struct.pack("<I", len(one.shape))
        head += struct.pack(f"<{len(one.shape)}QIQ", *one.shape[::-1], NUMBERS[one.kind], at)
        at += -(-size_bytes(one.kind, math.prod(one.shape)) // _ALIGNED) * _ALIGNED
    write(head + bytes(-len(head) % _ALIGNED))
    for one in tensors:
        weights = one.make()
        if weights.shape != one.shape:
            raise BadModelFile(f"The tensor '{one.name}' was made as {weights.shape}, not {one.shape}.")
        content = quantise(one.kind, weights.reshape(-1, one.shape[-1])).tobytes()
        write(content + bytes(-len(content) % _ALIGNED))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    texts = [one for one in value if isinstance(one, str)]
    if len(texts) == len(value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(texts)) + b"".join(map(_text, texts))
    return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
