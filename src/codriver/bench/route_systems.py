"""The routers that the route bench compares: each gives every question a score for calling the strong model, learned on
the other folds, and nothing of the question's own outcome.

Scores are compared within a fold only: a fold's mean is set by the other folds, so that across folds even a constant
would seem to know something.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codriver.route.evaluate import Ranking, brier, calibration_error
from codriver.route.fit import Examples, fit_model

from .folds import FOLDS
from .outcome_sets import OutcomeSet

Floats = NDArray[np.float64]
NEIGHBOURS = 100


@dataclass(frozen=True)
class CrossFit:
    """``weak`` and ``strong``: probability of a good answer per question, by a model that did not see it."""

    weak: Floats
    strong: Floats

    @property
    def scores(self) -> Floats:
        return self.strong - self.weak


def cross_fit(each: OutcomeSet, examples: Examples, embedder: str = "") -> CrossFit:
    """The quality model, fitted per fold on the four others."""
    folds = each.folds()
    weak, strong = np.zeros(len(folds)), np.zeros(len(folds))
    for fold in range(FOLDS):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        model = fit_model(examples.part(train.tolist()), embedder)
        part = examples.part(test.tolist())
        judged = model.judge(model.rows(part.readings, part.embeddings))
        names = list(model.file.heads)
        weak[test], strong[test] = judged[:, names.index(each.weak)], judged[:, names.index(each.strong)]
    return CrossFit(weak, strong)


def category_mean(each: OutcomeSet) -> Floats:
    """The mean gain of the question's category in the other folds; all questions', for a category not seen there."""
    folds, gains = each.folds(), each.gains()
    names, category = np.unique(each.categories(), return_inverse=True)
    scores = np.zeros(len(gains))
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        count = np.bincount(category[train], minlength=len(names))
        total = np.bincount(category[train], weights=gains[train], minlength=len(names))
        means = np.where(count > 0, total / np.maximum(count, 1), gains[train].mean())
        scores[test] = means[category[test]]
    return scores


def nearest(each: OutcomeSet, embeddings: NDArray[np.float32], count: int = NEIGHBOURS) -> Floats:
    """The mean gain of the nearest questions of the other folds, by cosine of the embeddings."""
    folds, gains = each.folds(), each.gains()
    scores = np.zeros(len(gains))
    for fold in range(FOLDS):
        train = np.flatnonzero(folds != fold)
        kept = min(count, len(train) - 1)
        for rows in np.array_split(np.flatnonzero(folds == fold), 8):
            near = np.argpartition(-(embeddings[rows] @ embeddings[train].T), kept, axis=1)[:, :kept]
            scores[rows] = gains[train][near].mean(axis=1)
    return scores


def within_folds(scores: Floats, folds: NDArray[np.int64]) -> Floats:
    """Scores as ranks from 0 to 1 within their fold; equal scores share their mean rank."""
    ranks = np.zeros(len(scores))
    for fold in np.unique(folds):
        here = folds == fold
        _, level, count = np.unique(scores[here], return_inverse=True, return_counts=True)
        ranks[here] = (np.cumsum(count) - count / 2)[level] / here.sum()
    return ranks


def ranking(each: OutcomeSet, scores: Floats) -> Ranking:
    return Ranking(within_folds(scores, each.folds()), each.gains())


def fit_figures(probabilities: Floats, good: Floats) -> dict[str, float]:
    """Calibration of one engine's probabilities, beside the Brier score of always saying the base rate."""
    rate = float(good.mean())
    return {
        "ece": calibration_error(probabilities, good),
        "brier": brier(probabilities, good),
        "brier_base_rate": rate * (1 - rate),
    }
