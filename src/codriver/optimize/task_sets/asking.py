"""Questions asked of a file in its own llama.cpp, and what it answers.

Choices as Hendrycks et al. 2021 (arXiv:2009.03300) and lm-evaluation-harness (``mmlu``) ask: the subject, examples, the
question with its choices, "Answer:", and the letter that the model finds most likely to follow. Answers in words as
lm-evaluation-harness (``gsm8k``, version 3, "flexible-extract"; chain of thought by examples, Wei et al. 2022) asks:
greedy decoding, and the last number of what was written; where the right answer is no number, its first line. No chat
template, as there.

The rule kept: what a prompt shares with the one before it is not read again. Examples are the same for all questions
of a subject (lm-evaluation-harness draws GSM8K's anew for each), so that they are read once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from codriver.core.errors import BadConfigValue, BadModelFile

from ..evaluate import Run, refuse_odd
from ..ggml import Floats
from ..llama_runtime import Context, LlamaModel
from .questions import LETTERS, Question, TaskSet

_AT_ONCE = 512  # tokens: what is read at once bounds what llama.cpp takes for its sums
_WORKED, _SHORT = 256, 32  # tokens that are written at most: with the way to the answer, and without
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_NEXT = "Question:"


@dataclass(frozen=True)
class Answers:
    """By question of a set: what was answered (a letter, a number, words; "" for nothing), and whether that is right.
    ``shortened``: of how many questions the prompt was too long for the model, and lost examples.
    """

    given: tuple[str, ...]
    right: tuple[bool, ...]
    shortened: int = 0


def ask(file: Path, sets: Sequence[TaskSet], run: Run) -> list[Answers]:
    """Errors: those of :class:`LlamaModel`; :class:`BadConfigValue` for a question that is too long for the model;
    :class:`BadModelFile` for a vocabulary that splits the letters, or a tensor of NaN or infinity.
    """
    found = []
    of = sum(len(one.questions) for one in sets)
    with LlamaModel(file) as model:
        done = 0
        for one in sets:
            prompts = [_prompt(model, one, question) for question in one.questions]
            cells = max(len(prompt.tokens) + prompt.written for prompt in prompts)
            with model.context(min(_AT_ONCE, cells), run.threads, cache=replace(run.cache, cells=cells)) as context:
                reading = _Reading(model, context)
                given = []
                for question, prompt in zip(one.questions, prompts, strict=True):
                    given.append(_letter(reading, prompt) if question.choices else _words(reading, question, prompt))
                    done += 1
                    run.tell(done, of)
            right = tuple(_is_right(question, said) for question, said in zip(one.questions, given, strict=True))
            found.append(Answers(tuple(given), right, sum(prompt.shots < one.shots for prompt in prompts)))
    return found


# ---------------------------------------------------------------- prompts


@dataclass(frozen=True)
class _Prompt:
    """``letters``: the token that says each choice. ``written``: tokens that may follow."""

    tokens: list[int]
    letters: tuple[int, ...]
    written: int
    shots: int


def _prompt(model: LlamaModel, of: TaskSet, question: Question) -> _Prompt:
    """With fewer examples where the model has not the room for all, as Hendrycks et al. do."""
    examples = of.examples.get(question.subject, of.examples.get("", ()))
    written = 0 if question.choices else _SHORT
    if not question.choices and (any(one.working for one in examples) or _number(question.answer)):
        written = _WORKED
    for shots in range(len(examples), -1, -1):
        text = prompt_text(question, examples[:shots])
        tokens, letters = _letters(model, text, len(question.choices))
        if len(tokens) + written <= model.room:
            return _Prompt(tokens, letters, written, shots)
    raise BadConfigValue(
        f"A question of '{of.name}' takes {len(tokens) + written} tokens, and {model.file} reads {model.room}: "
        f"'{question.text[:60]}…'.",
        param="tasks",
    )


def prompt_text(question: Question, examples: Sequence[Question]) -> str:
    """What is read before the answer."""
    if not question.choices:
        return "".join(f"{_asked(one)} {_shown(one)}\n\n" for one in examples) + _asked(question)
    about = f" about {question.subject}" if question.subject else ""
    heading = f"The following are multiple choice questions (with answers){about}.\n\n"
    return heading + "".join(f"{_asked(one)} {one.answer}\n\n" for one in examples) + _asked(question)


def _asked(one: Question) -> str:
    if not one.choices:
        return f"{_NEXT} {one.text}\nAnswer:"
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, one.choices, strict=False))
    return f"{one.text}{choices}\nAnswer:"


def _shown(one: Question) -> str:
    return f"{one.working}\n#### {one.answer}" if one.working else one.answer


def _letters(model: LlamaModel, text: str, choices: int) -> tuple[list[int], tuple[int, ...]]:
    """The prompt up to where its continuations " A", " B", … part, and the token that each goes on with: a vocabulary
    may have " A" as one token, or the space apart.
    """
    if not choices:
        return [*model.begin, *model.tokens(text)], ()
    whole = [[*model.begin, *model.tokens(f"{text} {letter}")] for letter in LETTERS[:choices]]
    shared = min(_shared(whole[0], one) for one in whole[1:])
    if any(len(one) != shared + 1 for one in whole):
        raise BadModelFile(f"The vocabulary of {model.file} has no single tokens for the letters of choices.")
    return whole[0][:shared], tuple(one[-1] for one in whole)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


# ---------------------------------------------------------------- answers


class _Reading:
    """Prompts read one after the other, with what they share kept in memory."""

    def __init__(self, model: LlamaModel, context: Context) -> None:
        self.model, self._context = model, context
        self._held: list[int] = []

    def read(self, tokens: list[int]) -> Floats:
        """What follows: logits (vocabulary)."""
        kept = min(_shared(self._held, tokens), len(tokens) - 1)
        if kept:
            try:
                self._context.drop(kept, self._context.read)
            except BadModelFile:  # a recurrent memory cannot go back
                kept = 0
        for at in range(kept, len(tokens), _AT_ONCE):
            part = tokens[at : at + _AT_ONCE]
            read = self._context.more if at else self._context.logits
            found = read(part, len(part) - 1)
        self._held = list(tokens)
        return self._checked(found[-1])

    def go_on(self, token: int) -> Floats:
        self._held.append(token)
        return self._checked(self._context.more([token])[-1])

    def _checked(self, logits: Floats) -> Floats:
        if not np.isfinite(logits).all():
            refuse_odd(self.model.file)
        return logits


def _letter(reading: _Reading, prompt: _Prompt) -> str:
    logits = reading.read(prompt.tokens)
    return LETTERS[int(logits[list(prompt.letters)].argmax())]


def _words(reading: _Reading, question: Question, prompt: _Prompt) -> str:
    model, written = reading.model, b""
    logits = reading.read(prompt.tokens)
    numeric = bool(_number(question.answer))
    for at in range(prompt.written):
        token = int(logits.argmax())
        if model.ends(token):
            break
        written += model.piece(token)
        if _NEXT.encode() in written or (prompt.written == _SHORT and b"\n" in written.strip()):
            break
        if at + 1 < prompt.written:
            logits = reading.go_on(token)
    return taken(written.decode(errors="replace"), numeric)


def taken(written: str, numeric: bool) -> str:
    """The answer in what was written: its last number, or its first line."""
    said = written.split(_NEXT, maxsplit=1)[0]
    if numeric:
        found = _NUMBER.findall(said)
        return _number(found[-1]) or found[-1] if found else ""
    return _plain(said.strip().split("\n")[0])


def _number(said: str) -> str:
    """A number as it is compared: without commas, currency and a full stop; "" for what is none."""
    bare = said.strip().replace(",", "").replace("$", "").removesuffix(".")
    try:
        value = float(bare)
    except ValueError:
        return ""
    return bare if not np.isfinite(value) else f"{value:.15g}"


def _plain(words: str) -> str:
    return " ".join(words.casefold().split()).strip(" .!?\"'")


def _is_right(question: Question, said: str) -> bool:
    if question.choices:
        return said == question.answer
    return said == (_number(question.answer) or _plain(question.answer))
