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
_WORD = re.compile(r"\w+")
_LEAST_PART_CHARS = 3
# Between the words of a name: a space, a comma, a full stop.
_MOST_GAP_CHARS = 3
_NO_NAMES = "von van der den del della des dos das the and zum zur"
_ALSO_WORDS = (
    "april art august bill chase christian dawn drew faith frank grace grant guy heath hope iris jack joy june lane "
    "mark may miles norm olive pat penny rich rob rose ruby sky sue summer ted violet ward will young"
)
_PARTICLES = frozenset(_NO_NAMES.split())
_WORDS = frozenset(_ALSO_WORDS.split())


class NameFinder:
    """Finds ``names`` word by word through a dictionary: a phone book of thousands costs as much as one of ten."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        wholes = {" ".join(name.split()) for name in names} - {""}
        parts = {part.strip(".,;'\"()") for name in wholes for part in name.split()}
        wanted = {_words(name) for name in wholes | {part for part in parts if _tells(part)}} - {()}
        for words in sorted(wanted, key=lambda words: (-len(words), words)):
            self._by_first.setdefault(words[0], []).append(words)

    def find(self, text: str) -> list[Finding]:
        if not self._by_first:
            return []
        found: list[Finding] = []
        matches = list(_WORD.finditer(text))
        for at, match in enumerate(matches):
            for words in self._by_first.get(match.group().casefold(), ()):
                end = _end(words, matches[at : at + len(words)], text)
                if end and not _is_word(text[match.start() : end]):
                    found.append(Finding(match.start(), end, KIND))
                    break
        return found


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORD.findall(name))


def _end(words: tuple[str, ...], matches: list[re.Match[str]], text: str) -> int:
    """Where a name ends that may begin with the first match; 0 where it is another word or the words are apart."""
    if len(matches) < len(words):
        return 0
    for before, match, word in zip([matches[0], *matches], matches, words, strict=False):
        if match.group().casefold() != word or match.start() - before.end() > _MOST_GAP_CHARS:
            return 0
    return matches[len(words) - 1].end()


def _tells(part: str) -> bool:
    return len(part) >= _LEAST_PART_CHARS and part.casefold() not in _PARTICLES


def _is_word(found: str) -> bool:
    return found.islower() and found in _WORDS


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
