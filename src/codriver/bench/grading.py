"""Right or wrong, decided by code: a letter, a number, a field of a JSON object, or merely an answer.

The rule: a text that does not clearly give the right answer is wrong. Where a text names two answers, the last one
announced as the answer counts, else the first letter or the last number. An answer from a document is right when a
reference stands in it word for word, without case, marks and articles (as SQuAD compares, Rajpurkar et al. 2016); a
short limit on answers keeps that honest. Nothing here asks a model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from codriver.core.errors import BadConfigValue


class Graded(Protocol):
    """What grading needs of a work item: how to grade (a key of ``GRADES``) and the right answer, if there is one."""

    @property
    def grade(self) -> str: ...

    @property
    def answer(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Grade:
    """``correct`` is None where an answer cannot be wrong, only missing. ``why`` is a short sentence for the report."""

    correct: bool | None
    why: str


def grade(item: Graded, text: str, *, complete: bool = True) -> Grade:
    """Grade the answer ``text`` to ``item``. ``complete`` is False where the stream broke off: that is always wrong.

    Raises BadConfigValue for a way of grading that does not exist.
    """
    check = GRADES.get(item.grade)
    if check is None:
        raise BadConfigValue(f"There is no grade {item.grade!r}. Known are: {', '.join(GRADES)}.", param="grade")
    if not complete:
        return Grade(False, "broke off")
    return check(item.answer or "", text)


# ---------------------------------------------------------------- reading an answer

# A lone "a" or "A" after "the answer is" is a choice only where the sentence ends with it: "the answer is a bank".
_ANNOUNCED = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+(?:is|was|would be))?)\s*[:=]?\s*[\"'(*\[]*"
    r"([B-HJ]\b(?!')|[A-Ja-j](?=[\"')*\]]*(?:[.,:;)\]*]|\s*$)))"
)
_BARE = re.compile(r"[\s\"'(*\[]*([A-Ja-j])[\s\"').:,*\]]*")
_LEADING = re.compile(r"[\s\"'(*\[]*([A-J])[\"']?[).:,*\]]")
_BRACKETED = re.compile(r"\(([A-J])\)")
_LONE = re.compile(r"(?<![\w'-])([B-HJ])(?![\w'-])")  # not A and I, which are words

_NUMBER = re.compile(
    r"(?<![\w.])[-\u2212]?(?:[$€£]\s?)?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)
_FRACTION = re.compile(r"(?<![\w./])(-?\d+)/(\d+)(?![\d/])")
_OPERAND = re.compile(r"\d\s*[-+*/×÷x\u2212]\s*\Z")  # what stands before a number that a calculation only uses
_MARKED = re.compile(r"(?:####|\banswer\b(?:\s+is)?)\s*:?\s*", re.I)


def letter_in(text: str) -> str | None:
    """The choice a text makes, upper case: ``B``, ``b.``, ``(B) because``, ``The answer is B``, ``{"answer": "B"}``."""
    given = _json(text)
    if isinstance(given, dict):
        given = given.get("answer")
        if given is None:
            return None
    if isinstance(given, str):
        text = given
    if bare := _BARE.fullmatch(text):
        return bare[1].upper()
    if announced := _ANNOUNCED.findall(text):
        return str(announced[-1]).upper()
    if leading := _LEADING.match(text):
        return leading[1]
    found = _BRACKETED.findall(text) or _LONE.findall(text)
    return str(found[0]) if found else None


def number_in(text: str) -> float | None:
    """The number a text ends with, or the first after a mark such as ``####`` or ``answer:``. Units are ignored.

    A calculation without its result (``20 - 5``) gives no number; a plain fraction (``3/4``) gives its value.
    """
    given = _json(text)
    if isinstance(given, dict):
        given = given.get("answer")
        if given is None:
            return None
    if isinstance(given, bool):
        return None
    if isinstance(given, int | float):
        return float(given) if math.isfinite(given) else None
    if isinstance(given, str):
        text = given
    marks = list(_MARKED.finditer(text))
    if marks and (marked := _NUMBER.match(text, marks[-1].end())):
        return _value(text, marked)
    found = list(_NUMBER.finditer(text))
    return _value(text, found[-1]) if found else None


def _value(text: str, found: re.Match[str]) -> float | None:
    for fraction in _FRACTION.finditer(text):
        if fraction.start() <= found.start() < fraction.end():
            return int(fraction[1]) / int(fraction[2]) if int(fraction[2]) else None
    if _OPERAND.search(text, 0, found.start()):
        return None
    return _float(found[0])


def _float(written: str) -> float | None:
    value = float(re.sub(r"[\s,$€£]", "", written).replace("\u2212", "-"))
    return value if math.isfinite(value) else None


def _json(text: str) -> object:
    """The JSON value that the text is, with or without a code fence; None when it is none."""
    body = re.sub(r"\A\s*```(?:json)?\s*|\s*```\s*\Z", "", text)
    try:
        value: object = json.loads(body)
    except ValueError:
        return None
    return value


_ARTICLES = frozenset({"a", "an", "the"})


def plain(text: str) -> list[str]:
    """Words without case, marks and articles."""
    return [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in _ARTICLES]


def holds(text: str, answers: Sequence[str]) -> bool:
    """True when one of the answers stands in the text, word for word."""
    words = f" {' '.join(plain(text))} "
    return any(f" {' '.join(plain(answer))} " in words for answer in answers)


# ---------------------------------------------------------------- grading it

_TOLERANCE = 1e-6  # absolute: a relative one would let cents slip in large sums


def _letter(answer: str, text: str) -> Grade:
    said = letter_in(text)
    if said is None:
        return Grade(False, "no letter in the answer")
    return Grade(said == answer.upper(), f"said {said}, right is {answer.upper()}")


def _number(answer: str, text: str) -> Grade:
    said, right = number_in(text), number_in(answer)
    if right is None:
        raise BadConfigValue(f"{answer!r} is no number to grade against.", param="answer")
    if said is None:
        return Grade(False, "no number in the answer")
    close = math.isclose(said, right, rel_tol=0.0, abs_tol=_TOLERANCE)
    return Grade(close, f"said {said:g}, right is {right:g}")


def _domain(answer: str, text: str) -> Grade:
    given = _json(text)
    if not isinstance(given, dict):
        return Grade(False, "not a JSON object")
    said = given.get("domain")
    if not isinstance(said, str):
        return Grade(False, "no domain in the object")
    return Grade(said == answer, f"said {said}, right is {answer}")


def _reference(answer: str, text: str) -> Grade:
    """``answer`` has a reference on each line; any of them is right."""
    references = answer.split("\n")
    return Grade(holds(text, references), f"right is {references[0]}")


def _answered(answer: str, text: str) -> Grade:
    if not any(character.isalnum() for character in text):
        return Grade(False, "empty")
    return Grade(None, "answered")


GRADES: dict[str, Callable[[str, str], Grade]] = {
    "letter": _letter,
    "number": _number,
    "domain": _domain,
    "reference": _reference,
    "answered": _answered,
}
"""Ways of grading. ``answered`` cannot tell right from wrong, only something from nothing."""
