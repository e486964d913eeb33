"""What may be said of a latency from so many runs: medians with an interval, and high percentiles only where n allows.

The rule is MLPerf's own (LoadGen ``early_stopping.cc`` and ``results.cc``, scenario SingleStream; Reddi et al. 2020,
arXiv:1911.02549): with ``t`` of ``n`` runs above a value, the true percentile ``p`` is below it at a confidence of 99 %
where the binomial distribution gives at most 1 % to so few. The estimate is the least such value, and below the least
``n`` for ``t = 1`` there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.99
SHOWN = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class Percentile:
    """``value`` is ``None`` where ``n`` runs are too few; ``needed`` are the fewest that allow one."""

    share: float
    value: float | None
    n: int
    needed: int


@dataclass(frozen=True)
class Median:
    """With its 95 % interval by order statistics; ``None`` where ``n`` runs are too few for one (six are needed)."""

    value: float
    low: float | None
    high: float | None
    n: int


def median(values: Sequence[float]) -> Median:
    """Errors: ``ValueError`` for no values."""
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        raise ValueError("a median needs a value")
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    inside = 0
    while 2 * _at_most(inside, n, 0.5) <= 0.05:
        inside += 1
    if not inside:
        return Median(middle, None, None, n)
    return Median(middle, ordered[inside - 1], ordered[n - inside], n)


def percentile(values: Sequence[float], share: float) -> Percentile:
    """LoadGen's estimate: higher than the plain percentile, as sure as 99 %."""
    ordered, n = sorted(values), len(values)
    needed = runs_needed(share)
    if n < needed:
        return Percentile(share, None, n, needed)
    over = 1
    while least_below(over + 1, share) + over + 1 <= n:
        over += 1
    return Percentile(share, ordered[n - over - 1], n, needed)


def runs_needed(share: float) -> int:
    """The fewest runs from which a percentile is told."""
    return least_below(1, share) + 1


@cache
def least_below(over: int, share: float) -> int:
    """The fewest runs below a value that, with ``over`` above it, show that ``share`` of all are below."""
    low, high = 0, 1
    while _at_most(over, high + over, 1 - share) > 1 - CONFIDENCE:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if _at_most(over, middle + over, 1 - share) > 1 - CONFIDENCE:
            low = middle + 1
        else:
            high = middle
    return low


def _at_most(hits: int, n: int, chance: float) -> float:
    """That at most ``hits`` of ``n`` happen, each with ``chance``."""
    if hits >= n:
        return 1.0
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        + k * math.log(chance) + (n - k) * math.log1p(-chance)
        for k in range(hits + 1)
    )  # fmt: skip
    return math.fsum(map(math.exp, logs))
