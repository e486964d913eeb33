"""What driving teaches about an engine: one bounded shift of its log-odds, learned from verdicts as they come.

The trained model knows which requests are harder; this knows that the engine is better or worse here than where it was
trained. A Gaussian belief over the shift is updated by each verdict (assumed density filtering with the logistic
likelihood; Opper 1998). The rule kept: neither a run of one verdict nor noise can move the shift past ``MOST``, and no
single verdict by more than its weight allows; the belief never hardens below ``LEAST_VARIANCE``, so that it follows an
engine that changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST = 2.0
VARIANCE = 0.5
LEAST_VARIANCE = 0.01
# What a verdict counts for: a user knows, a gate guesses.
CORRECTED = 1.0
GATED = 0.25


@dataclass(slots=True)
class Shift:
    """``mean`` is added to an engine's log-odds; ``count``: verdicts seen."""

    mean: float = 0.0
    variance: float = VARIANCE
    count: int = 0

    def applied(self, probability: float) -> float:
        return _logistic(_log_odds(probability) + self.mean) if self.mean else probability

    def learn(self, probability: float, good: float, weight: float = CORRECTED) -> None:
        """``probability``: the trained model's, before the shift; ``good``: 1, 0, or a probability in between."""
        expected = _logistic(_log_odds(probability) + self.mean)
        information = max(0.0, min(1.0, weight)) * expected * (1 - expected)
        self.variance = max(LEAST_VARIANCE, 1 / (1 / self.variance + information))
        step = self.variance * max(0.0, min(1.0, weight)) * (max(0.0, min(1.0, good)) - expected)
        self.mean = max(-MOST, min(MOST, self.mean + step))
        self.count += 1


def _log_odds(probability: float) -> float:
    kept = max(1e-4, min(1 - 1e-4, probability))
    return math.log(kept / (1 - kept))


def _logistic(score: float) -> float:
    return 1 / (1 + math.exp(-score))
