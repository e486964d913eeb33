"""The values that stay in the vehicle, and the placeholders that travel in their place.

A vault lives in a request, or in a session's memory; it is never written, logged or sent. The same value has the same
placeholder throughout, however it is capitalised or spaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from codriver.core.privacy import Finding

from .spellings import Spellings, plain

# What a client writes in the form of a placeholder is a value like any other, so that none is ever ambiguous.
FORGED = re.compile(r"<[A-Z]{2,12}_\d{1,6}>")
FORGED_KIND = "TEXT"
_TAIL_CHARS = 256


class Vault:
    """``placeholder`` gives a value its placeholder, ``values`` maps placeholders back."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._spelt = Spellings()
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.values)

    def placeholder(self, kind: str, value: str) -> str:
        known = self._known.get(plain(value))
        if known is not None:
            return known
        self._counts[kind] = number = self._counts.get(kind, 0) + 1
        made = self._known[plain(value)] = f"<{kind}_{number}>"
        self.values[made] = value
        for spelling in (value, in_json(value), json.dumps(value)[1:-1]):
            self._spelt.add(spelling, made)
        return made

    def find(self, text: str) -> Iterable[tuple[int, int, str]]:
        """Start, end and placeholder of every known value in ``text``, also as JSON writes it."""
        return self._spelt.find(text)

    def ends_within(self, text: str) -> bool:
        """True when ``text`` ends in the beginning of a value: where an answer was cut, its rest is missing."""
        tail = text[-_TAIL_CHARS:]
        return not any(end == len(text) for _, end, _ in self.find(text)) and self._spelt.begun_by(tail)


def in_json(value: str) -> str:
    """``value`` as it stands between the quotes of a JSON string."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def forged(text: str) -> list[Finding]:
    return [Finding(*match.span(), FORGED_KIND) for match in FORGED.finditer(text)] if "<" in text else []
