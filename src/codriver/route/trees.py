"""Boosted trees: grown by scikit-learn, kept as plain arrays that NumPy walks.

The nodes are read from scikit-learn's own arrays, which its public interface does not show; a test compares every
figure with what scikit-learn itself says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .outcome_model import Floats, Packed, Trees

_ROUNDS = 300
_RATE = 0.02
_FEATURES_PER_SPLIT = 0.3  # the opinions are so alike that each split may see only some of what there is
_LEAVES = 8
_LEAST_PER_LEAF = 80


def fit_trees(rows: Floats, good: NDArray[np.float64], then: Floats | None = None) -> tuple[Trees, NDArray[np.float64]]:
    """Trees for ``good``, and their log-odds of the rows in ``then``."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=_ROUNDS,
        learning_rate=_RATE,
        max_features=_FEATURES_PER_SPLIT,
        max_leaf_nodes=_LEAVES,
        min_samples_leaf=max(5, min(_LEAST_PER_LEAF, len(rows) // 12)),
        l2_regularization=10.0,
        early_stopping=False,
        random_state=0,
    ).fit(rows, good > 0.5)
    odds = np.zeros(0) if then is None else np.asarray(model.decision_function(then), np.float64)
    return _kept(model), odds


def _kept(model: Any) -> Trees:
    roots, depth, count = [], 0, 0
    left, right, feature, threshold, value = [], [], [], [], []
    for (predictor,) in model._predictors:
        nodes = predictor.nodes
        here = np.arange(len(nodes)) + count
        leaf = nodes["is_leaf"].astype(bool)
        roots.append(count)
        left.append(np.where(leaf, here, nodes["left"].astype(np.int64) + count))
        right.append(np.where(leaf, here, nodes["right"].astype(np.int64) + count))
        feature.append(np.where(leaf, 0, nodes["feature_idx"]))
        threshold.append(np.where(leaf, 0.0, nodes["num_threshold"]))
        value.append(np.where(leaf, nodes["value"], 0.0))
        depth, count = max(depth, int(nodes["depth"].max())), count + len(nodes)
    return Trees(
        baseline=float(np.ravel(model._baseline_prediction)[0]),
        depth=depth,
        roots=Packed.of(np.array(roots), "<u2"),
        left=Packed.of(np.concatenate(left), "<u2"),
        right=Packed.of(np.concatenate(right), "<u2"),
        feature=Packed.of(np.concatenate(feature), "<u1"),
        threshold=Packed.of(np.concatenate(threshold), "<f4"),
        value=Packed.of(np.concatenate(value), "<f4"),
    )
