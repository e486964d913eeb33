"""llama.cpp's block formats as grids: the values that a block can hold once its scales are chosen, and its codes.

A pass that rounds weights in its own order (GPTQ) lets ggml choose the scales, rounds to the grid they span, and puts
its codes in their place. Layouts: ``block_*`` in ggml's ``ggml-common.h``. A grid is per row and sub-block: weight =
``scale × level[code] - offset``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ggml import Bytes, Floats, block, quantise

Codes = NDArray[np.uint8]
_NIBBLE, _FOUR = np.uint8(15), np.uint8(4)


@dataclass(frozen=True)
class Grid:
    """``scale`` and ``offset``: (rows, sub-blocks), each for ``step`` columns. ``levels``: ascending, one per code."""

    scale: Floats
    offset: Floats
    step: int
    levels: Floats

    def round(self, column: int, values: Floats) -> tuple[Codes, Floats]:
        """Codes nearest to one column's values, and the weights that they stand for."""
        scale, offset = self.scale[:, column // self.step], self.offset[:, column // self.step]
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(scale != 0, (values + offset) / scale, 0.0)
        if self.levels[1] - self.levels[0] == 1:
            codes = np.clip(np.rint(wanted) - self.levels[0], 0, len(self.levels) - 1).astype(np.uint8)
        else:
            codes = np.searchsorted((self.levels[1:] + self.levels[:-1]) / 2, wanted).astype(np.uint8)
        weights: Floats = (scale * self.levels[codes] - offset).astype(np.float32)
        return codes, weights


class Format(ABC):
    """One block format. ``width`` weights stand in a block of ``size`` bytes."""

    kind: str

    def __init__(self) -> None:
        self.width, self.size = block(self.kind)

    def begin(self, weights: Floats, importance: Floats) -> Bytes:
        """Blocks (rows, bytes) for one block's columns, as ggml rounds them: their scales are kept."""
        return quantise(self.kind, np.ascontiguousarray(weights), importance).reshape(len(weights), self.size).copy()

    @abstractmethod
    def grid(self, blocks: Bytes) -> Grid: ...

    @abstractmethod
    def fill(self, blocks: Bytes, codes: Codes) -> None:
        """Put the codes (rows, width) in their places."""


def _half(blocks: Bytes, at: int) -> Floats:
    """A 16-bit float of each block, as a column."""
    found: Floats = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
    return found


def _levels(first: int, last: int) -> Floats:
    return np.arange(first, last + 1, dtype=np.float32)


def _nibbles(codes: Codes) -> Codes:
    """32 codes in 16 bytes: the first half of them low, the second half high."""
    found: Codes = (codes[:, :16] & _NIBBLE) | ((codes[:, 16:] & _NIBBLE) << _FOUR)
    return found


class Q4_0(Format):
    kind = "Q4_0"

    def grid(self, blocks: Bytes) -> Grid:
        scale = _half(blocks, 0)
        return Grid(scale, np.zeros_like(scale), 32, _levels(-8, 7))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        blocks[:, 2:18] = _nibbles(codes)


class Q4_1(Format):
    kind = "Q4_1"

    def grid(self, blocks: Bytes) -> Grid:
        return Grid(_half(blocks, 0), -_half(blocks, 2), 32, _levels(0, 15))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        blocks[:, 4:20] = _nibbles(codes)


class IQ4_NL(Format):
    kind = "IQ4_NL"
    _TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

    def grid(self, blocks: Bytes) -> Grid:
        scale = _half(blocks, 0)
        return Grid(scale, np.zeros_like(scale), 32, np.array(self._TABLE, np.float32))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        blocks[:, 2:18] = _nibbles(codes)


def _fifth_bits(codes: Codes) -> Bytes:
    return np.packbits(codes >> 4, axis=1, bitorder="little")


class Q5_0(Format):
    kind = "Q5_0"

    def grid(self, blocks: Bytes) -> Grid:
        scale = _half(blocks, 0)
        return Grid(scale, np.zeros_like(scale), 32, _levels(-16, 15))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        blocks[:, 2:6], blocks[:, 6:22] = _fifth_bits(codes), _nibbles(codes)


class Q5_1(Format):
    kind = "Q5_1"

    def grid(self, blocks: Bytes) -> Grid:
        return Grid(_half(blocks, 0), -_half(blocks, 2), 32, _levels(0, 31))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        blocks[:, 4:8], blocks[:, 8:24] = _fifth_bits(codes), _nibbles(codes)


class Q8_0(Format):
    kind = "Q8_0"

    def grid(self, blocks: Bytes) -> Grid:
        scale = _half(blocks, 0)
        return Grid(scale, np.zeros_like(scale), 32, _levels(-128, 127))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        blocks[:, 2:34] = codes ^ 128  # two's complement of code - 128


def _six_bit_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of 6 bits each, from 12 bytes."""
    low, mid, high = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.hstack([low & 63, (high & 15) | (low >> 6 << 4)])
    minima = np.hstack([mid & 63, (high >> 4) | (mid >> 6 << 4)])
    return scales.astype(np.float32), minima.astype(np.float32)


class Q4_K(Format):
    kind = "Q4_K"
    _LAST = 15

    def grid(self, blocks: Bytes) -> Grid:
        scales, minima = _six_bit_scales(blocks[:, 4:16])
        return Grid(_half(blocks, 0) * scales, _half(blocks, 2) * minima, 32, _levels(0, self._LAST))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        pairs = (codes & 15).reshape(-1, 4, 2, 32)
        blocks[:, 16:144] = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)


class Q5_K(Q4_K):
    kind = "Q5_K"
    _LAST = 31

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        pairs = (codes & 15).reshape(-1, 4, 2, 32)
        blocks[:, 48:176] = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)
        fifth = (codes >> 4).reshape(-1, 8, 32)
        blocks[:, 16:48] = np.bitwise_or.reduce(fifth << np.arange(8, dtype=np.uint8)[None, :, None], axis=1)


class Q6_K(Format):
    kind = "Q6_K"

    def grid(self, blocks: Bytes) -> Grid:
        scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
        scale = _half(blocks, 208) * scales
        return Grid(scale, np.zeros_like(scale), 16, _levels(-32, 31))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        quarters = codes.reshape(-1, 2, 4, 32)
        low, top = quarters & 15, quarters >> 4
        blocks[:, :128] = np.concatenate([low[:, :, :2] | (low[:, :, 2:] << 4)], axis=2).reshape(-1, 128)
        shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
        blocks[:, 128:192] = np.bitwise_or.reduce(top << shifts, axis=2).reshape(-1, 64)


class Q3_K(Format):
    kind = "Q3_K"

    def grid(self, blocks: Bytes) -> Grid:
        packed = blocks[:, 96:108]
        low = np.hstack([packed[:, :8] & 15, packed[:, :8] >> 4])
        top = np.hstack([packed[:, 8:12] >> shift & 3 for shift in (0, 2, 4, 6)])
        scales = (low | (top << 4)).astype(np.float32) - 32
        scale = _half(blocks, 108) * scales
        return Grid(scale, np.zeros_like(scale), 16, _levels(-4, 3))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        third = (codes >> 2).reshape(-1, 8, 32)
        blocks[:, :32] = np.bitwise_or.reduce(third << np.arange(8, dtype=np.uint8)[None, :, None], axis=1)
        blocks[:, 32:96] = _two_bits(codes & np.uint8(3))


def _two_bits(codes: Codes) -> Bytes:
    """256 codes of two bits in 64 bytes: four planes of 32 in each half."""
    planes = codes.reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    found: Bytes = np.bitwise_or.reduce(planes, axis=2).reshape(-1, 64)
    return found


class Q2_K(Format):
    kind = "Q2_K"

    def grid(self, blocks: Bytes) -> Grid:
        packed = blocks[:, :16]
        scale = _half(blocks, 80) * (packed & 15).astype(np.float32)
        return Grid(scale, _half(blocks, 82) * (packed >> 4).astype(np.float32), 16, _levels(0, 3))

    def fill(self, blocks: Bytes, codes: Codes) -> None:
        blocks[:, 16:80] = _two_bits(codes)


FORMATS: dict[str, Format] = {
    made.kind: made
    for made in (Q4_0(), Q4_1(), IQ4_NL(), Q5_0(), Q5_1(), Q8_0(), Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K())
}
