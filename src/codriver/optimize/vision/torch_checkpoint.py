"""A torch checkpoint of plain tensors, read without torch and without running anything in it.

The file is a ZIP: ``data.pkl`` says which tensors there are, and the members below ``data/`` hold their numbers. A
pickle is a program; here it is only *read* (``pickletools``), by a machine that knows the few operations of a table of
tensors and can build tuples, tables and tensors with them and nothing else. The rules kept: an operation or a name that
is not known is refused, never skipped; sizes are worked out before memory is taken. Sources: the format is PyTorch's
(``torch/serialization.py``, ``torch/_utils.py``: ``_rebuild_tensor_v2``); the operations are Python's ``pickletools``.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codriver.core.errors import BadModelFile, MissingFile

Array = NDArray[Any]
_LARGEST_PICKLE_BYTES, _LARGEST_TENSOR_BYTES, _LARGEST_FILE_BYTES = 4 << 20, 1 << 29, 1 << 30
_MOST_DIMENSIONS = 8
# What the readers of archives meet in a damaged one.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)
_KINDS = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
_NAMES = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {kind}" for kind in _KINDS)}
)
_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"}
)  # operations that push what they carry
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclass(frozen=True)
class _Name:
    """A class or a function that the pickle names; it is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


class _Mark:
    """Where a group of values begins on the stack."""


def read_checkpoint(file: Path) -> dict[str, Array]:
    """Every tensor by its name, contiguous. Errors: :class:`MissingFile`; :class:`BadModelFile` naming the file, and
    the byte of the pickle or the tensor.
    """
    if not file.is_file():
        raise MissingFile(f"The checkpoint {file} does not exist.")
    if file.stat().st_size > _LARGEST_FILE_BYTES:
        raise BadModelFile(f"The checkpoint {file} has {file.stat().st_size:,} bytes; that is more than is read.")
    try:
        with zipfile.ZipFile(file) as archive:
            return _read(archive, file)
    except _DAMAGE as error:
        raise BadModelFile(f"{file} is no checkpoint of plain tensors: {str(error)[:200]}.") from None


def _read(archive: zipfile.ZipFile, file: Path) -> dict[str, Array]:
    members = {one.filename.partition("/")[2]: one for one in archive.infolist()}
    told = members.get("data.pkl")
    if told is None:
        raise BadModelFile(f"{file} is no checkpoint of plain tensors: it has no data.pkl.")
    if told.file_size > _LARGEST_PICKLE_BYTES:
        raise BadModelFile(f"The table of {file} has {told.file_size:,} bytes; that is more than is read.")
    order = members.get("byteorder")
    if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
        raise BadModelFile(f"The checkpoint {file} is not in little-endian order.")
    tensors: dict[str, Array] = {}
    table = _Machine(file).table(archive.read(told))
    # Many tensors may share one storage, and each is a copy of its own.
    sizes = [one.count * np.dtype(one.storage.kind).itemsize for one in table.values() if isinstance(one, _Tensor)]
    if sum(sizes) > _LARGEST_FILE_BYTES:
        raise BadModelFile(f"The tensors of {file} take more than the {_LARGEST_FILE_BYTES:,} bytes that are read.")
    for name, tensor in table.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise BadModelFile(
                f"{file} is no state dict: a table of tensors is expected, and {str(name)[:80]} is none."
            )
        member = members.get(f"data/{tensor.storage.key}")
        size = tensor.storage.count * np.dtype(tensor.storage.kind).itemsize
        if member is None or member.file_size != size:
            held = "nothing" if member is None else f"{member.file_size:,} bytes"
            raise BadModelFile(f"The tensor '{name[:80]}' of {file} needs {size:,} bytes, and the file holds {held}.")
        values = np.frombuffer(archive.read(member), tensor.storage.kind)
        steps = tuple(step * values.itemsize for step in tensor.steps)
        view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, steps, writeable=False)
        tensors[name] = np.array(view, order="C")
    return tensors


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class _Machine:
    """The pickle's stack and memo."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def table(self, pickle: bytes) -> dict[Any, Any]:
        at = 0
        try:
            for operation, value, position in pickletools.genops(pickle):
                at = position or 0
                self._do(operation.name, value, at)
        except (ValueError, IndexError, KeyError, TypeError) as error:
            told = str(error)[:100]
            raise BadModelFile(
                f"{self._file} is no checkpoint of plain tensors: byte {at} of its table: {told}."
            ) from None
        found = self._stack[-1] if self._stack else None
        if not isinstance(found, dict):
            raise BadModelFile(f"{self._file} is no state dict: a table of tensors is expected.")
        return found

    def _do(self, operation: str, value: Any, at: int) -> None:
        stack = self._stack
        if operation in _VALUES:
            stack.append(value)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = stack[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[value])
        elif operation == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif operation == "MARK":
            stack.append(_Mark)
        elif operation.startswith("TUPLE") or operation == "EMPTY_TUPLE":
            self._tuple(operation)
        elif operation == "EMPTY_DICT":
            stack.append({})
        elif operation in ("SETITEM", "SETITEMS"):
            self._put(operation)
        elif operation == "GLOBAL":
            if value not in _NAMES:
                raise BadModelFile(
                    f"{self._file} is no checkpoint of plain tensors: byte {at} of its table names "
                    f"'{str(value)[:80]}', which is not run."
                )
            stack.append(_Name(value))
        elif operation == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif operation == "REDUCE":
            given, called = stack.pop(), stack.pop()
            stack.append(self._made(called, given))
        elif operation == "BUILD":
            stack.pop()  # what the table notes beside its tensors: versions of modules
        elif operation not in ("PROTO", "STOP", "FRAME"):
            raise ValueError(f"the operation {operation} is not one of a table of tensors")

    def _tuple(self, operation: str) -> None:
        if operation == "TUPLE":
            values = self._marked()
        else:
            count = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}[operation]
            values = [self._stack.pop() for _ in range(count)][::-1]
        self._stack.append(tuple(values))

    def _put(self, operation: str) -> None:
        values = self._marked() if operation == "SETITEMS" else [self._stack.pop() for _ in range(2)][::-1]
        table = self._stack[-1]
        if not isinstance(table, dict) or len(values) % 2:
            raise ValueError("items are put into what is no table")
        table.update(zip(values[::2], values[1::2], strict=True))

    def _marked(self) -> list[Any]:
        begin = len(self._stack) - 1 - self._stack[::-1].index(_Mark)
        values = self._stack[begin + 1 :]
        del self._stack[begin:]
        return values

    def _storage(self, told: Any) -> _Storage:
        word, kind, key, _, count = told
        if word != "storage" or not isinstance(kind, _Name) or not isinstance(key, str) or not isinstance(count, int):
            raise ValueError("it describes no storage")
        code = _KINDS[kind.name.removeprefix("torch ")]
        if not 0 <= count * np.dtype(code).itemsize <= _LARGEST_TENSOR_BYTES:
            raise ValueError(f"a storage of {count:,} values is more than is read")
        return _Storage(code, key, count)

    def _made(self, called: Any, given: Any) -> Any:
        if called == _Name("collections OrderedDict") and given == ():
            return {}
        if called != _Name("torch._utils _rebuild_tensor_v2"):
            raise ValueError("it makes something that is no tensor")
        storage, offset, shape, steps, *_ = given
        numbers = (offset, *shape, *steps)
        if not isinstance(storage, _Storage) or not all(type(one) is int and one >= 0 for one in numbers):
            raise ValueError("it describes no tensor")
        if len(shape) != len(steps) or len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {len(shape)} dimensions with {len(steps)} steps")
        count = math.prod(shape)
        last = offset + sum((side - 1) * step for side, step in zip(shape, steps, strict=True))
        if count * 8 > _LARGEST_TENSOR_BYTES or (count and last >= storage.count):
            raise ValueError(f"a tensor of shape {shape} lies beyond its {storage.count:,} values")
        return _Tensor(storage, offset, tuple(shape), tuple(steps))
