"""The router's knowledge in a replay: who gains from the cloud, learned so that no request is judged by what saw it.

Five folds by question (equal ones share one, whatever their options). For each fold the quality model, or where no
embedder is here the gain model (``route/gain.py``), is fitted on the other four, and the price of a call set so that
the wanted share of those would be called. Beside it stand three yardsticks at the same number of calls: chance, the
mean of the question's category, and an oracle that knows both outcomes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codriver.core.messages import ChatRequest, Message
from codriver.route.gain import fit_gain
from codriver.route.quality import Calibration, Features, Fit, Quality, request_features

from .datasets import Outcome
from .folds import FOLDS, group_of

if TYPE_CHECKING:
    from .outcome_sets import Embed


@dataclass(frozen=True)
class FoldRouter:
    """What one fold's car knows: ``quality``, and the ``priors`` of what it learned from, sorted."""

    quality: Quality
    priors: tuple[float, ...]

    def skip_below(self, calls: float) -> float:
        """The prior below which the cloud is called so that ``calls`` of the training requests would have been."""
        return self.priors[min(len(self.priors) - 1, int(calls * len(self.priors)))]


def fold_of(outcome: Outcome) -> int:
    return group_of(outcome.prompt) % FOLDS


def features_of(outcome: Outcome) -> Features:
    return request_features(request_for(outcome))


def request_for(outcome: Outcome) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=outcome.prompt)], user=outcome.id)


def gain_of(outcome: Outcome) -> float:
    """What the cloud adds: 1 where only the strong model is right, -1 where only the weak one is."""
    return float(outcome.strong_ok) - float(outcome.weak_ok)


def cross_fit(outcomes: Sequence[Outcome], engine: str = "vehicle") -> list[FoldRouter]:
    """A router per fold, fitted on the others."""
    features = [features_of(outcome) for outcome in outcomes]
    folds = [fold_of(outcome) for outcome in outcomes]
    routers = []
    for fold in range(FOLDS):
        training = [(features[i], gain_of(outcome)) for i, outcome in enumerate(outcomes) if folds[i] != fold]
        model = fit_gain(training)
        priors = sorted(model.probability(each) for each, _ in training)
        rate = sum(gain <= 0 for _, gain in training) / len(training)
        known = Calibration(engine, prior=model, gate=model, fit=Fit(len(training), rate, 0.0, rate * (1 - rate)))
        routers.append(FoldRouter(Quality({engine: known}), tuple(priors)))
    return routers


class ForeseenQuality(Quality):
    """Priors that were worked out beforehand, by the name that a request carries as its ``user``."""

    def __init__(self, priors: Mapping[str, float]) -> None:
        super().__init__()
        self._priors = priors

    def features(self, request: ChatRequest) -> Features:
        return {0: self._priors[request.user or ""]}

    def prior(self, engine: str, features: Features) -> float:
        return features[0]


def cross_fit_learned(outcomes: Sequence[Outcome], embed: Embed) -> list[FoldRouter]:
    """As :func:`cross_fit`, by the quality model that a vehicle ships with. A prior of 0.5 means no gain.

    Errors: those of ``fit_model``.
    """
    from .outcome_sets import OutcomeSet, examples_of
    from .route_systems import cross_fit as fitted

    both = OutcomeSet("replay", "weak", "strong", tuple(outcomes))
    gains = fitted(both, examples_of([both], embed)).scores.tolist()
    priors = {outcome.id: (1.0 - gain) / 2 for outcome, gain in zip(outcomes, gains, strict=True)}
    quality, folds = ForeseenQuality(priors), [fold_of(outcome) for outcome in outcomes]
    return [
        FoldRouter(quality, tuple(sorted(priors[o.id] for o, its in zip(outcomes, folds, strict=True) if its != fold)))
        for fold in range(FOLDS)
    ]


def escalated(
    outcomes: Sequence[Outcome], routers: Sequence[FoldRouter], calls: float, engine: str = "vehicle"
) -> list[bool]:
    """Which requests the routers would send to the cloud, for ``calls`` of them, if the link were always up."""
    limits = [router.skip_below(calls) for router in routers]
    folds = [fold_of(outcome) for outcome in outcomes]
    return [
        routers[fold].quality.prior(engine, routers[fold].quality.features(request_for(outcome))) < limits[fold]
        for outcome, fold in zip(outcomes, folds, strict=True)
    ]


# ---------------------------------------------------------------- yardsticks at an equal number of calls


def by_category(outcomes: Sequence[Outcome], count: int) -> list[bool]:
    """The ``count`` requests whose category gains most, by the category's mean gain in the other folds."""
    sums: dict[tuple[str, int], tuple[float, int]] = {}
    for outcome in outcomes:
        for fold in range(FOLDS):
            if fold != fold_of(outcome):
                total, n = sums.get((outcome.category, fold), (0.0, 0))
                sums[outcome.category, fold] = (total + gain_of(outcome), n + 1)

    def score(outcome: Outcome) -> float:
        total, n = sums.get((outcome.category, fold_of(outcome)), (0.0, 1))
        return total / n

    return _best(outcomes, count, score)


def by_oracle(outcomes: Sequence[Outcome], count: int) -> list[bool]:
    return _best(outcomes, count, gain_of)


def by_chance(outcomes: Sequence[Outcome], count: int, seed: int = 0) -> list[bool]:
    chance = random.Random(seed)
    return _best(outcomes, count, lambda outcome: chance.random())


def _best(outcomes: Sequence[Outcome], count: int, score: Callable[[Outcome], float]) -> list[bool]:
    order = sorted(range(len(outcomes)), key=lambda i: score(outcomes[i]), reverse=True)
    chosen = set(order[:count])
    return [i in chosen for i in range(len(outcomes))]


def accuracy(outcomes: Sequence[Outcome], cloud: Sequence[bool]) -> list[bool]:
    """Right or wrong of each request when ``cloud`` says who answers."""
    return [o.strong_ok if called else o.weak_ok for o, called in zip(outcomes, cloud, strict=True)]
