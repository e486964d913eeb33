"""Names out of a list, found in a text.

A name that is given whole (``Anna Maria Schmidt``) is found whole and by each of its words of three letters or more,
however it is capitalised; a part that is also an English word (``May``, ``Will``) only where it begins with a capital.
Nobody who is not in the list is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from codriver.core.errors import BadConfigValue, MissingFile
from codriver.core.privacy import Finding

KIND = "NAME"
_LEAST_PART_CHARS = 3
_NO_NAMES = "von van der den del della des dos das the and zum zur"
_ALSO_WORDS = (
    "april art august bill chase christian dawn drew faith frank grace grant guy heath hope iris jack joy june lane "
    "mark may miles norm olive pat penny rich rob rose ruby sky sue summer ted violet ward will young"
)
_PARTICLES = frozenset(_NO_NAMES.split())
_WORDS = frozenset(_ALSO_WORDS.split())


class NameFinder:
    """Finds ``names``; one alternation for all of them, so that a long list costs little more than a short one."""

    def __init__(self, names: Iterable[str]) -> None:
        wholes = {" ".join(name.split()) for name in names} - {""}
        parts = {part.strip(".,;'\"()") for name in wholes for part in name.split()}
        wanted = wholes | {part for part in parts if _tells(part)}
        self._pattern = _alternation(wanted) if wanted else None

    def find(self, text: str) -> list[Finding]:
        if self._pattern is None:
            return []
        found = (match.span() for match in self._pattern.finditer(text))
        return [Finding(start, end, KIND) for start, end in found if not _is_word(text[start:end])]


def _tells(part: str) -> bool:
    return len(part) >= _LEAST_PART_CHARS and part.casefold() not in _PARTICLES


def _is_word(found: str) -> bool:
    return found.islower() and found in _WORDS


def _alternation(names: Iterable[str]) -> re.Pattern[str]:
    # The longest first: an alternation takes the first that fits.
    ordered = sorted(names, key=lambda name: (-len(name), name))
    inner = "|".join(r"\s+".join(map(re.escape, name.split())) for name in ordered)
    return re.compile(rf"(?<!\w)(?:{inner})(?!\w)", re.IGNORECASE)


def read_names(file: Path) -> list[str]:
    """The names in ``file``, one a line. Errors: :class:`MissingFile`, :class:`BadConfigValue`."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFile(f"The file of names {file} does not exist.", param="privacy.names_file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfigValue(
            f"The file of names {file} cannot be read: {error}.", param="privacy.names_file"
        ) from error
    return [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]
