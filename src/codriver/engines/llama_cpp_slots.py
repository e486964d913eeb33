"""Which of llama.cpp's slots answers a request, and whether the declared prefix has to be put back into it first.

llama.cpp would choose itself, but it lets a strange conversation overwrite the prefix and then computes it again for
the next one. Chosen here, a conversation returns to the slot that holds its beginning, strangers go where no prefix is
lost, and a slot that lost the prefix gets it back from the saved state (milliseconds instead of a prompt).
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field

import msgspec

from codriver.core.messages import ChatRequest

History = tuple[bytes, ...]


@dataclass
class Slot:
    """``history`` has a digest per message of the conversation it last held, ``adapters`` what it was computed with."""

    id: int
    history: History = ()
    adapters: bytes = b""
    has_prefix: bool = False
    used: int = field(default=0, repr=False)


class Slots:
    """Free slots; the caller holds a permit for each one it takes."""

    def __init__(self, count: int) -> None:
        self._free = [Slot(index) for index in range(count)]
        self._busy: set[int] = set()
        self._turn = itertools.count(1)

    def mark_all(self) -> None:
        """Every slot holds the prefix now."""
        for slot in self._free:
            slot.has_prefix = True

    def take(self, history: History, prefixed: bool) -> Slot:
        """The free slot with the longest common beginning; among equals one whose prefix fits, then one beside a busy
        slot (llama.cpp computes only neighbours in one batch), then the one used longest ago.
        """
        best = max(
            self._free,
            key=lambda slot: (
                common(slot.history, history),
                slot.has_prefix == prefixed,
                not self._busy.isdisjoint((slot.id - 1, slot.id + 1)),
                -slot.used,
            ),
        )
        self._free.remove(best)
        self._busy.add(best.id)
        best.history = history
        return best

    def give(self, slot: Slot) -> None:
        slot.used = next(self._turn)
        self._busy.discard(slot.id)
        self._free.append(slot)


def history_of(request: ChatRequest) -> History:
    """A digest per message, adapters and tools within the first; a completion has one, of its beginning."""
    adapters = adapters_of(request)
    if request.prompt is not None:
        return (_digest((adapters, request.prompt[:256])),)
    first = _digest((adapters, request.tools, request.messages[:1]))
    return (first, *(_digest(message) for message in request.messages[1:]))


def adapters_of(request: ChatRequest) -> bytes:
    """A digest of the adapters a request asks for; llama.cpp would build on what others computed."""
    lora = request.codriver.lora if request.codriver else None
    return _digest(lora) if lora else b""


def common(one: History, other: History) -> int:
    """How many entries two histories begin with in common."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _digest(part: object) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(part), digest_size=12).digest()
