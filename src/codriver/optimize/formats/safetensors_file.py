"""Safetensors: a header of JSON, and tensors one after another. Read with distrust, written as the tensors are made.

Format: https://github.com/huggingface/safetensors (eight bytes of length, the header, the data). The rule kept here:
nothing of a header is believed before it was held against the file: lengths, types, shapes, gaps and overlaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codriver.core.errors import BadModelFile, MissingFile

from ..ggml import Floats

_LARGEST_HEADER = 100 << 20  # as the reference implementation has it
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "<?",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """``shape``: rows first. ``offset`` counts from the begin of the file."""

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(_TYPES[self.kind]).itemsize

    def raw(self) -> NDArray[Any]:
        """As it stands in the file; ``BF16`` as 16-bit numbers."""
        with self.file.open("rb") as data:
            data.seek(self.offset)
            found = np.fromfile(data, _TYPES[self.kind], math.prod(self.shape))
        if found.nbytes != self.size_bytes:
            raise BadModelFile(f"The file {self.file} ends within its tensor '{self.name}', at byte {self.offset}.")
        return found.reshape(self.shape)

    def weights(self) -> Floats:
        """As float32. Errors: :class:`BadModelFile` for numbers that are no floats."""
        if self.kind not in ("F64", "F32", "F16", "BF16"):
            raise BadModelFile(f"The tensor '{self.name}' of {self.file} holds {self.kind}; floats were expected.")
        found = self.raw()
        if self.kind == "BF16":
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found.astype(np.float32)


def read_entries(path: Path) -> dict[str, Entry]:
    """What a file holds, by name.

    Errors: :class:`MissingFile`; :class:`BadModelFile` naming the tensor and the byte where the header is wrong.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise _bad(path, f"byte 0 says that the header has {length} bytes, and the file has {size}")
            text = file.read(length)
    except FileNotFoundError:
        raise MissingFile(f"The model file {path} does not exist.") from None
    except OSError as error:
        raise MissingFile(f"The model file {path} cannot be read: {error.strerror}.") from error
    try:
        told = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its header, from byte 8 on, is no JSON of single keys: {str(error)[:80]}") from None
    if not isinstance(told, dict):
        raise _bad(path, "its header, from byte 8 on, is no JSON object")
    told.pop("__metadata__", None)
    begin = 8 + length
    found = {name: _entry(path, name, one, begin, size) for name, one in told.items()}
    at = begin
    for entry in sorted(found.values(), key=lambda one: (one.offset, one.size_bytes)):
        if entry.offset != at:
            what = "overlaps the one before it" if entry.offset < at else "leaves a gap before it"
            raise _bad(path, f"the tensor '{entry.name[:64]}' at byte {entry.offset} {what}, which ends at {at}")
        at += entry.size_bytes
    if at != size:
        raise _bad(path, f"its tensors end at byte {at}, and the file at {size}")
    return found


def _bad(path: Path, why: str) -> BadModelFile:
    return BadModelFile(f"The file {path} is no usable safetensors file: {why}.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _entry(path: Path, name: str, told: Any, begin: int, size: int) -> Entry:
    called = f"the tensor '{name[:64]}'"
    if not isinstance(told, dict) or set(told) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"{called} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _bad(path, f"{called} has the type {str(kind)[:32]!r}; there are {', '.join(_TYPES)}")
    if not _counts(shape) or len(shape) > 8:
        raise _bad(path, f"{called} has the shape {str(shape)[:64]}")
    if not _counts(offsets) or len(offsets) != 2:
        raise _bad(path, f"{called} has the offsets {str(offsets)[:64]}")
    first, last = offsets
    if not first <= last <= size - begin:
        raise _bad(path, f"{called} stands from byte {begin + first} to {begin + last}, and the file ends at {size}")
    entry = Entry(path, name, kind, tuple(shape), begin + first)
    if entry.size_bytes != last - first:
        raise _bad(path, f"{called} at byte {begin + first} takes {entry.size_bytes} bytes, and has {last - first}")
    return entry


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(one) is int and 0 <= one < 1 << 62 for one in values)


@dataclass(frozen=True)
class Made:
    """A tensor to write: ``make`` gives its values when their turn comes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]


def write_tensors(path: Path, tensors: Iterable[Made]) -> None:
    """One tensor in memory at a time. Errors: ``OSError``; :class:`BadModelFile` where ``make`` gives another shape."""
    listed = list(tensors)
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for one in listed:
        size = math.prod(one.shape) * np.dtype(_TYPES[one.kind]).itemsize
        head[one.name] = {"dtype": one.kind, "shape": list(one.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for one in listed:
            values = np.ascontiguousarray(one.make(), _TYPES[one.kind])
            if values.shape != one.shape:
                raise BadModelFile(f"The tensor '{one.name}' was made as {values.shape}, not {one.shape}.")
            file.write(values.tobytes())
