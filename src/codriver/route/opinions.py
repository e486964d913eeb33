"""The linear half of fitting a quality model: topics, and the first opinions that trees are grown on.

All of it comes from sums over parts of the requests, so that leaving one part out costs a subtraction. The rule kept:
what :func:`out_of_part` gives for a request was fitted on the other parts alone; the weights it gives, for requests yet
to come, on all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .outcome_model import SHARED, TOPIC_SCALE, Floats, softmax

PARTS = 4
PENALTIES = (30.0, 100.0)
_SHRINK = 0.1
_SHARPNESS = 0.7  # discriminants are too sure of themselves: their log-odds are taken by this much
_TOPIC_PRIOR = 20.0  # requests that a topic's mean is drawn to the overall mean by
Matrix = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """``opinions``: ``SHARED`` columns of all engines, then of each, for the training requests, out of part."""

    topic_weights: Floats
    topic_offsets: Floats
    opinion_weights: Floats
    opinion_offsets: Floats
    opinions: Floats


def out_of_part(rows: Floats, topic: Whole, verdicts: Matrix, parts: Whole) -> Found:
    """``verdicts``: a column per engine, NaN where it was not asked."""
    topics = _Topics(rows, topic, parts)
    seen = np.zeros((len(rows), topics.count), np.float32)
    for part in range(PARTS):
        here = parts == part
        if here.any() and not here.all():
            weights, offsets = topics.without(part)
            seen[here] = softmax(rows[here] @ weights + offsets)
    topic_weights, topic_offsets = topics.without(None)
    whole = np.hstack([rows, seen * TOPIC_SCALE])
    common = np.nanmean(verdicts, axis=1)
    targets = [common, *(column - common for column in verdicts.T)]
    told = [_opinions(whole, seen, target, parts) for target in targets]
    return Found(
        topic_weights,
        topic_offsets,
        opinion_weights=np.hstack([weights for weights, _, _ in told]),
        opinion_offsets=np.concatenate([offsets for _, offsets, _ in told]),
        opinions=np.hstack([given for _, _, given in told]),
    )


class _Topics:
    """Sums per part for a linear discriminant."""

    def __init__(self, rows: Floats, topic: Whole, parts: Whole) -> None:
        self.count = int(topic.max()) + 1
        self._squares, self._sums, self._sizes = [], [], []
        for part in range(PARTS):
            here = parts == part
            mine, members = rows[here], np.zeros((int(here.sum()), self.count), np.float32)
            members[np.arange(len(mine)), topic[here]] = 1
            self._squares.append((mine.T @ mine).astype(np.float64))
            self._sums.append((members.T @ mine).astype(np.float64))
            self._sizes.append(members.sum(axis=0).astype(np.float64))

    def without(self, part: int | None) -> tuple[Floats, Floats]:
        """Weights and offsets whose softmax is the probability of each topic."""
        kept = [number for number in range(PARTS) if number != part]
        squares = np.sum([self._squares[number] for number in kept], axis=0)
        sums = np.sum([self._sums[number] for number in kept], axis=0)
        sizes = np.sum([self._sizes[number] for number in kept], axis=0)
        means = sums / np.maximum(sizes, 1)[:, None]
        covariance = (squares - means.T @ (sizes[:, None] * means)) / sizes.sum()
        diagonal = np.diag_indices_from(covariance)
        average = covariance[diagonal].mean()
        covariance *= 1 - _SHRINK
        covariance[diagonal] += _SHRINK * average + 1e-9
        weights = np.linalg.solve(covariance, means.T)
        offsets = np.log(np.maximum(sizes, 0.5) / sizes.sum()) - 0.5 * (means.T * weights).sum(axis=0)
        sharp_weights: Floats = (weights * _SHARPNESS).astype(np.float16).astype(np.float32)
        return sharp_weights, (offsets * _SHARPNESS).astype(np.float32)


def _opinions(whole: Floats, seen: Floats, target: Matrix, parts: Whole) -> tuple[Floats, Floats, Floats]:
    """Of one target: weights and offsets on all known requests, and what those without its part say of each."""
    known = ~np.isnan(target)
    given = np.zeros((len(whole), SHARED), np.float32)
    sums = [_sums(whole[known & (parts == part)], target[known & (parts == part)]) for part in range(PARTS)]
    for part in range(PARTS):
        here = parts == part
        fit = known & ~here
        if here.any() and fit.any():
            weights, offsets = _solved(
                [each for number, each in enumerate(sums) if number != part], seen[fit], target[fit]
            )
            given[here] = whole[here] @ weights + offsets
    weights, offsets = _solved(sums, seen[known], target[known])
    return weights, offsets, given


def _sums(rows: Floats, target: Matrix) -> tuple[Matrix, Matrix, Matrix, float, int]:
    aimed = target.astype(np.float32)
    squares = (rows.T @ rows).astype(np.float64)
    return (
        squares,
        (rows.T @ aimed).astype(np.float64),
        rows.sum(axis=0, dtype=np.float64),
        float(target.sum()),
        len(rows),
    )


def _solved(
    sums: list[tuple[Matrix, Matrix, Matrix, float, int]], seen: Floats, target: Matrix
) -> tuple[Floats, Floats]:
    """Ridge weights of each penalty, and the topics' means; columns in the order of ``SHARED``."""
    count = sum(each[4] for each in sums)
    mean_row = np.sum([each[2] for each in sums], axis=0) / count
    mean = sum(each[3] for each in sums) / count
    squares = np.sum([each[0] for each in sums], axis=0) - count * np.outer(mean_row, mean_row)
    crossed = np.sum([each[1] for each in sums], axis=0) - count * mean_row * mean
    diagonal = np.diag_indices_from(squares)
    columns = []
    for penalty in PENALTIES:
        raised = squares.copy()
        raised[diagonal] += penalty
        columns.append(np.linalg.solve(raised, crossed))
    by_topic = (seen.T @ (target - mean)) / (seen.sum(axis=0) + _TOPIC_PRIOR)
    columns.append(np.concatenate([np.zeros(len(mean_row) - seen.shape[1]), by_topic / TOPIC_SCALE]))
    offsets = [mean - float(mean_row @ column) for column in columns[:-1]] + [mean]
    weights: Floats = np.stack(columns, axis=1).astype(np.float16).astype(np.float32)
    return weights, np.array(offsets, np.float32)
