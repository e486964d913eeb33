"""What answers say: accuracy with its interval and chance beside it, and against a reference paired by question.

Two files may have the same accuracy and answer differently: the share of answers that turned from right to wrong or
back ("flips", Dutta et al. 2024, arXiv:2407.09141) tells more with few questions. Intervals: of a share
Wilson's (1927), of a change Agresti and Min's (2005) for matched pairs; whether a change is more than chance:
McNemar's exact test (1947).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from codriver.core.artifact import Measured

from .asking import Answers
from .questions import TaskSet

_Z = 1.959964


@dataclass(frozen=True)
class Change:
    """Against the reference, question by question. ``lost``: right there and wrong here; ``won``: the other way.
    ``same``: equal answers, right or wrong. ``p``: of McNemar's exact test, two-sided.
    """

    n: int
    lost: int
    won: int
    same: int

    @property
    def value(self) -> float:
        return (self.won - self.lost) / self.n

    @property
    def flips(self) -> float:
        return (self.won + self.lost) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wald's, with half an observation added to each of the four cells."""
        n, lost, won = self.n + 2, self.lost + 0.5, self.won + 0.5
        middle = (won - lost) / n
        around = _Z * math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / n)) / n
        return max(-1.0, middle - around), min(1.0, middle + around)

    @property
    def p(self) -> float:
        turned = self.lost + self.won
        tail = sum(math.comb(turned, at) for at in range(min(self.lost, self.won) + 1))
        return min(1.0, 2.0 * tail / float(2**turned))


def changed(here: Answers, there: Answers) -> Change:
    pairs = list(zip(there.right, here.right, strict=True))
    same = sum(a == b for a, b in zip(there.given, here.given, strict=True))
    return Change(len(pairs), pairs.count((True, False)), pairs.count((False, True)), same)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of ``hits`` out of ``n``."""
    share, z2 = hits / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    around = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - around), min(1.0, middle + around)


def card_of(of: TaskSet, here: Answers, there: Answers | None) -> list[Measured]:
    """Rows ``NAME``, and with a reference ``NAME_change``, ``NAME_flips`` and ``NAME_same``, as a card has them."""
    n = len(here.right)
    rows = [_share(of.name, sum(here.right), n, _how(of, here))]
    if there is None:
        return rows
    change = changed(here, there)
    before = sum(there.right) / n
    note = (
        f"the reference has {before:.4g}; {change.lost} turned wrong, {change.won} right; "
        f"McNemar's exact p = {change.p:.3g}"
    )
    rows.append(Measured(f"{of.name}_change", change.value, "share", n, *change.interval, note))
    rows.append(_share(f"{of.name}_flips", change.lost + change.won, n, "right or wrong other than the reference"))
    rows.append(_share(f"{of.name}_same", change.same, n, "the reference's own answer, right or wrong"))
    return rows


def _share(metric: str, hits: int, n: int, note: str) -> Measured:
    return Measured(metric, hits / n, "share", n, *wilson(hits, n), note)


def _how(of: TaskSet, answers: Answers) -> str:
    subjects = len({one.subject for one in of.questions})
    parts = [
        f"chance {of.chance:.3g}",
        f"{of.shots} examples",
        "by letter" if of.questions[0].choices else "as written",
        f"{len(of.questions)} of {of.whole} questions" + (f" in {subjects} subjects" if subjects > 1 else ""),
        f"seed {of.seed}",
    ]
    if answers.shortened:
        parts.append(f"{answers.shortened} with fewer examples, for room")
    return ", ".join(parts)
