"""How good is a router's order of requests? Area, cost and calibration, with intervals by bootstrap.

A router that may call the strong model for a share ``c`` of the requests calls those with the highest scores. The
performance gap recovered (PGR) at ``c`` is the part of the way from the weak model's accuracy to the strong model's
that this goes; APGR is its area over ``c`` from 0 to 1: 0.5 for chance, above 1 possible where the weak model is right
on what the strong one is not. Requests of equal score are called in no order: they count by their mean.

Source: Ong et al. 2024, RouteLLM, arXiv:2406.18665. Needs NumPy. The rule kept: every figure here is computed from
scores that were made without the outcome they are compared with; making them so is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SHARES = (0.5, 0.8, 0.95)


@dataclass(frozen=True, slots=True)
class Interval:
    """``value`` with the bounds that hold 95 % of its bootstrap."""

    value: float
    low: float
    high: float


class Ranking:
    """Requests in the order in which a router would call the strong model. ``scores``: one each, higher is earlier;
    ``gains``: strong right minus weak right, one each.
    """

    def __init__(self, scores: Floats, gains: Floats) -> None:
        levels, self._level = np.unique(-scores, return_inverse=True)
        self._levels = len(levels)
        self._gains = np.asarray(gains, float)

    def area(self, weights: Floats | None = None) -> float:
        """APGR. ``weights``: how often each request counts; NaN where there is no gap to recover."""
        share, gained = self._curve(weights)
        total = gained.sum()
        if total == 0:
            return float("nan")
        after = 1.0 - np.cumsum(share) + share / 2
        return float((gained * after).sum() / total)

    def cost_at(self, part: float, weights: Floats | None = None) -> float:
        """The least share of strong calls that recovers ``part`` of the gap."""
        share, gained = self._curve(weights)
        total = gained.sum()
        reached = np.concatenate([[0.0], np.cumsum(gained)]) / total
        calls = np.concatenate([[0.0], np.cumsum(share)])
        at = int(np.argmax(reached >= part - 1e-12))
        if at == 0:
            return 0.0
        step = (part - reached[at - 1]) / (reached[at] - reached[at - 1])
        return float(calls[at - 1] + step * (calls[at] - calls[at - 1]))

    def _curve(self, weights: Floats | None) -> tuple[Floats, Floats]:
        """Per level of score, best first: its share of the requests and its summed gain."""
        given = np.ones(len(self._gains)) if weights is None else weights
        count: Floats = np.bincount(self._level, weights=given, minlength=self._levels).astype(float)
        gained: Floats = np.bincount(self._level, weights=given * self._gains, minlength=self._levels).astype(float)
        share: Floats = count / count.sum()
        return share, gained


def resamples(count: int, rounds: int, seed: int = 0) -> NDArray[np.float64]:
    """Bootstrap weights, one row per round: how often each of ``count`` requests is drawn."""
    chance = np.random.default_rng(seed)
    return np.stack([np.bincount(chance.integers(0, count, count), minlength=count) for _ in range(rounds)]).astype(
        float
    )


def area(ranking: Ranking, weights: Floats) -> Interval:
    return _interval(ranking.area(), [ranking.area(row) for row in weights])


def difference(ours: Ranking, other: Ranking, weights: Floats) -> Interval:
    """``ours`` minus ``other`` in APGR, paired: both see the same drawn requests."""
    return _interval(ours.area() - other.area(), [ours.area(row) - other.area(row) for row in weights])


def cost(ranking: Ranking, part: float, weights: Floats) -> Interval:
    return _interval(ranking.cost_at(part), [ranking.cost_at(part, row) for row in weights])


def brier(probabilities: Floats, good: Floats) -> float:
    """Mean squared error of probabilities: 0 is best."""
    return float(np.mean((probabilities - good) ** 2))


def calibration_error(probabilities: Floats, good: Floats, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al. 2015) over ``bins`` of equal count: 0 is best."""
    order = np.argsort(probabilities, kind="stable")
    found = 0.0
    for part in np.array_split(order, bins):
        if len(part):
            found += len(part) * abs(float(probabilities[part].mean() - good[part].mean()))
    return found / max(1, len(order))


def _interval(value: float, drawn: list[float]) -> Interval:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
