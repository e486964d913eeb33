"""How fast a series grows: a straight line that outliers do not move, with the interval its slope lies in.

The slope is the median of the slopes between all pairs of points (Theil 1950, "A rank-invariant method of linear and
polynomial regression analysis"), its interval that of Sen 1968 ("Estimates of the regression coefficient based on
Kendall's tau", JASA 63, section 4), in the normal approximation and for points without ties in time. Samples of a
process's memory depend on those before them, which makes the interval too narrow: the series is first cut into blocks
of equal length, and each block's median is one point. What remains is why a bound stands beside the interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_Z = 1.959964  # both ends of 95 %
_LEAST_POINTS = 8
BLOCKS = 60

Point = tuple[float, float]


@dataclass(frozen=True)
class Slope:
    """Units of the series a unit of its time: the estimate and its 95 % interval, from ``points`` block medians."""

    value: float
    low: float
    high: float
    points: int

    def times(self, factor: float) -> Slope:
        """In other units; ``factor`` is positive."""
        return Slope(self.value * factor, self.low * factor, self.high * factor, self.points)

    @property
    def is_known(self) -> bool:
        return not math.isnan(self.value)


UNKNOWN = Slope(math.nan, -math.inf, math.inf, 0)


def slope(series: Sequence[Point], blocks: int = BLOCKS) -> Slope:
    """The slope of ``(time, value)`` points in order of time; :data:`UNKNOWN` of fewer than eight."""
    points = medians(series, blocks)
    count = len(points)
    if count < _LEAST_POINTS:
        return UNKNOWN
    steps = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(points)
        for later in points[index + 1 :]
        if later[0] > earlier[0]
    )
    spread = _Z * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, round((len(steps) - spread) / 2))
    high = min(len(steps) - 1, round((len(steps) + spread) / 2))
    return Slope(statistics.median(steps), steps[low], steps[high], count)


def medians(series: Sequence[Point], blocks: int) -> list[Point]:
    """The series as at most ``blocks`` points, each the median in time and in value of its share of the samples."""
    if len(series) <= blocks:
        return list(series)
    cuts = [len(series) * index // blocks for index in range(blocks + 1)]
    parts = [series[start:end] for start, end in pairwise(cuts)]
    return [(statistics.median(p[0] for p in part), statistics.median(p[1] for p in part)) for part in parts]
