"""Matrices as ONNX Runtime multiplies them: blocks of 4 or 8 bits (``MatMulNBits``), from the weights of a GGUF file.

A block is ``scale × (code - zero)``, plus an offset that a small product beside it adds. What GGUF formats hold on
such a grid is copied; the rest is rounded to the nearest. Operator: ``MatMulNBits`` of ONNX Runtime's contrib
operators, two codes of 4 bits a byte, the first one low. Its zeros can be floats too, which would need no offset; but
it then unpacks the whole matrix for every token, twenty times as slow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codriver.core.gguf import GgufTensor

from ..blocks import FORMATS
from ..ggml import Bytes, Floats
from ..gguf_file import GgufFile
from ..passes.hadamard import hadamard

BLOCK = 32
ROW_MIDDLE = 128  # the code of 0 where a whole row has one scale
_TURN = 64


@dataclass(frozen=True)
class Packed:
    """``codes`` (rows, blocks, bytes), ``scales`` and ``offsets`` (rows, blocks). ``zeros``: packed codes (rows,
    bytes), or ``None`` for the middle, 8 or 128.
    """

    bits: int
    width: int
    codes: Bytes
    scales: Floats
    zeros: Bytes | None = None
    offsets: Floats | None = None

    @property
    def rows(self) -> int:
        return len(self.codes)

    def weights(self) -> Floats:
        """What the operator multiplies with: (rows, width)."""
        codes = _unpacked(self.codes, self.bits)
        if self.zeros is None:
            zeros = np.full(self.scales.shape, 1 << (self.bits - 1), np.float32)
        else:
            zeros = _unpacked(self.zeros, self.bits)[:, : self.scales.shape[1]].astype(np.float32)
        found: Floats = (codes - zeros[..., None]) * self.scales[..., None]
        if self.offsets is not None:
            found += self.offsets[..., None]
        return found.reshape(self.rows, -1)[:, : self.width].astype(np.float32)


def copied(file: GgufFile, tensor: GgufTensor) -> Packed | None:
    """The tensor's own values, where its format has steps of one size in blocks of 32; ``None`` for other formats.

    4 bits for ``Q4_0``, ``Q4_1``, ``Q4_K``; 8 for ``Q5_0``, ``Q5_1``, ``Q5_K``, ``Q8_0``.
    """
    form = FORMATS.get(tensor.type)
    if form is None:
        return None
    rows, width = tensor.shape[1], tensor.shape[0]
    blocks = file.raw(tensor).reshape(rows * width // form.width, form.size)
    grid = form.grid(blocks)
    count = len(grid.levels)
    if grid.step != BLOCK or (np.diff(grid.levels) != 1).any():
        return None
    scales, offsets = grid.scale.reshape(rows, -1), grid.offset.reshape(rows, -1)
    values = file.weights(tensor).reshape(rows, -1, BLOCK)
    steps = np.where(scales == 0, 1, scales)[..., None]
    bits = 4 if count <= 16 else 8
    up = (1 << (bits - 1)) - count // 2 - grid.levels[0]
    codes = (np.rint((values + offsets[..., None]) / steps) + up).astype(np.uint8)
    shift = scales * (grid.levels[0] + count // 2) - offsets
    return Packed(bits, width, _in_pairs(codes) if bits == 4 else codes, scales, None, shift if shift.any() else None)


def rounded(weights: Floats, bits: int, symmetric: bool = False) -> Packed:
    """To the nearest code of each block of 32. ``weights``: (rows, width), a width that is no multiple is filled up."""
    rows, width = weights.shape
    blocks = -(-width // BLOCK)
    values = np.zeros((rows, blocks * BLOCK), np.float32)
    values[:, :width] = weights
    values = values.reshape(rows, blocks, BLOCK)
    last = (1 << bits) - 1
    if symmetric:
        middle = 1 << (bits - 1)
        at = np.abs(values).argmax(axis=-1)[..., None]
        # The farthest value takes the code -middle, as in Q4_0: one code more than a grid that is the same both ways.
        # Halves, as GGUF's scales are, so that every format can hold them.
        scales = (np.take_along_axis(values, at, -1)[..., 0] / -middle).astype(np.float16).astype(np.float32)
        steps = np.where(scales == 0, 1, scales)
        codes = np.clip(np.rint(values / steps[..., None]) + middle, 0, last).astype(np.uint8)
        return Packed(bits, width, _in_pairs(codes) if bits == 4 else codes, steps.astype(np.float32))
    low, high = np.minimum(values.min(axis=-1), 0), np.maximum(values.max(axis=-1), 0)
    steps = np.where(high > low, (high - low) / last, 1).astype(np.float32)
    zeros = np.clip(np.rint(-low / steps), 0, last).astype(np.uint8)
    codes = np.clip(np.rint(values / steps[..., None]) + zeros[..., None], 0, last).astype(np.uint8)
    if bits == 8:
        return Packed(8, width, codes, steps, zeros)
    even = np.zeros((rows, blocks + blocks % 2), np.uint8)
    even[:, :blocks] = zeros
    return Packed(4, width, _in_pairs(codes), steps, _in_pairs(even))


def rounded_rows(weights: Floats) -> tuple[Bytes, Floats]:
    """To the nearest of 255 codes around :data:`ROW_MIDDLE`, with one scale a row: (rows, width), (rows,)."""
    scales = np.abs(weights).max(axis=1) / np.float32(ROW_MIDDLE - 1)
    scales = np.where(scales == 0, np.float32(1), scales).astype(np.float32)
    return (np.rint(weights / scales[:, None]) + ROW_MIDDLE).astype(np.uint8), scales


def turn_size(width: int) -> int:
    """The largest power of two up to 64 that divides ``width``."""
    return min(_TURN, width & -width)


def turned(weights: Floats) -> Floats:
    """Each block of columns times :func:`turn`: what inputs turned alike are multiplied with. (rows, width)."""
    rows, width = weights.shape
    size = turn_size(width)
    found: Floats = (weights.reshape(rows, -1, size) @ turn(size)).reshape(rows, width)
    return found


def turn(size: int) -> Floats:
    """A Hadamard matrix of a power of two, scaled to turn and not to stretch: its transpose is its inverse."""
    signs = hadamard(size)
    assert signs is not None  # there is one of every power of two
    found: Floats = (signs / np.sqrt(size)).astype(np.float32)
    return found


def codes_of(packed: Packed) -> Bytes:
    """One code a byte: (rows, blocks, 32)."""
    return _unpacked(packed.codes, packed.bits)


def joined(parts: list[Packed]) -> Packed | None:
    """Matrices of the same input as one, rows after rows; ``None`` where their grids are not of one kind."""
    first = parts[0]
    if len({(part.bits, part.zeros is None, part.offsets is None) for part in parts}) > 1:
        return None
    zeros = [part.zeros for part in parts if part.zeros is not None]
    offsets = [part.offsets for part in parts if part.offsets is not None]
    return Packed(
        first.bits,
        first.width,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
        np.concatenate(offsets) if offsets else None,
    )


def _in_pairs(codes: Bytes) -> Bytes:
    found: Bytes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return found


def _unpacked(codes: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return codes
    found: Bytes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    return found
