"""Reading the weights of a GGUF file tensor by tensor, and writing it again with other types.

The rules kept: never more than one tensor in memory; what a file says besides its weights is copied byte for byte; a
file that is not complete never has its name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from codriver.core.errors import BadModelFile
from codriver.core.gguf import GgufHeader, GgufTensor, read_header
from codriver.core.writing import writing

from .ggml import NUMBERS, Bytes, Floats, block, dequantise, size_bytes

_UINT32, _STRING = 4, 8
_WHOLE = ("I8", "I16", "I32", "I64")


class GgufFile:
    """``header`` says what is in it. Errors: those of ``read_header``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: GgufHeader = read_header(path)
        self._by_name = {tensor.name: tensor for tensor in self.header.tensors}

    def __getitem__(self, name: str) -> GgufTensor:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[GgufTensor]:
        return iter(self.header.tensors)

    def raw(self, tensor: GgufTensor) -> Bytes:
        """The tensor's bytes. Errors: :class:`BadModelFile` for a type whose size is not known."""
        if tensor.type not in NUMBERS:
            raise BadModelFile(
                f"The tensor '{tensor.name}' of {self.path} has a type that is not known: {tensor.type}."
            )
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            data = np.fromfile(file, np.uint8, tensor.size_bytes)
        if len(data) != tensor.size_bytes:
            raise BadModelFile(f"The file {self.path} ends within its tensor '{tensor.name}'.")
        return data

    def weights(self, tensor: GgufTensor) -> Floats:
        """As float32 (rows, width); tensors of more dimensions have all but the last of them as rows.

        Errors: as :meth:`raw`, and for whole numbers, which are no weights.
        """
        if tensor.type in _WHOLE:
            raise BadModelFile(
                f"The tensor '{tensor.name}' of {self.path} holds whole numbers ({tensor.type}), no weights."
            )
        width = tensor.shape[0] if tensor.shape else 1
        return dequantise(tensor.type, self.raw(tensor), (tensor.weights // max(1, width), width))

    def refuse_odd(self, tensor: GgufTensor, weights: Floats | None = None) -> None:
        """Errors: :class:`BadModelFile` naming a tensor that holds NaN or infinity; ``weights`` are its own."""
        found = self.weights(tensor) if weights is None else weights
        odd = int(found.size - np.isfinite(found).sum())
        if odd:
            raise BadModelFile(
                f"The tensor '{tensor.name}' of {self.path} is damaged: {odd} of its {found.size} weights are NaN or "
                "infinite."
            )


@dataclass(frozen=True)
class Changes:
    """``kinds``: the tensors whose type changes. ``told``: metadata that is set or added; of a pair that is there
    already only a number can be set. ``dropped``: tensors that are left out. ``added``: tensors that come behind the
    others, each with its name, type and shape. ``shapes``: those that get another one, and ``names``: another name.
    """

    kinds: Mapping[str, str]
    told: Mapping[str, str | int] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    added: tuple[GgufTensor, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def applied(self, tensor: GgufTensor) -> GgufTensor:
        """As it will be in the file that is written; its offset is the old one. Errors: :class:`BadModelFile`."""
        name, kind = self.names.get(tensor.name, tensor.name), self.kinds.get(tensor.name, tensor.type)
        shape = self.shapes.get(tensor.name, tensor.shape)
        made = replace(tensor, name=name, type=kind, shape=shape)
        if shape != tensor.shape and not fits(kind, made):
            raise BadModelFile(f"Rows of {shape[0]} of the tensor '{name}' are no whole number of blocks of {kind}.")
        return replace(made, size_bytes=size_bytes(kind, made.weights))


def rewrite(source: GgufFile, target: Path, changes: Changes, data: Callable[[GgufTensor], Bytes]) -> None:
    """Write ``source`` to ``target`` with ``changes``; ``data`` gives the bytes of each tensor that is named in
    ``kinds`` (by its own type, too) or ``shapes``, or added.

    Errors: :class:`BadModelFile` when ``data`` gives another number of bytes than the type has; those of
    ``writing``.
    """
    part = target.with_name(target.name + ".part")
    with writing(target, part):
        with part.open("wb") as file:
            _write(source, file.write, changes, data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)


def _write(
    source: GgufFile, write: Callable[[bytes], object], changes: Changes, data: Callable[[GgufTensor], Bytes]
) -> None:
    header = source.header
    given = [tensor for tensor in source if tensor.name not in changes.dropped] + [*changes.added]
    kept = [(tensor, changes.applied(tensor)) for tensor in given]
    if len({made.name for _, made in kept}) < len(kept):
        raise BadModelFile(f"A tensor that {source.path} has already cannot be added to it once more.")
    made_anew = {*changes.kinds, *changes.shapes, *(tensor.name for tensor in changes.added)}
    pairs = _pairs(source, {key: value for key, value in changes.told.items() if key in header.value_at})
    new = {key: value for key, value in changes.told.items() if key not in header.value_at}
    added = b"".join(_pair(key, value) for key, value in new.items())
    infos, at = b"", 0
    for _, made in kept:
        infos += _text(made.name) + struct.pack("<I", len(made.shape))
        infos += struct.pack(f"<{len(made.shape)}QIQ", *made.shape, NUMBERS[made.type], at)
        at += _padded(made.size_bytes, header.alignment)
    head = struct.pack("<IIQQ", 0x46554747, 3, len(kept), header.pairs + len(new)) + pairs + added + infos
    write(head + bytes(-len(head) % header.alignment))
    for tensor, made in kept:
        content, wanted = data(tensor) if tensor.name in made_anew else source.raw(tensor), made.size_bytes
        if content.nbytes != wanted:
            raise BadModelFile(
                f"The tensor '{tensor.name}' of {source.path} takes {wanted} bytes as {made.type}, and "
                f"{content.nbytes} were made."
            )
        write(content.tobytes())
        write(bytes(-wanted % header.alignment))


def _pairs(source: GgufFile, changed: Mapping[str, str | int]) -> bytes:
    header = source.header
    with source.path.open("rb") as file:
        file.seek(header.pairs_begin)
        pairs = bytearray(file.read(header.pairs_end - header.pairs_begin))
    for key, value in changed.items():
        at = header.value_at[key] - header.pairs_begin
        if not isinstance(value, int) or pairs[at - 4 : at] != struct.pack("<I", _UINT32):
            raise BadModelFile(f"The metadata '{key}' of {source.path} is not a number that can be set to {value!r}.")
        struct.pack_into("<I", pairs, at, value)
    return bytes(pairs)


def _pair(key: str, value: str | int) -> bytes:
    if isinstance(value, int):
        return _text(key) + struct.pack("<II", _UINT32, value)
    return _text(key) + struct.pack("<I", _STRING) + _text(value)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def fits(kind: str, tensor: GgufTensor) -> bool:
    """True when the tensor's rows are whole numbers of the type's blocks."""
    return bool(tensor.shape) and tensor.shape[0] % block(kind)[0] == 0
