"""Documents cut into passages, the passages scored against a question by their words, and the best of them chosen.

A passage is a slice of its document: sentences up to about 90 words, with the heading they stand under. Scores by words
are BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009) with its usual
constants. Nothing here writes text: what is chosen stands in its document as it is. Pure functions; limits: headings
are told by ``#`` or by being short lines that end without a mark, and only words of scripts that put spaces between
words are told apart. Rule: the same documents and question give the same passages.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_LEAST_WORDS, _FULL_WORDS, _MOST_WORDS = 60, 90, 120
_MOST_CHARS = 900
# A sentence does not end before a digit: what an abbreviation announces (a number, a date) stays with it.
_ENDS = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[^\d\s])|[。！？]")
_WORD = re.compile(r"[^\W_]+")
_GAP = re.compile(r"\s+")
_MARKS = '.!?…。！？"”)'
_HEADING_CHARS = 80
_K1, _B = 1.2, 0.75
# Words are told apart by their beginnings, so that "charging" finds "charge": no language is assumed.
_STEM_CHARS = 6
GAP = "[...]"
# Share of the best score below which a passage is not worth its tokens.
LEAST_SHARE = 0.2
# So few tokens hold no passage worth looking for.
_NO_ROOM = 16


@dataclass(frozen=True, slots=True)
class _Unit:
    """A sentence or a line; ``opens``: it is the first of a paragraph."""

    start: int
    end: int
    heading: bool
    opens: bool


@dataclass(frozen=True, slots=True)
class Passage:
    """``document[start:end]``; ``heading`` is what it stands under, where it does not itself begin with it. ``words``:
    how often each stands in it, ``count`` all of them. ``key`` is a digest of ``said``.
    """

    start: int
    end: int
    text: str
    heading: str
    words: Mapping[str, int]
    count: int
    key: bytes

    @property
    def said(self) -> str:
        """The text under its heading."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text

    @property
    def tokens(self) -> int:
        """An estimate, with what marks a gap and a heading that has to be said again."""
        return tokens_of(self.text) + tokens_of(self.heading) + 3


def tokens_of(text: str) -> int:
    """About four bytes to a token."""
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def words_of(text: str) -> list[str]:
    return [sys.intern(word[:_STEM_CHARS]) for word in _WORD.findall(text.lower())]


# ---------------------------------------------------------------- cutting


def cut(document: str) -> list[Passage]:
    """The passages of a document in its order; together they hold all of it but white space."""
    made: list[Passage] = []
    start = end = words = 0
    heading = above = ""  # the last one seen, and the one that the open passage stands under
    bare = True  # the open passage holds nothing but headings
    for unit in _units(document):
        count = len(document[unit.start : unit.end].split())
        over = words + count > _MOST_WORDS or unit.end - start > _MOST_CHARS
        # A passage ends where a section begins, and else at the end of a sentence; sooner where a paragraph ends too.
        full = words >= _LEAST_WORDS if unit.opens else words >= _FULL_WORDS and document[end - 1] in _MARKS
        if not bare and (unit.heading or full or over):
            made.append(_passage(document, start, end, above))
            words, bare = 0, True
        if not words:
            start, above = unit.start, "" if unit.heading else heading
        if unit.heading:
            heading = document[unit.start : unit.end]
        words, end, bare = words + count, unit.end, bare and unit.heading
    if words:
        made.append(_passage(document, start, end, above))
    return made


def _passage(document: str, start: int, end: int, heading: str) -> Passage:
    text = document[start:end]
    words = words_of(f"{heading} {text}")
    return Passage(start, end, text, heading, Counter(words), len(words), digest(f"{heading}\n{text}"))


def _units(document: str) -> Iterator[_Unit]:
    """Sentences, or lines where there are none."""
    at, opens = 0, True
    for line in document.split("\n"):
        text = line.strip()
        begin = at + line.find(text[:1])
        at += len(line) + 1
        if not text:
            opens = True
        elif _is_heading(text, opens and document[at : at + 1] in ("\n", "\r")):
            yield _Unit(begin, begin + len(text), True, True)
            opens = False
        else:
            for start, end in _sentences(document, begin, begin + len(text)):
                yield _Unit(start, end, False, opens)
                opens = False


def _is_heading(text: str, alone: bool) -> bool:
    short = len(text) <= _HEADING_CHARS
    return short and (text[0] == "#" or (alone and text[0].isalnum() and text[-1] not in _MARKS + ",;:"))


def _sentences(document: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    for match in _ENDS.finditer(document, begin, end):
        yield from _pieces(document, begin, match.start() + len(match[0].rstrip()))
        begin = match.end()
    yield from _pieces(document, begin, end)


def _pieces(document: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence in parts that fit into a passage, cut between words where it has any."""
    while start < end:
        stop = min(end, start + _MOST_CHARS)
        gaps = [gap.start() for gap in _GAP.finditer(document, start, stop)]
        if len(gaps) >= _MOST_WORDS:
            stop = gaps[_MOST_WORDS - 1]
        elif stop < end and gaps:
            stop = gaps[-1]
        yield start, stop
        after = _GAP.match(document, stop, end)
        start = after.end() if after is not None else stop


# ---------------------------------------------------------------- scoring


def by_words(passages: Sequence[Passage], question: str) -> list[float]:
    """BM25 per passage, as a share of what a passage full of the question's words would have: 0.0 to 1.0, and small
    where no telling word of the question stands anywhere.
    """
    scores = [0.0] * len(passages)
    if not passages:
        return scores
    mean = sum(passage.count for passage in passages) / len(passages) or 1.0
    most = 0.0
    for word in sorted(set(words_of(question))):
        holding = [(at, passage.words[word]) for at, passage in enumerate(passages) if word in passage.words]
        rarity = math.log(1 + (len(passages) - len(holding) + 0.5) / (len(holding) + 0.5))
        most += rarity * (_K1 + 1)
        for at, often in holding:
            scores[at] += rarity * often * (_K1 + 1) / (often + _K1 * (1 - _B + _B * passages[at].count / mean))
    return [score / most for score in scores] if most else scores


# ---------------------------------------------------------------- choosing


def choose(passages: Sequence[Passage], scores: Sequence[float], budget_tokens: int) -> list[int]:
    """The best passages that fit together into the budget, in the order of their documents; one at least. Left out are
    a passage with the same words as one chosen, and those far worse than the best, though there be room.
    """
    chosen: list[int] = []
    least = LEAST_SHARE * max(scores, default=0.0)
    told: set[frozenset[str]] = set()
    left = budget_tokens
    for at in sorted(range(len(passages)), key=lambda at: (-scores[at], at)):
        passage = passages[at]
        same = frozenset(passage.words)
        if scores[at] < least:
            break
        if same in told or (passage.tokens > left and chosen):
            continue
        told.add(same)
        chosen.append(at)
        left -= passage.tokens
        if left < _NO_ROOM:
            break
    return sorted(chosen)


def written(passages: Sequence[Passage], numbers: Sequence[int], chosen: Sequence[int]) -> str:
    """The chosen passages under the numbers of their documents, with ``[...]`` where something was left out."""
    lines: list[str] = []
    for place, at in enumerate(chosen):
        number, passage = numbers[at], passages[at]
        before = chosen[place - 1] if place else -1
        if before < 0 or numbers[before] != number:
            lines.append(f"Document {number + 1}:")
        if at and before != at - 1 and numbers[at - 1] == number:
            lines.append(GAP)
        if passage.heading and before != at - 1:
            lines.append(passage.heading)
        lines.append(passage.text)
        after = chosen[place + 1] if place + 1 < len(chosen) else -1
        last = after < 0 or numbers[after] != number
        if last and at + 1 < len(passages) and numbers[at + 1] == number:
            lines.append(GAP)
    return "\n".join(lines)
