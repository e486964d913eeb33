"""Fits a quality model to recorded outcomes. Needs scikit-learn; nothing that decides imports this.

What a part learns from, it must not have seen through another part: the topic probabilities of a training request come
from a discriminant fitted without it, the opinions that trees learn from are ridges fitted without it, and calibration
uses a quarter of the requests that its trees did not see. Requests are split by ``groups``, so that equal questions
stay together.

Sources: linear discriminant with a shrunk covariance (Friedman 1989); stacking on out-of-fold predictions (Wolpert
1992); histogram gradient boosting (Ke et al. 2017); calibration of scores by a logistic curve (Platt 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codriver.core.errors import BadConfigValue, MissingExtra

from .evaluate import brier, calibration_error
from .opinions import PARTS, out_of_part
from .outcome_model import Floats, Head, ModelFile, OutcomeModel, Packed, features, tree_features
from .reading import READING, Reading
from .trees import fit_trees

LEAST = 40
_DIRECTIONS = 16
Whole = NDArray[np.int64]
Column = NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """Requests with their verdicts. ``groups``: equal numbers are equal questions; ``good``: per engine a value per
    request, 1 or 0, NaN where the engine was not asked.
    """

    readings: list[Reading]
    embeddings: Floats
    topics: list[str]
    groups: Whole
    good: Mapping[str, Column]

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
    verdicts = np.stack(list(examples.good.values()), axis=1)
    parts = examples.groups % PARTS
    found = out_of_part(rows, topic, verdicts, parts)
    directions = _main_directions(examples.embeddings)
    heads = {
        name: _head(tree_features(rows, found.opinions, number, directions), verdicts[:, number], parts)
        for number, name in enumerate(examples.good)
    }
    return OutcomeModel(
        ModelFile(
            reading=READING,
            embedder=embedder,
            dimensions=examples.embeddings.shape[1],
            form_means=_rounded(means),
            form_scales=_rounded(scales),
            topics=[str(name) for name in names],
            topic_weights=Packed.of(found.topic_weights),
            topic_offsets=_rounded(found.topic_offsets),
            opinion_weights=Packed.of(found.opinion_weights),
            opinion_offsets=_rounded(found.opinion_offsets),
            directions=Packed.of(directions),
            heads=heads,
        )
    )


def _head(seen: Floats, values: Column, parts: Whole) -> Head:
    """One engine's trees, and their calibration on the part that trees like them had not seen."""
    known = ~np.isnan(values)
    rows, good, away = seen[known], values[known], parts[known] == 0
    trees, _ = fit_trees(rows, good)
    if not away.any() or away.all() or np.unique(good[~away] > 0.5).size < 2 or np.unique(good[away] > 0.5).size < 2:
        rate = float(good.mean())
        return Head(1.0, 0.0, len(good), round(rate, 4), round(rate * (1 - rate), 5), 0.0, trees)
    _, odds = fit_trees(rows[~away], good[~away], rows[away])
    slope, offset = _platt(odds, good[away])
    told = _cross_calibrated(odds, good[away])
    return Head(
        slope=slope,
        offset=offset,
        n=len(good),
        rate=round(float(good.mean()), 4),
        brier=round(brier(told, good[away]), 5),
        ece=round(calibration_error(told, good[away]), 5),
        trees=trees,
    )


def _cross_calibrated(odds: Column, good: Column) -> Column:
    """Probabilities of each half by a curve fitted on the other."""
    told = np.zeros(len(good))
    for half in (0, 1):
        test = np.arange(len(good)) % 2 == half
        both = np.unique(good[~test] > 0.5).size == 2
        slope, offset = _platt(odds[~test], good[~test]) if both else (1.0, 0.0)
        told[test] = 1 / (1 + np.exp(-(slope * odds[test] + offset)))
    return told


def _platt(odds: Column, good: Column) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10.0).fit(odds[:, None], good > 0.5)
    # A negative slope would turn the trees' order around: too few requests to calibrate with.
    return max(0.05, float(model.coef_[0, 0])), float(model.intercept_[0])


def _main_directions(embeddings: Floats) -> Floats:
    spread = embeddings - embeddings.mean(axis=0)
    _, vectors = np.linalg.eigh((spread.T @ spread).astype(np.float64))
    found: Floats = vectors[:, ::-1][:, :_DIRECTIONS].astype(np.float16).astype(np.float32)
    return found


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


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
