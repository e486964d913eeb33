"""Rows and columns taken out of a decoder's matrices, and what is left made good for.

Of a matrix whose input loses columns, what is left of it is fitted to the output that it had, by least squares over
the input's second moment (as in ZipLM: Kurtic et al. 2023, arXiv:2302.04089): ``W_kept + W_gone M_gone,kept
M_kept,kept⁻¹``, with the change damped. The rule kept: never more than a few matrices in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codriver.core.gguf import GgufTensor

from ..calibrate import MomentsAhead, Read, moment_bytes
from ..ggml import Bytes, Floats, quantise
from ..gguf_file import Changes, GgufFile, rewrite

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


class Choice:
    """Of each of the matrices ``outputs``, whose input consists of equal parts, those that its output loses most with.
    ``sizes``: how many parts there are, and how many stay. Seen over what ``read`` reads, when the first is asked for.
    """

    def __init__(self, file: GgufFile, outputs: Sequence[str], sizes: tuple[int, int], read: Read) -> None:
        self._file, (self._parts, self._left) = file, sizes
        widths = {name: file[name].shape[0] for name in outputs}
        self._ahead = MomentsAhead({name: moment_bytes(width, width) for name, width in widths.items()}, read)
        self._kept: dict[str, Places] = {}

    def columns(self, output: str, run: int) -> Places:
        """Those of ``run`` in each part that stay."""
        if output not in self._kept:
            weights = self._file.weights(self._file[output])
            lost = losses(weights, self._ahead.moment(output), self._parts)
            self._kept[output] = np.sort(np.argsort(-lost, kind="stable")[: self._left])
        found: Places = (self._kept[output][:, None] * run + np.arange(run)).reshape(-1)
        return found

    def rows_cut(self, output: str, run: int) -> Cut:
        """Of a tensor whose ``run`` rows for each part give what enters ``output``."""
        return Cut(self._left * run, None, lambda weights: weights[self.columns(output, run)])

    def output_cut(self, output: str) -> Cut:
        run = self._file[output].shape[0] // self._parts

        def made(weights: Floats) -> Floats:
            return mended(weights, self._ahead.moment(output), self.columns(output, run))

        return Cut(None, self._left * run, made)


def losses(weights: Floats, moment: Floats, parts: int) -> Floats:
    """The mean square that the output loses with each of ``parts`` equal runs of columns, (parts,)."""
    width = weights.shape[1] // parts
    if width == 1:
        single: Floats = np.square(weights).sum(axis=0) * np.diagonal(moment)
        return single
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
