"""An engine whose place another can take while answers are being written.

llama.cpp's server neither changes its threads nor its model once it has begun, and no runtime here does both: so a
second engine is loaded beside the first, new requests go to it, and the first ends when its last answer has. That takes
the memory of both for so long. The rules kept: no answer under way is cut by a swap; where the new engine does not
load, the old one stays; and there are never more than two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import cast

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, EngineCard, Health
from codriver.core.errors import EngineUnavailable
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, TensorRequest, Tensors


class _Place:
    """An engine, and how many requests it is busy with."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.empty = asyncio.Event()
        self.empty.set()
        self._users = 0

    @contextmanager
    def used(self) -> Iterator[Engine]:
        self._users += 1
        self.empty.clear()
        try:
            yield self.engine
        finally:
            self._users -= 1
            if not self._users:
                self.empty.set()


class SwappingEngine:
    """Owns the engine in place. Made and used on one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._place = self._old = _Place(engine)
        self._leaving: asyncio.Task[None] | None = None
        self._rests = ""
        self._told = ""

    @property
    def card(self) -> EngineCard:
        return self._place.engine.card

    @property
    def settled(self) -> bool:
        """Whether the engine before has ended its last answer: until then a swap waits for it."""
        return self._leaving is None or self._old.empty.is_set()

    async def swap(self, load: Callable[[], Awaitable[Engine]]) -> None:
        """Put what ``load`` gives in place; return when new requests go to it. Errors: those of ``load``; the engine in
        place stays then.
        """
        if self._leaving is not None:
            await self._leaving
        new = _Place(await load())
        self._old, self._place = self._place, new
        self._leaving = asyncio.create_task(_leave(self._old))

    def rest(self, reason: str) -> None:
        """Take no more requests: what is under way goes on to its end."""
        self._rests = reason

    def work(self, told: str = "") -> None:
        """Take requests. ``told``: how it is limited, which its health and each attempt's reason say; empty: not."""
        self._rests, self._told = "", told

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncGenerator[ChatChunk, None]:
        """Errors: those of the engine in place; :class:`EngineUnavailable` while it rests."""
        self._refuse_resting()
        with self._place.used() as engine:
            stream = cast(AsyncGenerator[ChatChunk, None], engine.generate(request, deadline))
            async with aclosing(stream):
                async for chunk in stream:
                    yield chunk

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        self._refuse_resting()
        with self._place.used() as engine:
            return await engine.embed(request, deadline)

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        self._refuse_resting()
        with self._place.used() as engine:
            return await engine.infer(request, deadline)

    def health(self) -> Health:
        found = self._place.engine.health()
        if self._rests:
            return Health("down", found.queue, reason=self._rests)
        return msgspec.structs.replace(found, reason=self._told) if self._told and not found.reason else found

    async def aclose(self) -> None:
        """Close the engine in place, and one that is still ending its answers."""
        if self._leaving is not None and not self._leaving.done():
            self._leaving.cancel()
            await asyncio.gather(self._leaving, return_exceptions=True)
            await self._old.engine.aclose()
        await self._place.engine.aclose()

    def _refuse_resting(self) -> None:
        if self._rests:
            raise EngineUnavailable(
                f"The engine '{self.card.id}' takes no requests: {self._rests}.", engine=self.card.id
            )


async def _leave(place: _Place) -> None:
    await place.empty.wait()
    await place.engine.aclose()
