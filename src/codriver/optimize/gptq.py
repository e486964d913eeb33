"""Second-order rounding into llama.cpp's own blocks: stock llama.cpp reads the result, at full speed.

Source: Frantar et al. 2023 (GPTQ, arXiv:2210.17323): columns are rounded one after the other, and what rounding one did
to the output is made good by those that are still to come, by the inverse of the inputs' second moment. Here each
block's scales are chosen by ggml from the weights as they are when their turn comes, weighted by the inputs' mean
squares, and then the block's columns are rounded to the grid that these scales span.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .blocks import FORMATS
from .ggml import Bytes, Floats

DAMPING = 0.1  # of the mean diagonal; 0.01 is as good on much text, and worse on little
_STRIP = 32  # columns whose errors are made good one by one; those behind them, by all of the strip's at once


def round_second_order(kind: str, weights: Floats, moment: Floats, damping: float = DAMPING) -> Bytes:
    """The bytes of ``weights`` (rows, width) as ``kind``. ``moment``: (width, width), their input's second moment."""
    return SecondOrder(moment, damping).rounded(kind, weights)


class SecondOrder:
    """What rounding any rows takes of their input's second moment (width, width)."""

    def __init__(self, moment: Floats, damping: float = DAMPING) -> None:
        self._factor = inverse_factor(moment, damping)
        self._importance = np.diagonal(moment).astype(np.float32)

    def rounded(self, kind: str, weights: Floats) -> Bytes:
        """The bytes of ``weights`` (rows, width) as ``kind``."""
        form, factor = FORMATS[kind], self._factor
        rows, width = weights.shape
        left = weights.T.copy()  # (width, rows): a column's weights stand together
        blocks = np.empty((rows, width // form.width, form.size), np.uint8)
        for number, begin in enumerate(range(0, width, form.width)):
            end = begin + form.width
            made = form.begin(left[begin:end].T, self._importance[begin:end])
            grid = form.grid(made)
            codes = np.empty((rows, form.width), np.uint8)
            errors = np.empty((form.width, rows), np.float32)
            for strip in range(0, form.width, _STRIP):
                last = strip + _STRIP
                for column in range(strip, last):
                    at = begin + column
                    codes[:, column], rounded = grid.round(column, left[at])
                    errors[column] = (left[at] - rounded) / factor[at, at]
                    if column + 1 < last:
                        left[at + 1 : begin + last] -= factor[at, at + 1 : begin + last, None] * errors[column]
                if last < form.width:
                    left[begin + last : end] -= (
                        factor[begin + strip : begin + last, begin + last : end].T @ errors[strip:last]
                    )
            form.fill(made, codes)
            blocks[:, number] = made
            if end < width:
                left[end:] -= factor[begin:end, end:].T @ errors
        return blocks.reshape(-1)


def inverse_factor(moment: Floats, damping: float) -> Floats:
    """The upper Cholesky factor of the damped moment's inverse. Columns that nothing ever enters count for nothing."""
    damped: NDArray[np.float64] = moment.astype(np.float64)
    at = np.diag_indices_from(damped)
    diagonal = damped[at]
    dead = diagonal == 0
    damped[at] = np.where(dead, 1.0, diagonal) + damping * max(float(diagonal.mean()), 1e-12)
    # With rows and columns turned round, the lower factor's inverse is the upper factor of the inverse.
    lower = np.asarray(np.linalg.cholesky(damped[::-1, ::-1]), np.float64)
    del damped
    _invert_lower(lower)
    found: Floats = lower[::-1, ::-1].astype(np.float32)
    return found


def _invert_lower(lower: NDArray[np.float64]) -> None:
    """In place, by halves: mostly products of matrices."""
    half = len(lower) // 2
    if half < _STRIP:
        lower[:] = np.linalg.inv(lower)
        return
    _invert_lower(lower[:half, :half])
    _invert_lower(lower[half:, half:])
    lower[half:, :half] = -lower[half:, half:] @ (lower[half:, :half] @ lower[:half, :half])


def output_error(weights: Floats, rounded: Floats, importance: Floats) -> float:
    """How much rounding changes the output, relative to the output, with its columns' inputs taken as independent."""
    lost = float(np.einsum("rc,c->", np.square(weights - rounded), importance))
    whole = float(np.einsum("rc,c->", np.square(weights), importance))
    return lost / whole if whole > 0 else 0.0


def output_loss(weights: Floats, rounded: Floats, moment: Floats) -> float:
    """The mean square of what rounding does to the output, by the inputs' second moment."""
    off = weights - rounded
    return float(np.einsum("rc,rc->", off @ moment, off))
