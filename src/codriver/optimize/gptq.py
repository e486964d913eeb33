"""Second-order rounding into llama.cpp's own blocks: stock llama.cpp reads the result, at full speed.

Source: Frantar et al. 2023 (GPTQ, arXiv:2210.17323): columns are rounded one after the other, and what rounding one did
to the output is made good by those that are still to come, by the inverse of the inputs' second moment. Here each
block's scales are chosen by ggml from the weights as they are when their turn comes, weighted by the inputs' mean
squares, and then the block's columns are rounded to the grid that these scales span.
"""

from __future__ import annotations

import numpy as np

from .blocks import FORMATS
from .ggml import Bytes, Floats

DAMPING = 0.1  # of the mean diagonal; 0.01 is as good on much text, and worse on little


def round_second_order(kind: str, weights: Floats, moment: Floats, damping: float = DAMPING) -> Bytes:
    """The bytes of ``weights`` (rows, width) as ``kind``. ``moment``: (width, width), their input's second moment."""
    form = FORMATS[kind]
    rows, width = weights.shape
    factor = inverse_factor(moment, damping)
    importance = np.diagonal(moment).astype(np.float32)
    left = weights.T.copy()  # (width, rows): a column's weights stand together
    blocks = np.empty((rows, width // form.width, form.size), np.uint8)
    for number, begin in enumerate(range(0, width, form.width)):
        end = begin + form.width
        made = form.begin(left[begin:end].T, importance[begin:end])
        grid = form.grid(made)
        codes = np.empty((rows, form.width), np.uint8)
        errors = np.empty((form.width, rows), np.float32)
        for column in range(form.width):
            at = begin + column
            codes[:, column], rounded = grid.round(column, left[at])
            errors[column] = (left[at] - rounded) / factor[at, at]
            if column + 1 < form.width:
                left[at + 1 : end] -= factor[at, at + 1 : end, None] * errors[column]
        form.fill(made, codes)
        blocks[:, number] = made
        if end < width:
            left[end:] -= factor[begin:end, end:].T @ errors
    return blocks.reshape(-1)


def inverse_factor(moment: Floats, damping: float) -> Floats:
    """The upper Cholesky factor of the damped moment's inverse. Columns that nothing ever enters count for nothing."""
    damped = moment.astype(np.float64)
    at = np.diag_indices_from(damped)
    diagonal = damped[at]
    dead = diagonal == 0
    damped[at] = np.where(dead, 1.0, diagonal) + damping * max(float(diagonal.mean()), 1e-12)
    found: Floats = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    return found


def output_error(weights: Floats, rounded: Floats, importance: Floats) -> float:
    """How much rounding changes the output, relative to the output, with its columns' inputs taken as independent."""
    lost = float(np.einsum("rc,c->", np.square(weights - rounded), importance))
    whole = float(np.einsum("rc,c->", np.square(weights), importance))
    return lost / whole if whole > 0 else 0.0


def output_loss(weights: Floats, rounded: Floats, moment: Floats) -> float:
    """The mean square of what rounding does to the output, by the inputs' second moment."""
    off = weights - rounded
    return float(np.einsum("rc,rc->", off @ moment, off))
