"""One engine of the router under its own name: for clients that choose the model themselves.

It answers through the router all the same, so that deadlines, breaker, link, budget and privacy hold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health
from codriver.core.errors import Forbidden
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Privacy,
    RequestOptions,
    TensorRequest,
    Tensors,
)
from codriver.core.privacy import strictest

from .hybrid import HybridEngine
from .lineup import Lineup


class PinnedEngine:
    """``name`` is an engine of ``lineup``, which ``hybrid`` routes over; ``least`` the vehicle's own privacy class."""

    def __init__(self, hybrid: HybridEngine, lineup: Lineup, name: str, least: Privacy = "any") -> None:
        self._least = least
        self._hybrid = hybrid
        self._engine = lineup.engines[name]
        self._name = name

    @property
    def card(self) -> EngineCard:
        card = self._engine.card
        return replace(card, capabilities=card.capabilities | {"redact", "context"})

    def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        options = msgspec.structs.replace(request.codriver or RequestOptions(), engine=self._name)
        return self._hybrid.generate(msgspec.structs.replace(request, codriver=options), deadline)

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        if self._engine.card.locality != "vehicle" and strictest(request.privacy, self._least) != "any":
            raise Forbidden(
                f"The texts may not leave the vehicle, and '{self._name}' is not in it: nothing was sent to it.",
                param="codriver.privacy",
            )
        return await self._engine.embed(request, deadline)

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        return await self._engine.infer(request, deadline)

    def health(self) -> Health:
        return self._engine.health()

    async def aclose(self) -> None:
        """Nothing to do: whoever made the engine closes it."""
