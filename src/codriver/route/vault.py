"""The values that stay in the vehicle, and the placeholders that travel in their place.

A vault lives in a request, or in a session's memory; it is never written, logged or sent. The same value has the same
placeholder throughout, however it is capitalised or spaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from codriver.core.privacy import Finding

# What a client writes in the form of a placeholder is a value like any other, so that none is ever ambiguous.
FORGED = re.compile(r"<[A-Z]{2,12}_\d{1,6}>")
FORGED_KIND = "TEXT"
_TAIL_CHARS = 256
_LONG_CHARS = 8


class Vault:
    """``placeholder`` gives a value its placeholder, ``values`` maps placeholders back."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._spelt: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._pattern: re.Pattern[str] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def placeholder(self, kind: str, value: str) -> str:
        known = self._known.get(_plain(value))
        if known is not None:
            return known
        self._counts[kind] = number = self._counts.get(kind, 0) + 1
        made = self._known[_plain(value)] = f"<{kind}_{number}>"
        self.values[made] = value
        self._pattern = None
        for spelling in {value, in_json(value), json.dumps(value)[1:-1]}:
            self._spelt[_plain(spelling)] = made
        return made

    def find(self, text: str) -> Iterable[tuple[int, int, str]]:
        """Start, end and placeholder of every known value in ``text``, also as JSON writes it."""
        if not self.values:
            return ()
        if self._pattern is None:
            ordered = sorted(self._spelt, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(_anywhere, ordered)), re.IGNORECASE)
        found = ((match.start(), match.end(), _plain(match.group())) for match in self._pattern.finditer(text))
        # What casefolding and the pattern's own idea of case see differently is no known value.
        return [(start, end, self._spelt[plain]) for start, end, plain in found if plain in self._spelt]

    def ends_within(self, text: str) -> bool:
        """True when ``text`` ends in the beginning of a value: where an answer was cut, its rest is missing."""
        tail = _plain(text[-_TAIL_CHARS:])
        if any(end == len(text) for _, end, _ in self.find(text)):
            return False
        for spelling in self._spelt:
            for size in range(1, min(len(spelling), len(tail) + 1)):
                if tail.endswith(spelling[:size]) and not tail[-size - 1 : -size].isalnum():
                    return True
        return False


def _anywhere(spelling: str) -> str:
    """A long value is known inside a word too: texts get joined. A short one there would be chance."""
    inner = r"\s+".join(map(re.escape, spelling.split(" ")))
    return inner if len(spelling) >= _LONG_CHARS else rf"(?<!\w){inner}(?!\w)"


def in_json(value: str) -> str:
    """``value`` as it stands between the quotes of a JSON string."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def forged(text: str) -> list[Finding]:
    return [Finding(*match.span(), FORGED_KIND) for match in FORGED.finditer(text)] if "<" in text else []


def _plain(value: str) -> str:
    return " ".join(value.split()).casefold()
