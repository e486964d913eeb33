"""One engine of the router under its own name: for clients that choose the model themselves.

It answers through the router all the same, so that deadlines, breaker, link, budget and privacy hold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    RequestOptions,
    TensorRequest,
    Tensors,
)

from .hybrid import HybridEngine
from .lineup import Lineup


class PinnedEngine:
    """``name`` is an engine of ``lineup``, which ``hybrid`` routes over."""

    def __init__(self, hybrid: HybridEngine, lineup: Lineup, name: str) -> None:
        self._hybrid = hybrid
        self._engine = lineup.engines[name]
        self._name = name

    @property
    def card(self) -> EngineCard:
        return self._engine.card

    def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        options = msgspec.structs.replace(request.codriver or RequestOptions(), engine=self._name)
        return self._hybrid.generate(msgspec.structs.replace(request, codriver=options), deadline)

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        return await self._engine.embed(request, deadline)

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        return await self._engine.infer(request, deadline)

    def health(self) -> Health:
        return self._engine.health()

    async def aclose(self) -> None:
        """Nothing to do: whoever made the engine closes it."""
