"""Known texts found in another text in one pass through a trie: thousands cost as much as ten.

Compared is what is left of capitals and of how much white space there is. A long text is known inside a word too: texts
get joined. A short one there would be chance. Of two that begin at the same place the longer one is found; what was
found is not looked into again.
"""

from __future__ import annotations

import re
from typing import Any

_LONG_CHARS = 8
# What a text must not have to be compared as it stands: more than one space between words, or another white space.
_UNEVEN = re.compile(r"\s\s|[^\S ]")


def plain(text: str) -> str:
    """``text`` as it is compared."""
    return " ".join(text.split()).casefold()


class Spellings:
    """``add`` texts with what they stand for, ``find`` them."""

    def __init__(self) -> None:
        self._meant: dict[str, str] = {}
        # From each character to what may follow it; a whole known text stands under the empty string.
        self._trie: dict[str, Any] = {}

    def add(self, text: str, meant: str) -> None:
        """``text`` stands for ``meant``; the newest meaning counts. A text of white space alone is none."""
        spelling = plain(text)
        if not spelling:
            return
        node = self._trie
        for character in spelling:
            node = node.setdefault(character, {})
        node[""] = spelling
        self._meant[spelling] = meant

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """Start, end and meaning of every known text in ``text``."""
        if not self._trie:
            return []
        flat, places = _flattened(text)
        found, at, trie = [], 0, self._trie
        while at < len(flat):
            spelling = self._at(flat, places, at) if flat[at] in trie else ""
            if spelling:
                end = at + len(spelling)
                found.append((places[at], places[end - 1] + 1, self._meant[spelling]))
                at = end
            else:
                at += 1
        return found

    def begun_by(self, text: str) -> bool:
        """True when ``text`` ends in the beginning of a known text, which is not the end of a longer word."""
        tail = plain(text)
        return any(
            tail.endswith(spelling[:size]) and not tail[-size - 1 : -size].isalnum()
            for spelling in self._meant
            for size in range(1, min(len(spelling), len(tail) + 1))
        )

    def _at(self, flat: str, places: range | list[int], at: int) -> str:
        """The longest known text that stands at this place; empty where none does."""
        longest, node = "", self._trie
        for end in range(at, len(flat)):
            following = node.get(flat[end])
            if following is None:
                break
            node = following
            spelling = node.get("", "")
            if spelling and (len(spelling) >= _LONG_CHARS or _apart(flat, at, end + 1)) and _whole(places, end + 1):
                longest = spelling
        return longest if _whole(places, at) else ""


def _apart(flat: str, at: int, end: int) -> bool:
    """True where no word goes on before or behind."""
    return not (at and _in_word(flat[at - 1])) and not (end < len(flat) and _in_word(flat[end]))


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _whole(places: range | list[int], at: int) -> bool:
    """False in the middle of a character that is several in comparison (as ``ß`` is ``ss``)."""
    return at == 0 or places[at - 1] != places[at]


def _flattened(text: str) -> tuple[str, range | list[int]]:
    """``text`` as it is compared, white space at its ends aside, and for each character its place in ``text``; one
    more for the end.
    """
    folded = text.casefold()
    if len(folded) == len(text) and not _UNEVEN.search(text):
        return folded, range(len(text) + 1)
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if character.isspace():
            if not characters or characters[-1] != " ":
                characters.append(" ")
                places.append(place)
            continue
        for one in character.casefold():
            characters.append(one)
            places.append(place)
    places.append(len(text))
    return "".join(characters), places
