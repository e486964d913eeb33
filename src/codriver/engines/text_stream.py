"""Token ids to text as they come: no half characters, no stop text, not even its beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\ufffd"  # what a decoder writes for bytes that do not make a character yet


class TextStream:
    """``decode`` turns ids into text. :meth:`push` gives what may be shown now; :meth:`flush` the rest at the end."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._start = 0  # ids before this are shown and no longer needed as context
        self._shown = 0  # ids before this are in the text already
        self._held = ""
        self.stopped = False

    def push(self, ids: Sequence[int]) -> str:
        self._ids.extend(ids)
        # Decoded with the ids before them, so that spaces come out as in the whole.
        before = self._decode(self._ids[self._start : self._shown])
        now = self._decode(self._ids[self._start :])
        if now.endswith(_HALF) or len(now) <= len(before):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        self._held += now[len(before) :]
        return self._release()

    def flush(self) -> str:
        """What was held back, when the answer ended for another reason than a stop text."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._shown])
        self._held += self._decode(self._ids[self._start :])[len(before) :].rstrip(_HALF)
        out = self._release()
        held, self._held = self._held, ""
        return out if self.stopped else out + held

    def _release(self) -> str:
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return out


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
