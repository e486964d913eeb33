"""The detector: forms (``patterns.py``), check digits (python-stdnum), phone numbers (phonenumbers), names of a list.

Needs the extra ``[privacy]``. What it cannot find: names and places that nobody listed, addresses of other forms, and
what is spelt out in words, letter by letter or in disguise. ``docs/privacy.md`` says so to users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from codriver.core.errors import BadConfigValue
from codriver.core.privacy import Detector, Finding, NoDetector, Unreadable, without_overlaps

from .config import PrivacyConfig
from .names import NameFinder, read_names
from .numbers import numbers
from .patterns import BLOB, PATTERNS, PHONE_LIKE, PHONE_PLUS

_MISSING = "personal data cannot be found without the extra: pip install 'codriver[privacy]'"
# Signs around a run of digits that tell a phone number from another.
_AROUND_CHARS = 3


class PatternDetector:
    """See the module. Raises ``ImportError`` where a library is missing, :class:`BadConfigValue` for a bad region."""

    why_not = ""

    def __init__(self, config: PrivacyConfig) -> None:
        self._phones = _phones(config.phone_regions)
        self._numbers = numbers()
        listed = read_names(config.names_file) if config.names_file else []
        self._names = NameFinder([*config.names, *listed])

    def find(self, text: str) -> list[Finding]:
        """Errors: :class:`Unreadable` for encoded data."""
        if BLOB.search(text):
            raise Unreadable("encoded data cannot be looked into")
        return without_overlaps(
            [*self._forms(text), *self._numbers(text), *self._phones(text), *self._names.find(text)]
        )

    @staticmethod
    def _forms(text: str) -> Iterator[Finding]:
        for kind, pattern in PATTERNS:
            group = "x" if "x" in pattern.groupindex else 0
            for match in pattern.finditer(text):
                yield Finding(match.start(group), match.end(group), kind)


def make_detector(config: PrivacyConfig) -> Detector:
    """The detector, or one that says why there is none."""
    try:
        return PatternDetector(config)
    except ImportError:
        return NoDetector(_MISSING)


def _phones(regions: tuple[str, ...]) -> Callable[[str], Iterator[Finding]]:
    phonenumbers: Any = import_module("phonenumbers")
    unknown = sorted(set(regions) - set(phonenumbers.SUPPORTED_REGIONS))
    if unknown:
        raise BadConfigValue(
            f"'privacy.phone_regions' holds {unknown[0]!r}; allowed: countries by ISO 3166, such as DE or US.",
            param="privacy.phone_regions",
        )

    def find(text: str) -> Iterator[Finding]:
        # A number with its country code is taken without asking whether that country gives such numbers.
        taken = [match.span() for match in PHONE_PLUS.finditer(text)]
        yield from (Finding(start, end, "PHONE") for start, end in taken)
        for match in PHONE_LIKE.finditer(text):
            if any(start <= match.start() and match.end() <= end for start, end in taken):
                continue
            begin = max(0, match.start() - _AROUND_CHARS)
            near = text[begin : match.end() + _AROUND_CHARS]
            for region in regions:
                for found in phonenumbers.PhoneNumberMatcher(near, region):
                    yield Finding(begin + found.start, begin + found.end, "PHONE")

    return find
