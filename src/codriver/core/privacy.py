"""Privacy classes, and what finds personal data in a text.

``any`` may go anywhere, ``redact`` may go to the cloud with personal data replaced, ``local_only`` stays in the
vehicle. Of several words the strictest counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .messages import Privacy

_STRICTNESS: dict[str, int] = {"any": 0, "redact": 1, "local_only": 2}


def strictness(word: str | None) -> int:
    """0 for ``any`` and for no word, more for stricter ones; -1 for a word that is no privacy class."""
    return 0 if word is None else _STRICTNESS.get(word, -1)


def strictest(*words: Privacy | None) -> Privacy:
    """The strictest of the classes; ``any`` where there is none."""
    found: Privacy = "any"
    for word in words:
        if word is not None and word is not found and _STRICTNESS[word] > _STRICTNESS[found]:
            found = word
    return found


@dataclass(frozen=True, slots=True)
class Finding:
    """Personal data at ``text[start:end]``. ``kind``: capital letters, a word of a small closed set."""

    start: int
    end: int
    kind: str


class Unreadable(Exception):
    """A text cannot be looked into, or looking failed: it must not leave the vehicle. The message quotes none of it."""


class Detector(Protocol):
    """Finds personal data. ``why_not`` is a sentence where it cannot be used here, empty where it can."""

    @property
    def why_not(self) -> str: ...

    def find(self, text: str) -> list[Finding]:
        """In order, without overlaps. Errors: :class:`Unreadable`; any other counts as one."""


class NoDetector:
    """Where nobody looks: a request to be redacted then stays in the vehicle."""

    def __init__(self, why_not: str = "nothing here finds personal data") -> None:
        self.why_not = why_not

    def find(self, text: str) -> list[Finding]:
        raise Unreadable(self.why_not)


def without_overlaps(findings: list[Finding]) -> list[Finding]:
    """In order; what overlaps becomes one finding of the kind that begins first, so that no rest of it is left over."""
    kept: list[Finding] = []
    for finding in sorted(findings, key=lambda one: (one.start, -one.end)):
        if kept and finding.start < kept[-1].end:
            last = kept[-1]
            if finding.end > last.end:
                kept[-1] = Finding(last.start, finding.end, last.kind)
        else:
            kept.append(finding)
    return kept
