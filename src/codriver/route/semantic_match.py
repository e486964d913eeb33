"""Which route a sentence belongs to: its cosine to the middle of each route's examples, with a threshold per route
and a margin.

A route's score is the sentence's cosine to the sum of the route's example vectors, or to one example where it nearly
repeats it. The route with the highest score wins, if that is at least the route's own threshold and ``margin`` above
the next route's; otherwise no route does. The threshold is calibrated by leave-one-out: where the examples of the
route, each scored against the rest, part best (in balanced accuracy) from everybody else's examples. Sentences of
``other`` take part as a route that never wins. Needs NumPy, which comes with the embedder. Rule: one sentence and one
file give one answer, whatever came before.

Source: nearest class mean (Mensink et al. 2013). On the examples shipped, each left out in turn, it is right more often
than the mean of the nearest one to eight examples, and within two points of ridge regression, which needs more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from codriver.core.errors import MissingExtra

from .semantic_file import KEY, RoutesFile

Floats = Any  # a NumPy array of float32; the extra may be missing where only types are read
# From this cosine on two sentences say nearly the same: the one example counts for more than the middle of all.
_REPEATS = 0.85
# No route takes a sentence that is farther from it than this: unrelated sentences come near it.
_LEAST_THRESHOLD = 0.25
# A route that is no farther than this behind the best one still counts for privacy.
_NEAR = 0.1
_OTHER = ""


class Match(msgspec.Struct, frozen=True):
    """``route`` is ``None`` where no route is sure. ``best`` is the route with the highest ``score``, ``next_score``
    that of the one after it, ``why`` the reason for the verdict in a few words. ``contenders`` are the routes that it
    might be as well: at least at their own threshold and not far behind the best.
    """

    route: str | None
    best: str
    score: float
    next_score: float
    why: str
    contenders: tuple[str, ...] = ()
    scores: dict[str, float] = {}


class Matcher:
    """The rules of one file with the vectors of their examples; ``thresholds`` by route."""

    def __init__(self, rules: RoutesFile, vectors: Mapping[str, Sequence[float]]) -> None:
        np = self._np = numpy()
        groups = {name: rule.examples for name, rule in rules.route.items()}
        if rules.other:
            groups[_OTHER] = rules.other
        self._names = list(groups)
        self.texts = [text for group in groups.values() for text in group]
        self.owners = [at for at, group in enumerate(groups.values()) for _ in group]
        self._starts = [self.owners.index(at) for at in range(len(groups))]
        self._matrix = np.asarray([vectors[text] for text in self.texts], np.float32)
        self._sums = np.add.reduceat(self._matrix, self._starts)
        self._norms = np.linalg.norm(self._sums, axis=1)
        self._margin = rules.margin
        self.left_out = self._leave_one_out()
        given = {name: rule.threshold for name, rule in rules.route.items()}
        self.thresholds = {
            name: own if own is not None else self._calibrated(at)
            for at, name in enumerate(self._names)
            if name != _OTHER
            for own in (given[name],)
        }

    @property
    def names(self) -> list[str]:
        """The routes, and last an empty name where the file has sentences for no route."""
        return self._names

    def match(self, vector: Sequence[float]) -> Match:
        """The verdict on a sentence by its unit vector."""
        return self.judge(self._scores(self._np.asarray(vector, self._np.float32)))

    def judge(self, scores: Floats) -> Match:
        """The verdict on one score per route."""
        order = self._np.argsort(-scores)
        best, score = self._names[order[0]], float(scores[order[0]])
        after = float(scores[order[1]]) if len(order) > 1 else -1.0
        route, why = best or None, "matched"
        if best == _OTHER:
            why = "nearest to the sentences that no route takes"
        elif score < self.thresholds[best]:
            route, why = None, f"below the route's threshold {self.thresholds[best]:.2f}"
        elif score - after < self._margin:
            route, why = None, f"less than {self._margin:.2f} before the next route"
        told = {name or "(no route)": round(float(scores[at]), 4) for at, name in enumerate(self._names)}
        near = [name for name, least in self.thresholds.items() if told[name] >= max(least, score - _NEAR)]
        return Match(route, best, score, after, why, tuple(near), told)

    def _scores(self, vector: Floats, without: int = -1) -> Floats:
        """One score per route; ``without`` is the example that is left out."""
        np = self._np
        cosines = self._matrix @ vector
        sums, norms = self._sums, self._norms
        if without >= 0:
            cosines[without] = -1.0
            sums = sums.copy()
            sums[self.owners[without]] -= self._matrix[without]
            norms = np.linalg.norm(sums, axis=1)
        scores = (sums @ vector) / np.maximum(norms, 1e-9)
        nearest = np.maximum.reduceat(cosines, self._starts)
        return np.where(nearest >= _REPEATS, np.maximum(nearest, scores), scores)

    def _leave_one_out(self) -> Floats:
        """Examples by routes: each example's score on every route, itself left out."""
        rows = [self._scores(vector, at) for at, vector in enumerate(self._matrix)]
        return self._np.asarray(rows)

    def _calibrated(self, route: int) -> float:
        """The middle of the widest gap between scores at which balanced accuracy is best."""
        np = self._np
        mine = np.asarray(self.owners) == route
        scores = self.left_out[:, route]
        if mine.all():
            return max(_LEAST_THRESHOLD, float(scores.min()))
        cuts = np.unique(scores)
        middles = (cuts[1:] + cuts[:-1]) / 2
        kept = (scores[mine][None, :] >= middles[:, None]).mean(axis=1)
        refused = (scores[~mine][None, :] < middles[:, None]).mean(axis=1)
        worth = kept + refused
        ties = np.flatnonzero(worth >= worth.max() - 1e-9)
        at = ties[np.argmax((cuts[1:] - cuts[:-1])[ties])]
        return max(_LEAST_THRESHOLD, float(middles[at]))


def numpy() -> Any:
    """NumPy. Errors: :class:`MissingExtra`."""
    try:
        import numpy as found
    except ImportError:
        raise MissingExtra("Semantic routes need NumPy: pip install 'codriver[onnx]'.", param=KEY) from None
    return found
