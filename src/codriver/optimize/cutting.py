"""Rows and columns taken out of a decoder's matrices, and what is left made good for.

Of a matrix whose input loses columns, what is left of it is fitted to the output that it had, by least squares over the
input's second moment (as in ZipLM: Kurtic et al. 2023, arXiv:2302.04089): ``W_kept + W_gone M_gone,kept M_kept,kept⁻¹``,
with the change damped. The rule kept: never more than a few matrices in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .ggml import Bytes, Floats, quantise
from .gguf_file import Changes, GgufFile, GgufTensor, rewrite

_DAMPING = 0.01
Places = NDArray[np.intp]


@dataclass(frozen=True)
class Cut:
    """What one tensor keeps: so many ``rows``, or so many columns of them (``None``: all). ``made`` gives it."""

    rows: int | None
    columns: int | None
    made: Callable[[Floats], Floats]

    def shape(self, tensor: GgufTensor) -> tuple[int, ...]:
        """A vector is one row of a file's, but stands for as many rows of its matrix."""
        if len(tensor.shape) == 1:
            return (self.rows if self.rows is not None else tensor.shape[0],)
        width, rows = tensor.shape
        return (width if self.columns is None else self.columns, rows if self.rows is None else self.rows)


def write_cut(source: GgufFile, target: Path, cuts: Mapping[str, Cut], told: Mapping[str, str | int]) -> None:
    """Errors: those of ``rewrite`` and of the cuts' own."""
    shapes = {name: cut.shape(source[name]) for name, cut in cuts.items()}

    def data(tensor: GgufTensor) -> Bytes:
        weights = source.weights(tensor)
        made = cuts[tensor.name].made(weights.T if len(tensor.shape) == 1 else weights)
        return quantise(tensor.type, np.ascontiguousarray(made.T if len(tensor.shape) == 1 else made))

    rewrite(source, target, Changes({}, told, shapes=shapes), data)


def losses(weights: Floats, moment: Floats, parts: int) -> Floats:
    """The mean square that the output loses with each of ``parts`` equal runs of columns, (parts,)."""
    width = weights.shape[1] // parts
    found = [
        np.einsum("rc,cd,rd->", weights[:, at : at + width], moment[at : at + width, at : at + width],
                  weights[:, at : at + width], optimize=True)
        for at in range(0, weights.shape[1], width)
    ]  # fmt: skip
    return np.array(found, np.float32)


def mended(weights: Floats, moment: Floats, kept: Places) -> Floats:
    """``weights`` (rows, width) for an input that has only the columns ``kept``: (rows, kept)."""
    gone = np.setdiff1d(np.arange(weights.shape[1]), kept)
    inner = moment[np.ix_(kept, kept)].astype(np.float64)
    inner[np.diag_indices_from(inner)] += _DAMPING * max(float(np.diagonal(inner).mean()), 1e-12)
    change = np.linalg.solve(inner, moment[np.ix_(kept, gone)].astype(np.float64) @ weights[:, gone].T)
    found: Floats = (weights[:, kept] + change.T).astype(np.float32)
    return found
