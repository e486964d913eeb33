"""What a request looks like as numbers, cheaply: figures of its form, its words hashed, and the start that is embedded.

Pure Python without NumPy; tens of microseconds for a question of a hundred words. The rule kept: training and deciding
read through these functions and no others, and ``READING`` is raised whenever one of them changes its meaning.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass

from codriver.core.messages import ChatRequest

from .words import Slots, parts, runs

READING = 1
BUCKETS = 512
_LONG = 8
_MOST_CHARS = 2400
# Tokens of the sentence embedder, by estimate: it takes 3 ms, and 0.2 ms more for each, on one core.
_EMBEDDED_TOKENS = 24
_PIECE = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_OPTION = re.compile(r"(?m)^\s*\(?[A-J][.)]\s+(.*)$")
_MATHS = "∫∑√π≤≥×÷°"
_MATHS_BYTES = b"=+^*/\\<>|{}$"
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_CAPITALS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ASKS, _TURNS, _STEPS = range(3)
_TELLING = {
    **dict.fromkeys(("what", "which", "who", "when", "where", "why", "how"), _ASKS),
    **dict.fromkeys(
        ("not", "except", "least", "most", "best", "false", "incorrect", "never", "without", "unless"), _TURNS
    ),
    **dict.fromkeys(
        ("each", "every", "per", "total", "remaining", "left", "twice", "half", "third", "if", "then", "percent"),
        _STEPS,
    ),
}
_THAN = re.compile(r"\b(?:more|less) than\b")

FORMS = (
    "length", "stem_length", "words", "sentences", "digits", "numbers", "largest_number", "maths", "options",
    "option_length", "option_numbers", "option_spread", "long_words", "word_length", "capitals", "asks", "turns",
    "steps", "blank", "quotes", "commas", "lines", "code", "schema", "tools", "statements", "question_marks",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """``stem``: the question without its options; ``forms``: one number per name in ``FORMS``; ``words``: bucket →
    weight, of unit length together.
    """

    stem: str
    forms: tuple[float, ...]
    words: dict[int, float]

    @property
    def start(self) -> str:
        """What the sentence embedder reads."""
        return _start(self.stem.strip())


def asked(request: ChatRequest) -> str:
    """The last message of the user, or the prompt of a completion."""
    for message in reversed(request.messages):
        if message.role == "user":
            return message.text()
    return request.prompt or ""


def read(request: ChatRequest) -> Reading:
    schema = request.response_format
    return read_text(asked(request), schema is not None and schema.type != "text", bool(request.tools))


def read_text(text: str, schema: bool = False, tools: bool = False) -> Reading:
    text = text[:_MOST_CHARS].removesuffix("\nAnswer:")
    marked = list(_OPTION.finditer(text))
    options = [match[1] for match in marked]
    stem = text[: marked[0].start()] if len(marked) >= 2 else text
    lower = stem.lower()
    asking = runs(lower)
    # An option begins on a line of its own, so that no word is cut here.
    words = parts(asking + runs(text[len(stem) :].lower()))
    numbers = [word for word in words if word.isdecimal()]
    letters = [word for word in words if not word.isdecimal()] if numbers else words
    counted = max(1, len(words))
    told = [_TELLING[run] for run in asking if run in _TELLING]
    sizes = list(map(len, letters))
    lengths = [len(option) for option in options] or [0]
    mean = sum(lengths) / len(lengths)
    forms = (
        math.log1p(len(text)),
        math.log1p(len(stem)),
        math.log1p(len(words)),
        math.log1p(len(_SENTENCE.findall(stem))),
        sum(map(len, numbers)) / max(1, len(text)) * 10,
        math.log1p(len(numbers)),
        math.log1p(max((float(number[:9]) for number in numbers), default=0.0)) / 5,
        math.log1p(_count(text, _MATHS_BYTES, _MATHS)),
        len(options) / 5,
        math.log1p(mean),
        sum(map(_has_digit, options)) / max(1, len(options)),
        math.log1p(max(lengths) - min(lengths)),
        sum(map(_LONG.__lt__, sizes)) / counted * 4,
        sum(sizes) / max(1, len(letters)) / 5,
        (_count(stem, _CAPITALS) if stem.isascii() else sum(map(str.isupper, stem))) / max(1, len(stem)) * 10,
        math.log1p(told.count(_ASKS)),
        math.log1p(told.count(_TURNS)),
        math.log1p(told.count(_STEPS) + (len(_THAN.findall(lower)) if " than" in lower else 0)),
        float("__" in stem),
        math.log1p(stem.count('"') + stem.count("“")),
        math.log1p(stem.count(",")),
        math.log1p(stem.count("\n")),
        float("def " in stem or "();" in stem or "```" in stem),
        float(schema),
        float(tools),
        float("statement" in lower),
        math.log1p(stem.count("?")),
    )
    return Reading(stem, forms, _hashed(words))


def _count(text: str, ascii: bytes, others: str = "") -> int:
    """How often one of the characters is in it. (Bytes of other characters are above ASCII's in UTF-8.)"""
    data = text.encode(errors="surrogatepass")
    found = len(data) - len(data.translate(None, ascii))
    return found if text.isascii() else found + sum(map(text.count, others))


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def _start(text: str) -> str:
    """As much of ``text`` as the embedder may read in its time."""
    spent = 0.0
    for piece in _PIECE.finditer(text):
        spent += 1.0 + (len(piece[0]) - 1) // 6 if piece[0].isascii() else len(piece[0])
        if spent > _EMBEDDED_TOKENS:
            return text[: piece.start()].rstrip() or text[:_EMBEDDED_TOKENS]
    return text


def _hashed(words: list[str]) -> dict[int, float]:
    slots = dict.fromkeys(map(_SLOTS.__getitem__, words[:160]))
    return dict.fromkeys(slots, 1.0 / math.sqrt(len(slots) or 1))


_SLOTS = Slots(lambda word: zlib.crc32(("w:" + word).encode()) % BUCKETS)
