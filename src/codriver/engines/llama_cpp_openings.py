"""The openings of requests that recur: which ones they are, and the files that hold them computed.

An opening is the longest beginning (whole messages) that two requests shared and after which they went on differently,
as where SGLang's RadixAttention branches. A conversation that only grows never makes one.

Limits: branches are looked for in the first 64 messages, among the last 2,048 beginnings seen. What is kept is bounded
by number, and by tokens: all files together never take more memory than the slots themselves. The rule kept here: the
opening used longest ago goes first, and its file with it; one that is pinned (the declared prefix) stays.
"""

from __future__ import annotations

import contextlib
import enum
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from .llama_cpp_slots import History
from .llama_cpp_state import State

_DEEPEST = 64
_BEGINNINGS = 2048


class _Fate(enum.Enum):
    ENDED = enum.auto()
    WENT_ON = enum.auto()
    PARTED = enum.auto()
    BARRED = enum.auto()


class Branches:
    """Where requests part."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, _Fate] = OrderedDict()

    def note(self, history: History) -> int:
        """Remember a request; how many messages the longest opening has that it goes on from, or 0."""
        history = history[:_DEEPEST]
        known = 0
        while known < len(history) and history[known] in self._seen:
            known += 1
        if 0 < known < len(history) and self._seen[history[known - 1]] is _Fate.WENT_ON:
            self._seen[history[known - 1]] = _Fate.PARTED
        opening = 0
        for count, digest in enumerate(history, start=1):
            fate = self._seen.pop(digest, _Fate.ENDED)
            if count < len(history):
                opening = count if fate is _Fate.PARTED else opening
                fate = _Fate.WENT_ON if fate is _Fate.ENDED else fate
            self._seen[digest] = fate
        while len(self._seen) > _BEGINNINGS:
            self._seen.popitem(last=False)
        return opening

    def bar(self, digest: bytes) -> None:
        """That opening is not worth keeping, or cannot be."""
        if digest in self._seen:
            self._seen[digest] = _Fate.BARRED


@dataclass(frozen=True)
class Opening:
    """A computed and saved beginning of ``messages`` messages."""

    digest: bytes
    messages: int
    state: State
    pinned: bool = False


class Openings:
    """What is kept, at most ``most`` with ``most_tokens`` altogether, pinned ones apart."""

    def __init__(self, most: int, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self._most = most
        self._kept: OrderedDict[bytes, Opening] = OrderedDict()

    def find(self, history: History) -> Opening | None:
        """The longest one that a request begins with; that counts as a use."""
        for digest in reversed(history) if self._kept else ():
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        return None

    def add(self, opening: Opening, folder: Path) -> None:
        self._kept[opening.digest] = opening
        loose = [kept for kept in self._kept.values() if not kept.pinned]
        while len(loose) > self._most or sum(kept.state.tokens for kept in loose) > self.most_tokens:
            self.drop(loose.pop(0), folder)

    def drop(self, opening: Opening, folder: Path) -> None:
        """Forget it and delete its file."""
        self._kept.pop(opening.digest, None)
        with contextlib.suppress(OSError):
            (folder / opening.state.file).unlink()
