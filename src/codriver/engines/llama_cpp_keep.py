"""Keeps the openings that recur: saved behind an answer, put into whichever slot a request gets.

Saving takes 40 to 70 ms of a slot (SmolLM2-135M, 175 tokens): its state is set aside, the slot is cut back to the
opening, saved, and given its conversation back. One at a time, only while a permit is free, given up when a request
waits, and tried again when the opening comes the next time. An opening of fewer than 32 tokens is not kept: computing
those takes 0.16 s, a restore 1.4 ms, but behind the steps of other answers 20 to 40 ms, and for a file each.

Limits: none is learned from a request with an image or audio, whose states not every llama.cpp saves (a slot of text it
does, with a projector loaded too). Of requests at once that bring an opening for the first time, each computes it. The
rule kept here: no request waits for a save, none fails by one, and a state is put
only into slots of the same adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from codriver.core.errors import CodriverError
from codriver.core.messages import ChatRequest

from .llama_cpp_openings import Branches, Opening, Openings
from .llama_cpp_server import LlamaServer
from .llama_cpp_slots import History, Slot, Slots
from .llama_cpp_state import hold, restore, save, shared_tokens

LEAST_TOKENS = 32
_LIMIT_S = 10.0  # for a server that answers nothing any more
_ASIDE = "aside.kv"

Encode = Callable[[ChatRequest], bytes]


@dataclass(frozen=True)
class Plan:
    """What is known of a request's beginning: the ``opening`` to put back, and of how many messages one is to ``learn``
    (0: none).
    """

    history: History
    opening: Opening | None
    learn: int

    @property
    def saved(self) -> int:
        return self.opening.messages if self.opening else 0


class Keeper:
    """One per engine. ``encode`` gives a request's body as llama.cpp gets it, ``waits`` says whether one waits."""

    def __init__(
        self, openings: Openings, slots: Slots, encode: Encode, waits: Callable[[], bool], learns: bool
    ) -> None:
        self._openings = openings
        self._branches = Branches() if learns else None
        self._slots = slots
        self._encode = encode
        self._waits = waits
        self._saving: asyncio.Task[None] | None = None

    def plan(self, request: ChatRequest, history: History) -> Plan:
        learn = self._branches.note(history) if self._branches else 0
        opening = self._openings.find(history)
        if (opening and learn <= opening.messages) or request.modalities() != {"text"}:
            learn = 0
        return Plan(history, opening, learn)

    async def put(self, server: LlamaServer, slot: Slot, opening: Opening) -> None:
        """Put an opening into a slot; one that cannot be loaded is forgotten."""
        slot.in_place, slot.history = 0, ()
        if await restore(server, opening.state, (slot.id,)):
            slot.in_place = opening.messages
        else:
            self._openings.drop(opening, server.slot_folder)

    def offer(self, server: LlamaServer, slot: Slot, request: ChatRequest, plan: Plan) -> None:
        """An answer has ended on this slot, which is free again: save the opening that is to be learned there."""
        if plan.learn and (self._saving is None or self._saving.done()):
            self._saving = asyncio.ensure_future(self._learn(server, slot, request, plan))

    async def _learn(self, server: LlamaServer, slot: Slot, request: ChatRequest, plan: Plan) -> None:
        digest = plan.history[plan.learn - 1]
        try:
            async with asyncio.timeout(_LIMIT_S):
                bodies = self._probes(request, plan.learn)
                tokens = await shared_tokens(server, bodies)
                gain = len(tokens) - (plan.opening.state.tokens if plan.opening else 0)
                if gain < LEAST_TOKENS or len(tokens) > self._openings.most_tokens:
                    self._bar(digest)
                elif await self._slots.claim(slot, plan.history):
                    try:
                        await self._save(server, slot, plan, tokens, bodies[0]["lora"])
                    finally:
                        self._slots.unclaim(slot)
        except (CodriverError, OSError, TimeoutError):
            self._bar(digest)  # it is computed, as before

    async def _save(
        self, server: LlamaServer, slot: Slot, plan: Plan, tokens: list[int], lora: list[dict[str, Any]]
    ) -> None:
        digest = plan.history[plan.learn - 1]
        whole = await save(server, slot.id, _ASIDE)
        try:
            if self._waits():
                return
            slot.history = plan.history[: plan.learn]
            await hold(server, slot.id, tokens, lora)
            name = f"{digest.hex()}.kv"
            self._openings.add(Opening(digest, plan.learn, await save(server, slot.id, name)), server.slot_folder)
            if await restore(server, whole, (slot.id,)):
                slot.history = plan.history
        finally:
            with contextlib.suppress(OSError):
                (server.slot_folder / _ASIDE).unlink()

    def _bar(self, digest: bytes) -> None:
        assert self._branches is not None
        self._branches.bar(digest)

    def _probes(self, request: ChatRequest, messages: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Bodies of two requests that share the opening and nothing more; they go on in the role that this one does."""
        begun, follows = request.messages[:messages], request.messages[messages]
        one, other = (
            msgspec.structs.replace(
                request,
                messages=[*begun, msgspec.structs.replace(follows, content=word, tool_calls=None)],
                continue_from=None,
            )
            for word in ("a", "b")
        )
        return msgspec.json.decode(self._encode(one)), msgspec.json.decode(self._encode(other))

    async def aclose(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
