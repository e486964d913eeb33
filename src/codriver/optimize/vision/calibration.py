"""The range of each value in a graph, from pictures: from its least to its most, or narrower where that loses less.

``percentile`` cuts what is rarer; ``mse`` takes the range whose expected squared error, of clipping and of rounding
together, is least; ``entropy`` the one whose rounded distribution has the least KL to the value's own (Migacz 2017,
as in TensorRT). Two readings of the pictures: the first for the ends, the second for a histogram between them; no
value of a picture outlives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from .graph import watch

Floats = NDArray[np.float32]
Method = Literal["minmax", "percentile", "mse", "entropy"]
Range = tuple[float, float]
_BINS, _STEPS = 2048, 256
_TRIED = np.linspace(0.2, 1.0, 81)


class Histograms:
    """``ends`` and counts between them, by value."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[Floats]) -> None:
        self.ends: dict[str, Range] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        watch(model, names, pictures, self._see_ends)
        watch(model, names, pictures, self._see_counts)

    def ranges(self, method: Method, share: float = 0.9999) -> dict[str, Range]:
        """``share``: what ``percentile`` keeps. Zero is in every range, as it must be exact."""
        return {name: self._range(name, method, share) for name in self.ends}

    def _see_ends(self, name: str, values: Floats) -> None:
        low, high = self.ends.get(name, (0.0, 0.0))
        self.ends[name] = (min(low, float(values.min())), max(high, float(values.max())))

    def _see_counts(self, name: str, values: Floats) -> None:
        found = np.histogram(values, _BINS, self.ends[name])[0] if self.ends[name][0] < self.ends[name][1] else None
        if found is not None:
            self.counts[name] = self.counts.get(name, np.zeros(_BINS, np.int64)) + found

    def _range(self, name: str, method: Method, share: float) -> Range:
        low, high = self.ends[name]
        if method == "minmax" or name not in self.counts:
            return low, high
        counts = self.counts[name].astype(np.float64)
        edges = np.linspace(low, high, _BINS + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        if method == "percentile":
            sums = counts.cumsum() / counts.sum()
            least = float(edges[int(np.searchsorted(sums, (1 - share) / 2))])
            most = float(edges[min(_BINS, int(np.searchsorted(sums, 1 - (1 - share) / 2)) + 1)])
            return min(0.0, least), max(0.0, most)
        judge = _squared_error if method == "mse" else _divergence
        # One end is moved, then the other: ranges are seldom lopsided enough for both at once to find more.
        for _ in range(2):
            high = min((high * by for by in _TRIED), key=lambda end: judge(middles, counts, low, end))
            low = (
                min((low * by for by in _TRIED), key=lambda end: judge(middles, counts, end, high)) if low < 0 else low
            )
        return low, high


def _squared_error(middles: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float) -> float:
    step = (high - low) / (_STEPS - 1)
    beyond = np.maximum(0, middles - high) + np.maximum(0, low - middles)
    return float((counts * (beyond**2 + (beyond == 0) * step**2 / 12)).sum())


def _divergence(middles: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float) -> float:
    """KL of the clipped counts to themselves spread evenly over each step; empty bins stay empty."""
    if high <= low:
        return float("inf")
    whole = counts / counts.sum()
    inside = (middles >= low) & (middles <= high)
    step = np.clip(np.rint((middles - low) / (high - low) * (_STEPS - 1)), 0, _STEPS - 1).astype(int)
    held = np.where(inside, whole, 0)
    clipped = held.copy()
    clipped[inside.argmax()] += whole[middles < low].sum()
    clipped[len(inside) - 1 - inside[::-1].argmax()] += whole[middles > high].sum()
    filled = held > 0
    sums, bins = np.bincount(step, held, _STEPS), np.bincount(step, filled, _STEPS)
    told = np.where(filled, sums[step] / np.maximum(1, bins[step]), 1e-12)
    told /= told.sum()
    some = clipped > 0
    return float((clipped[some] * np.log(clipped[some] / np.maximum(told[some], 1e-12))).sum())


def means(model: onnx.ModelProto, names: Sequence[str], pictures: Sequence[Floats]) -> Mapping[str, Floats]:
    """The mean of each channel (axis 1) of each value."""
    sums: dict[str, Floats] = {}

    def see(name: str, values: Floats) -> None:
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        sums[name] = sums.get(name, np.float32(0)) + values.mean(axis=axes) / len(pictures)

    watch(model, names, pictures, see)
    return sums
