"""What a GGUF file says about itself: metadata, its tensors, and whether the file is whole. Standard library only.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Only the header
is read; no weight is touched. The rules kept: a cut, foreign or hostile file ends in a sentence, never in a wrong
number; nothing it says costs more time or memory than the file is long; and a tensor's name can be printed.
"""

from __future__ import annotations

import itertools
import math
import mmap
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from codriver.core.errors import BadModelFile, MissingFile

Scalar = int | float | bool | str

# Name, weights per block, bytes per block, by ggml's type number.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_SIZES = {kind: struct.calcsize(code) for kind, code in _SCALARS.items()}
_STRING, _ARRAY = 8, 9
_SANE_COUNT = 1 << 24  # of pairs, of tensors, and of all items of arrays that have to be walked through
_SANE_TEXT_BYTES = 1 << 26
_SANE_DEPTH = 4  # of arrays in arrays
_SANE_NAME = 256  # characters; llama.cpp takes 63 bytes


@dataclass(frozen=True)
class GgufTensor:
    """``shape``: the length of a row first, as in the file. ``offset`` counts from the begin of the file. The size of a
    type that is not known here is 0 bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """``metadata`` holds scalars and strings, no arrays, and ``value_at`` where in the file each value begins.
    ``pairs`` of them, arrays included, stand from byte ``pairs_begin`` to ``pairs_end``. Tensors are in the file's
    order, their data on multiples of ``alignment``.
    """

    metadata: dict[str, Scalar]
    value_at: dict[str, int]
    tensors: tuple[GgufTensor, ...]
    pairs: int
    pairs_begin: int
    pairs_end: int
    alignment: int

    @property
    def tensor_bytes(self) -> dict[str, int]:
        """Bytes per type name."""
        sums: dict[str, int] = {}
        for tensor in self.tensors:
            sums[tensor.type] = sums.get(tensor.type, 0) + tensor.size_bytes
        return sums

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def context_tokens(self) -> int:
        """The context the model was trained for; 0 when the file does not say."""
        found = self.metadata.get(f"{self.architecture}.context_length", 0)
        return found if isinstance(found, int) else 0

    @property
    def chat_template(self) -> str:
        return str(self.metadata.get("tokenizer.chat_template", ""))


class _Cut(Exception):
    """The file ended, or holds a value that no header can hold."""


class _Cursor:
    """``within`` says what is being read, for the sentence about a file that cannot be."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0
        self.within = "the first 24 bytes"
        self._items = _SANE_COUNT

    def number(self, code: str, size: int) -> int | float | bool:
        if self.at + size > len(self._data):
            raise _Cut
        (value,) = struct.unpack_from(code, self._data, self.at)
        self.at += size
        found: int | float | bool = value
        return found

    def count(self) -> int:
        return int(self.number("<Q", 8))

    def text(self) -> str:
        length = self.count()
        if length > min(len(self._data) - self.at, _SANE_TEXT_BYTES):
            raise _Cut
        raw = self._data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Scalar | None:
        """A value, or ``None`` for an array, which is only passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], _SIZES[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            self._pass_array(depth + 1)
            return None
        raise _Cut

    def _pass_array(self, depth: int) -> None:
        kind, length = int(self.number("<I", 4)), self.count()
        if kind in _SIZES:
            self.at += _SIZES[kind] * length
            if self.at > len(self._data):
                raise _Cut
            return
        self._items -= length
        if self._items < 0 or depth > _SANE_DEPTH:
            raise _Cut
        for _ in range(length):
            if kind == _STRING:
                length_bytes = self.count()
                self.at += length_bytes
            else:
                self.value(kind, depth)


def read_header(path: Path) -> GgufHeader:
    """Errors: :class:`MissingFile`; :class:`BadModelFile` when the file is no GGUF, cut or damaged."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise MissingFile(f"{path} is no file that a model can be read from.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data)
            try:
                return _read(cursor, path)
            except _Cut:
                raise _unusable(
                    path, f"reading stopped in {cursor.within}, at byte {min(cursor.at, len(data))} of {len(data)}"
                ) from None
    except FileNotFoundError:
        raise MissingFile(f"The model file {path} does not exist. `codriver models pull` fetches models.") from None
    except ValueError:  # an empty file cannot be mapped
        raise _unusable(path, "it is empty") from None
    except OSError as error:
        raise MissingFile(f"The model file {path} cannot be read: {error.strerror}.") from error


def _unusable(path: Path, why: str) -> BadModelFile:
    return BadModelFile(
        f"The model file {path.absolute()} is not a usable GGUF file: {why}. Give a whole GGUF file, or a name that "
        "`codriver models list` shows."
    )


def _read(cursor: _Cursor, path: Path) -> GgufHeader:
    magic = int(cursor.number("<I", 4))
    if magic != 0x46554747:
        raise _unusable(path, "it does not begin with the letters GGUF")
    version = int(cursor.number("<I", 4))
    if version not in (2, 3):
        raise _unusable(path, f"it has GGUF version {version}; versions 2 and 3 are read")
    tensors, pairs = cursor.count(), cursor.count()
    if tensors > _SANE_COUNT or pairs > _SANE_COUNT:
        raise _Cut
    cursor.within = "its metadata"
    metadata: dict[str, Scalar] = {}
    value_at: dict[str, int] = {}
    pairs_begin = cursor.at
    for _ in range(pairs):
        key = cursor.text()
        kind, at = int(cursor.number("<I", 4)), cursor.at
        value = cursor.value(kind)
        if value is not None:
            metadata[key], value_at[key] = value, at
    pairs_end = cursor.at
    cursor.within = "its list of tensors"
    listed = [_tensor(cursor, path) for _ in range(tensors)]
    step = _alignment(metadata, path)
    begin = -(-cursor.at // step) * step
    placed = tuple(replace(each, offset=begin + each.offset) for each in listed)
    _refuse_misplaced(placed, begin, step, path)
    header = GgufHeader(metadata, value_at, placed, pairs, pairs_begin, pairs_end, step)
    if not header.architecture.isprintable():
        raise _unusable(path, f"it names its architecture {header.architecture[:64]!r}")
    return header


def _alignment(metadata: dict[str, Scalar], path: Path) -> int:
    found = metadata.get("general.alignment", 32)
    if not isinstance(found, int) or found < 1 or found & (found - 1):
        raise _unusable(path, f"its weights are aligned to {found!r}, which is no power of two")
    return int(found)


def _refuse_misplaced(tensors: tuple[GgufTensor, ...], begin: int, step: int, path: Path) -> None:
    """Each name once, each tensor within the file and on its step, none on another's bytes."""
    size_bytes = path.stat().st_size
    if begin > size_bytes:
        raise _unusable(path, f"its weights begin at byte {begin}, and the file ends after {size_bytes}")
    names: set[str] = set()
    for each in tensors:
        end = each.offset + each.size_bytes
        if end > size_bytes:
            raise _unusable(
                path,
                f"its weights need {end} bytes, for the tensor '{each.name}', and the file ends after {size_bytes}",
            )
        if (each.offset - begin) % step:
            raise _unusable(path, f"its tensor '{each.name}' at byte {each.offset} is not on a multiple of {step}")
        if each.name in names:
            raise _unusable(path, f"it has two tensors with the name '{each.name}'")
        names.add(each.name)
    ordered = sorted((each for each in tensors if each.size_bytes), key=lambda each: each.offset)
    for one, other in itertools.pairwise(ordered):
        if other.offset < one.offset + one.size_bytes:
            raise _unusable(path, f"its tensors '{one.name}' and '{other.name}' share bytes from {other.offset} on")


def _tensor(cursor: _Cursor, path: Path) -> GgufTensor:
    """A tensor whose offset is still that in the data section."""
    at = cursor.at
    called = cursor.text()
    if not called.isprintable() or not 0 < len(called) <= _SANE_NAME:
        raise _unusable(path, f"the name of its tensor at byte {at} is {called[:64]!r}, which cannot be one")
    dimensions = int(cursor.number("<I", 4))
    if dimensions > 8:
        raise _Cut
    shape = tuple(cursor.count() for _ in range(dimensions))
    kind, offset = int(cursor.number("<I", 4)), cursor.count()
    name, block, size = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
    weights = math.prod(shape)
    if weights >= 1 << 63:
        raise _unusable(path, f"its tensor '{called}' is said to have {' × '.join(map(str, shape))} weights")
    if (shape[0] if shape else 1) % block:
        raise _unusable(path, f"the rows of its tensor '{called[:64]}' are no whole number of blocks of {name}")
    return GgufTensor(called, name, shape, offset, weights // block * size)
