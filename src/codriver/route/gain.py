"""What a call to the cloud would gain, learned from requests that both engines answered.

A prior that only knows how often the vehicle is right sends hard questions to a cloud that fails on them too. This fits
the difference instead: cloud right minus vehicle right, by ridge regression on the same features, and gives it as a
:class:`~codriver.route.quality.Logistic` in which 0.5 means "no gain" and 0.5 - g about "a gain of g". So a router
uses it as any other prior, with ``skip_below`` as the price of a call. Needs NumPy, which fitting alone imports.

Source: regret regression for two-model routing, in the linear form of Hybrid LLM (Ding et al. 2024, arXiv:2404.14618).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codriver.core.errors import BadConfigValue, MissingExtra

from .quality import Features, Logistic

DECAYS = (10.0, 30.0, 100.0)
_STEPS = 60


def fit_gain(samples: Sequence[tuple[Features, float]], decay: float | None = None) -> Logistic:
    """``samples``: features and gain (-1, 0 or 1). ``decay``: ridge penalty; None tries ``DECAYS`` on a held-out fifth.

    Errors: :class:`BadConfigValue` for fewer than 20 samples, :class:`MissingExtra` without NumPy.
    """
    if len(samples) < 20:
        raise BadConfigValue(f"A gain model needs at least 20 samples; there are {len(samples)}.")
    if decay is None:
        part = [sample for index, sample in enumerate(samples) if index % 5]
        held_out = samples[::5]
        decay = min(DECAYS, key=lambda each: _squared_error(_solve(part, each), held_out))
    return Logistic({slot: -4.0 * weight for slot, weight in _solve(samples, decay).items()})


def _squared_error(weights: dict[int, float], samples: Sequence[tuple[Features, float]]) -> float:
    return sum((_dot(weights, features) - gain) ** 2 for features, gain in samples) / len(samples)


def _dot(weights: dict[int, float], features: Features) -> float:
    return sum(weights.get(slot, 0.0) * value for slot, value in features.items())


def _solve(samples: Sequence[tuple[Features, float]], decay: float) -> dict[int, float]:
    """Ridge regression by conjugate gradients (Hestenes and Stiefel 1952) over the non-zero entries alone."""
    np = _numpy()
    slots = np.array([slot for features, _ in samples for slot in features], dtype=np.int64)
    values = np.array([value for features, _ in samples for value in features.values()])
    rows = np.repeat(np.arange(len(samples)), [len(features) for features, _ in samples])
    gains = np.array([gain for _, gain in samples], dtype=float)
    known, columns = np.unique(slots, return_inverse=True)

    def transposed(by_row: Any) -> Any:
        return np.bincount(columns, weights=values * by_row[rows], minlength=len(known))

    weights = np.zeros(len(known))
    residual = transposed(gains)
    direction = residual.copy()
    enough = 1e-8 * float(residual @ residual)
    squared = float(residual @ residual)
    for _ in range(_STEPS):
        if squared <= enough:
            break
        by_row = np.bincount(rows, weights=values * direction[columns], minlength=len(samples))
        pushed = transposed(by_row) + decay * direction
        step = squared / float(direction @ pushed)
        weights += step * direction
        residual -= step * pushed
        before, squared = squared, float(residual @ residual)
        direction = residual + squared / before * direction
    return {int(slot): float(weight) for slot, weight in zip(known, weights, strict=True)}


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise MissingExtra("Fitting a router needs NumPy: pip install 'codriver[bench]'.") from None
    return numpy
