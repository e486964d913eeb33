"""Which of llama.cpp's slots answers a request.

llama.cpp would choose itself, but it lets a strange conversation overwrite the prefix and then computes it again for
the next one. Chosen here, a conversation returns to the slot that holds its beginning. An opening that is saved
(``llama_cpp_openings.py``) is as good in one slot as in another, for putting it back takes milliseconds: then the
choice keeps the conversations of others. The rule kept here: a conversation that went on is not overwritten for the
next few turns while another slot will do, it cannot hold its slot for ever, and who asks little does not wait for a
long prompt to be read.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import dataclass, field

import msgspec

from codriver.core.messages import ChatRequest

# Each entry tells a whole beginning: the messages up to it, with the tools and adapters.
History = tuple[bytes, ...]
_SPARED_TURNS = 8  # answers per slot for which a conversation that went on is spared


@dataclass
class Slot:
    """``history`` is of the conversation it last held, ``adapters`` what it was computed with, None where that is not
    sure; of the request that has it, ``in_place`` entries were there. ``went_on``: that conversation was there for more
    than one turn.
    """

    id: int
    history: History = ()
    adapters: bytes | None = b""
    in_place: int = 0
    went_on: bool = field(default=False, repr=False)
    used: int = field(default=0, repr=False)


class Slots:
    """Free slots; the caller holds a permit for each one it takes."""

    def __init__(self, count: int) -> None:
        self.permits = asyncio.Semaphore(count)
        self._spared_turns = _SPARED_TURNS * count
        self._free = [Slot(index) for index in range(count)]
        # Of two, each conversation's computed beginning is worth more.
        self._kept_free = count - 1 if count > 2 else -1
        self._busy: set[int] = set()
        self._long: set[int] = set()
        self._turn = 0

    def mark(self, count: int, history: History) -> None:
        """The first ``count`` slots hold this beginning now."""
        for slot in self._free[:count]:
            slot.history = history

    def take(self, history: History, adapters: bytes = b"", saved: int = 0, long: bool = False) -> Slot:
        """The free slot with the longest common beginning, ``saved`` entries of which can be put into any with the
        same adapters. Among equals one whose conversation has not gone on; for a ``long`` prompt the last one,
        which of three or more is kept free of others (llama.cpp reads prompts in the slots' order, and those behind
        a long one wait for all of it); while there is one, for a short one a slot that holds the beginning already
        (putting it there would wait for a step of the long one); then one beside a busy slot (it computes only
        neighbours in one batch), then the one used longest ago.
        """

        def worth(slot: Slot) -> tuple[int, bool, int, bool, bool, int]:
            there = common(slot.history, history)
            return (
                max(there, saved if slot.adapters == adapters else 0),
                not (slot.went_on and self._turn - slot.used < self._spared_turns),
                slot.id if long else there >= saved or not self._long,
                slot.id != self._kept_free,
                not self._busy.isdisjoint((slot.id - 1, slot.id + 1)),
                -slot.used,
            )

        best = max(self._free, key=worth)
        best.in_place = common(best.history, history)
        best.went_on = saved < best.in_place == len(best.history) < len(history)
        self._free.remove(best)
        self._busy.add(best.id)
        if long:
            self._long.add(best.id)
        return best

    def give(self, slot: Slot) -> None:
        self._turn += 1
        slot.used = self._turn
        self._busy.discard(slot.id)
        self._long.discard(slot.id)
        self._free.append(slot)

    async def claim(self, slot: Slot, history: History) -> bool:
        """That very slot with a permit, at once: where it is free, still holds ``history`` and nobody waits for one."""
        if self.permits.locked() or slot.history != history or slot.id in self._busy:
            return False
        await self.permits.acquire()
        self._free.remove(slot)
        self._busy.add(slot.id)
        return True

    def unclaim(self, slot: Slot) -> None:
        """Give a claimed slot back; this was no use of it."""
        self._busy.discard(slot.id)
        self._free.append(slot)
        self.permits.release()


def history_of(request: ChatRequest) -> History:
    """A digest per message, over all before it, tools and adapters; a completion has one, of its beginning."""
    adapters = adapters_of(request)
    if request.prompt is not None:
        return (_digest((adapters, request.prompt[:256])),)
    digests, last = [], _digest((adapters, request.tools or None))
    for message in request.messages:
        last = _digest(message, last)
        digests.append(last)
    return tuple(digests)


def adapters_of(request: ChatRequest) -> bytes:
    """A digest of the adapters a request asks for; llama.cpp would build on what others computed."""
    lora = request.codriver.lora if request.codriver else None
    return _digest(lora) if lora else b""


def common(one: History, other: History) -> int:
    """How many entries two histories begin with in common."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _digest(part: object, before: bytes = b"") -> bytes:
    return hashlib.blake2b(before + msgspec.json.encode(part), digest_size=12).digest()
