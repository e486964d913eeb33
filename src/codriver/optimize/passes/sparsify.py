"""Weights set to zero where they are missed least: by size, by size and input (Wanda), or to second order (SparseGPT).

Sources: Sun et al. 2023 (Wanda, arXiv:2306.11695); Frantar and Alistarh 2023 (SparseGPT, arXiv:2301.00774), whose
order and whose making good are those of GPTQ. Limits: a GGUF file is dense, and zeros take as much room and time in it
as other weights; the phrase for the lineage says what a sparse container would take. What goes into each matrix is read
from the dense model, not again behind each block that was thinned. Second-order rounding behind it fills zeros again.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue

from ..calibrate import Inputs, MomentsAhead, moment_bytes, read_inputs
from ..decoder import block_of
from ..ggml import Bytes, Floats, quantise
from ..gguf_file import Changes, GgufFile, rewrite
from ..gptq import inverse_factor
from ..recipe import Workshop

_PATTERN = re.compile(r"(\d+):(\d+)")
_COLUMNS = 128  # that are thinned before the rest makes good for them
_DAMPING = 0.01
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pattern:
    """Which weights become zero: ``share`` of them anywhere; with ``of``, all but ``kept`` of each ``of`` in a row."""

    share: float
    kept: int = 0
    of: int = 0

    def zeros(self, scores: Floats, together: bool) -> Mask:
        """Where the lowest scores are: of each row by itself, or of all rows ``together``."""
        if self.of:
            grouped = scores.reshape(len(scores), -1, self.of)
            ranks = grouped.argsort(axis=2, kind="stable").argsort(axis=2, kind="stable")
            return (ranks < self.of - self.kept).reshape(scores.shape)
        flat = scores.reshape(1, -1) if together else scores
        count = round(self.share * flat.shape[1])
        found = np.zeros(flat.shape, np.bool_)
        np.put_along_axis(found, flat.argsort(axis=1, kind="stable")[:, :count], True, axis=1)
        return found.reshape(scores.shape)

    def container_bits(self) -> float:
        """Per weight, with values of 16 bits: each kept one's place in its group, or one bit per weight for all."""
        if self.of:
            return self.kept / self.of * (16 + math.ceil(math.log2(self.of)))
        return (1 - self.share) * 16 + 1


def sparse_gpt(weights: Floats, moment: Floats, pattern: Pattern) -> Floats:
    """``weights`` (rows, width) with zeros, and the others changed to make good for them. ``moment``: (width, width),
    their input's second moment.
    """
    factor = inverse_factor(moment, _DAMPING)
    scale: Floats = np.square(np.diagonal(factor)).astype(np.float32)
    left = weights.T.copy()  # (width, rows): a column's weights stand together
    width, step = len(left), _COLUMNS - _COLUMNS % (pattern.of or 1)
    for begin in range(0, width, step):
        end = min(begin + step, width)
        errors = np.zeros((end - begin, left.shape[1]), np.float32)
        if not pattern.of:
            zeros = pattern.zeros(_missed(left[begin:end], scale[begin:end]), True).T
        for at in range(begin, end):
            if pattern.of and at % pattern.of == 0:
                group = slice(at, at + pattern.of)
                chosen = pattern.zeros(_missed(left[group], scale[group]), False).T
            zero = chosen[at % pattern.of] if pattern.of else zeros[at - begin]
            errors[at - begin] = np.where(zero, left[at] / factor[at, at], 0)
            left[at + 1 : end] -= factor[at, at + 1 : end, None] * errors[at - begin]
            left[at][zero] = 0
        left[end:] -= factor[begin:end, end:].T @ errors
    return left.T.copy()


def _missed(columns: Floats, scale: Floats) -> Floats:
    """What the output loses with each weight, (rows, columns), when those behind it make good for it."""
    return (np.square(columns) / scale[:, None]).astype(np.float32).T


@dataclass(frozen=True)
class Sparsify:
    """Every matrix of every block alike; what stands outside of them, and norms, stay as they are."""

    method: Literal["magnitude", "wanda", "sparsegpt"] = setting("sparsegpt", "How zeros are chosen.")
    pattern: str = setting("2:4", "N:M, so many of each M in a row that stay; or 'unstructured'.")
    share: float = setting(0.5, "Of weights that become zero, where unstructured.", least=0.01, most=0.99)
    windows: int = setting(16, "Of 512 tokens, that show what goes into each matrix.", least=4)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadConfigValue` for a pattern that is none, or that a matrix's rows do not hold; those of
        ``read_inputs`` and ``rewrite``.
        """
        pattern, file = self._pattern(), GgufFile(source)
        widths = {t.name: t.shape[0] for t in file if block_of(t.name) is not None and len(t.shape) == 2}
        for name, width in widths.items():
            if pattern.of and width % pattern.of:
                raise BadConfigValue(
                    f"Rows of {width} of '{name}' are no whole groups of {pattern.of}.", param="pattern"
                )
        thinning = _Thinning(self, pattern, source, shop, widths)
        step, count = shop.run(f"thins out by {self.method}, {self.pattern}"), 0

        def data(name: str) -> Bytes:
            nonlocal count
            tensor = file[name]
            thinned = thinning.thinned(name, file.weights(tensor))
            count += 1
            step.tell(count, len(widths))
            return quantise(tensor.type, thinned)

        changes = Changes({name: file[name].type for name in widths})
        rewrite(file, target, changes, lambda tensor: data(tensor.name))
        weights = sum(file[name].weights for name in widths)
        bits = pattern.container_bits()
        return (
            f"{self.method} {self.pattern}: {pattern.share:.0%} zero of {weights / 1e6:.1f} M weights; a dense file "
            f"does not shrink by it, a sparse container would hold them in {bits / 16:.0%} of 16-bit weights' room"
        )

    def _pattern(self) -> Pattern:
        if self.pattern == "unstructured":
            return Pattern(self.share)
        found = _PATTERN.fullmatch(self.pattern)
        if not found or not 0 < int(found[1]) < int(found[2]) <= _COLUMNS:
            raise BadConfigValue(
                f"The pattern '{self.pattern}' is neither 'unstructured' nor N:M, with N of each M that stay ('2:4').",
                param="pattern",
            )
        kept, of = int(found[1]), int(found[2])
        return Pattern(1 - kept / of, kept, of)


class _Thinning:
    """One matrix after the other, with what its method must know of the inputs."""

    def __init__(self, how: Sparsify, pattern: Pattern, source: Path, shop: Workshop, widths: dict[str, int]) -> None:
        self._how, self._pattern, self._source, self._shop = how, pattern, source, shop
        self._ahead = MomentsAhead({name: moment_bytes(width, width) for name, width in widths.items()}, self._read)
        self._inputs = self._read(frozenset()) if how.method == "wanda" else Inputs()

    def _read(self, names: frozenset[str]) -> Inputs:
        run = self._shop.run("reads what goes into each matrix")
        return read_inputs(self._source, self._shop.text, self._how.windows, run, names.__contains__)

    def thinned(self, name: str, weights: Floats) -> Floats:
        if self._how.method == "sparsegpt":
            return sparse_gpt(weights, self._ahead.moment(name), self._pattern)
        scores = np.abs(weights)
        if self._how.method == "wanda":
            scores *= np.sqrt(self._inputs.importance(name))
        return np.where(self._pattern.zeros(scores, self._how.method == "magnitude"), np.float32(0), weights)
