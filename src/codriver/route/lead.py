"""Where the first sentence of a text ends, so that the vehicle can give it and the cloud the rest.

Rule: a full stop counts once white space has followed it ("3.5" is one number), and not after so few characters that it
may be a list's number or an abbreviation.
"""

from __future__ import annotations

import re

from msgspec import UNSET
from msgspec.structs import replace

from codriver.core.messages import ChatChunk

from .resume import with_text

_END = re.compile(r"[.!?…]+[\"'”’»)\]*]*(?=\s)|[。！？]|(?=\n)")
_LEAST_CHARS = 12


class HandedOver(Exception):
    """The sentence is complete: another engine goes on."""


def sentence_end(text: str) -> int | None:
    """The length of ``text``'s first sentence; None while it is not complete."""
    found = _END.search(text, _LEAST_CHARS)
    return None if found is None else found.end()


class Lead:
    """Cuts a stream of chunks after its first sentence."""

    def __init__(self) -> None:
        self._said = ""
        self.over = False

    def take(self, chunk: ChatChunk) -> ChatChunk | None:
        """What of ``chunk`` belongs to the sentence. The end of an answer is never part of it: others go on from it."""
        text = chunk.text()
        end = sentence_end(self._said + text)
        self.over = end is not None or bool(chunk.finish_reason)
        if end is not None:
            text = text[: max(0, end - len(self._said))]
        self._said += text
        if not self.over:
            return chunk
        if not text:
            return None
        cut = with_text(chunk, text)
        choices = [replace(choice, finish_reason=None) for choice in cut.choices]
        return replace(cut, choices=choices, usage=None, raw=UNSET)
