"""Fits a quality model to recorded outcomes. Needs scikit-learn; nothing that decides imports this.

What a head learns from, it must not have seen through another part of the model: the topic probabilities of a training
request come from a discriminant fitted without it, and so does the score that its calibration is fitted on. Requests
are split by ``groups``, so that equal questions stay together.

Sources: linear discriminant with a shrunk covariance (Friedman 1989); stacking on out-of-fold predictions (Wolpert
1992); calibration of scores by a logistic curve (Platt 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codriver.core.errors import BadConfigValue, MissingExtra

from .evaluate import brier, calibration_error
from .outcome_model import Floats, Head, ModelFile, OutcomeModel, Packed, features, softmax
from .reading import READING, Reading

LEAST = 40
_PARTS = 4
_SHRINK = 0.1
_SHARPNESS = 0.7  # discriminants are too sure of themselves: their log-odds are taken by this much
_TOPIC_SCALE = 1.0
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Requests with their verdicts. ``groups``: equal numbers are equal questions; ``good``: per engine a value per
    request, 1 or 0, NaN where the engine was not asked.
    """

    readings: list[Reading]
    embeddings: Floats
    topics: list[str]
    groups: Whole
    good: Mapping[str, NDArray[np.float64]]

    def part(self, chosen: Sequence[int]) -> Examples:
        rows = np.asarray(chosen)
        return Examples(
            [self.readings[i] for i in chosen],
            self.embeddings[rows],
            [self.topics[i] for i in chosen],
            self.groups[rows],
            {name: values[rows] for name, values in self.good.items()},
        )


def fit_model(examples: Examples, embedder: str = "") -> OutcomeModel:
    """Errors: :class:`BadConfigValue` for an engine with fewer than ``LEAST`` outcomes or only one kind of them,
    :class:`MissingExtra` without scikit-learn.
    """
    _check(examples)
    forms = np.array([reading.forms for reading in examples.readings], np.float32)
    means, scales = forms.mean(axis=0), forms.std(axis=0) + np.float32(1e-3)
    rows = features((forms - means) / scales, examples.readings, examples.embeddings)
    names, topic = np.unique(examples.topics, return_inverse=True)
    parts = examples.groups % _PARTS
    seen = np.zeros((len(rows), len(names)), np.float32)
    for part in range(_PARTS):
        away = parts == part
        if away.any() and not away.all():
            weights, offsets = _discriminant(rows[~away], topic[~away], len(names))
            seen[away] = softmax(rows[away] @ weights + offsets)
    weights, offsets = _discriminant(rows, topic, len(names))
    whole = np.hstack([rows, seen * np.float32(_TOPIC_SCALE)])
    fitted = {name: _head(whole, values, parts) for name, values in examples.good.items()}
    columns = np.stack([column for column, _ in fitted.values()], axis=1)
    return OutcomeModel(
        ModelFile(
            reading=READING,
            embedder=embedder,
            dimensions=examples.embeddings.shape[1],
            form_means=[round(float(value), 6) for value in means],
            form_scales=[round(float(value), 6) for value in scales],
            topics=[str(name) for name in names],
            topic_weights=Packed.of(weights),
            topic_offsets=[round(float(value), 5) for value in offsets],
            heads={name: head for name, (_, head) in fitted.items()},
            head_weights=Packed.of(columns),
        )
    )


def _discriminant(rows: Floats, topic: Whole, count: int) -> tuple[Floats, Floats]:
    """Weights and offsets whose softmax is the probability of each topic."""
    members = np.zeros((len(rows), count), np.float32)
    members[np.arange(len(rows)), topic] = 1
    sizes = members.sum(axis=0)
    means = (members.T @ rows) / np.maximum(sizes, 1)[:, None]
    spread = rows - means[topic]
    covariance = (spread.T @ spread).astype(np.float64) / len(rows)
    diagonal = np.diag_indices_from(covariance)
    average = covariance[diagonal].mean()
    covariance *= 1 - _SHRINK
    covariance[diagonal] += _SHRINK * average + 1e-9
    weights = np.linalg.solve(covariance, means.T.astype(np.float64))
    offsets = np.log(np.maximum(sizes, 0.5) / len(rows)) - 0.5 * (means.T * weights).sum(axis=0)
    return (weights * _SHARPNESS).astype(np.float32), (offsets * _SHARPNESS).astype(np.float32)


def _head(whole: Floats, values: NDArray[np.float64], parts: Whole) -> tuple[Floats, Head]:
    """One engine's weights, and its calibration on scores made without the request they are for."""
    known = ~np.isnan(values)
    rows, good, part = whole[known], values[known], parts[known]
    scores = np.zeros(len(good))
    for away in range(_PARTS):
        test = part == away
        if test.any() and not test.all():
            weights, constant = _ridge(rows[~test], good[~test])
            scores[test] = rows[test] @ weights + constant
    slope, offset = _platt(scores, good)
    probabilities = np.zeros(len(good))
    for away in range(_PARTS):
        test = part == away
        if test.any() and not test.all():
            own_slope, own_offset = _platt(scores[~test], good[~test])
            probabilities[test] = 1 / (1 + np.exp(-(scores[test] * own_slope + own_offset)))
    weights, constant = _ridge(rows, good)
    told = Head(
        slope=slope,
        offset=offset + slope * constant,
        n=len(good),
        rate=round(float(good.mean()), 4),
        brier=round(brier(probabilities, good), 5),
        ece=round(calibration_error(probabilities, good), 5),
    )
    return weights, told


def _ridge(rows: Floats, good: NDArray[np.float64]) -> tuple[Floats, float]:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0, fit_intercept=True, solver="cholesky", copy_X=True)
    model.fit(rows, good.astype(np.float32))
    return np.asarray(model.coef_, np.float32), float(model.intercept_)


def _platt(scores: NDArray[np.float64], good: NDArray[np.float64]) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e4).fit(scores[:, None], good > 0.5)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _check(examples: Examples) -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingExtra("Training a quality model needs scikit-learn: pip install 'codriver[bench]'.") from None
    for name, values in examples.good.items():
        known = values[~np.isnan(values)]
        if len(known) < LEAST:
            raise BadConfigValue(
                f"A quality model needs at least {LEAST} outcomes of '{name}'; there are {len(known)}."
            )
        if known.min() == known.max():
            raise BadConfigValue(f"All outcomes of '{name}' are the same: there is nothing to learn from.")
