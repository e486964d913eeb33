"""A set of questions with known answers, and the subset of it that is asked.

The rule kept: which questions are asked follows from the seed and the questions alone, never from the order of a file
or a Python's own random numbers, so that two files of a model are always asked the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from codriver.core.errors import BadConfigValue

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Question:
    """With ``choices`` the right ``answer`` is a letter; without, a number or words. ``working``: the way to the
    answer, which an example shows before it.
    """

    text: str
    answer: str
    choices: tuple[str, ...] = ()
    subject: str = ""
    working: str = ""

    def key(self, seed: int) -> str:
        said = "\0".join((str(seed), self.subject, self.text, *self.choices))
        return hashlib.sha256(said.encode()).hexdigest()


@dataclass(frozen=True)
class TaskSet:
    """``examples``: by subject, shown before each of its questions; ``shots`` of them at most. ``whole``: how many
    questions the set has that this is a part of. ``seed``: what drew it.
    """

    name: str
    questions: tuple[Question, ...]
    examples: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    shots: int = 0
    whole: int = 0
    seed: int = 0

    @property
    def chance(self) -> float:
        """What blind choice gets: the mean of one over the number of choices; 0 for answers in words."""
        found = [1 / len(one.choices) for one in self.questions if one.choices]
        return sum(found) / len(self.questions)


@dataclass(frozen=True)
class Draw:
    """How a set is asked. ``questions``: so many of them, 0 for all. ``shots``: examples before each; ``None`` for five
    where the set brings examples along, else none.
    """

    questions: int = 100
    shots: int | None = None
    seed: int = 0


def drawn(name: str, questions: Sequence[Question], given: Mapping[str, Sequence[Question]], draw: Draw) -> TaskSet:
    """``given``: examples by subject ("" for all); where a set has none and ``draw`` wants some, they are drawn from
    the set itself, and not asked. Errors: :class:`BadConfigValue` for fewer examples than wanted, or no questions.
    """
    shots = draw.shots if draw.shots is not None else 5 if given else 0
    ordered = sorted(questions, key=lambda one: (one.subject, one.key(draw.seed)))
    examples = {subject: tuple(of[:shots]) for subject, of in given.items()}
    if shots and not given:
        first = sorted(ordered, key=lambda one: one.key(draw.seed))[:shots]
        ordered = [one for one in ordered if one not in first]
        examples = {"": tuple(first)}
    if not ordered:
        raise BadConfigValue(f"The task set '{name}' has no question to ask besides its examples.", param="tasks")
    for subject in sorted({one.subject for one in ordered}):
        found = len(examples.get(subject, examples.get("", ())))
        if found < shots:
            of = f" on '{subject}'" if subject else ""
            raise BadConfigValue(f"The task set '{name}' has {found} examples{of}, not {shots}.", param="shots")
    picked = _systematic(ordered, draw.questions or len(ordered))
    return TaskSet(name, tuple(picked), examples if shots else {}, shots, len(ordered), draw.seed)


def _systematic(ordered: Sequence[Question], count: int) -> list[Question]:
    """Every (N / ``count``)th, from the middle of the first step: each subject has its share, to within one question
    (systematic sampling of a list in strata; Madow and Madow 1944).
    """
    count = min(count, len(ordered))
    return [ordered[(2 * at + 1) * len(ordered) // (2 * count)] for at in range(count)]
