"""A trailing assistant message is the beginning of the answer: so a Codriver in a vehicle asks its cloud to go on.

llama.cpp takes it so; most servers take it for a turn that is over, and would begin again. An engine behind
:class:`GoesOn` goes on: from the last character where its card says ``prefill``, else by being asked to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, EngineCard, Health
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, TensorRequest, Tensors
from codriver.core.wire import changed

from .resume import OverlapRemover, continued, goes_on, without_overlap

# vLLM's members: who sends one of them says itself what the last message is.
_SAID = (b'"continue_final_message"', b'"add_generation_prompt"')


class GoesOn:
    """``engine`` with that rule; everything else it does as before."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def card(self) -> EngineCard:
        return self._engine.card

    def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        part = _part(request)
        if not part:
            return self._engine.generate(request, deadline)
        asked = continued(changed(request, messages=request.messages[:-1]), part, 0, self.card)
        answer = self._engine.generate(asked, deadline)
        return answer if goes_on(request, self.card) else _new_of(answer, OverlapRemover(part))

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        return await self._engine.embed(request, deadline)

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        return await self._engine.infer(request, deadline)

    def health(self) -> Health:
        return self._engine.health()

    async def aclose(self) -> None:
        await self._engine.aclose()


def _part(request: ChatRequest) -> str:
    last = request.messages[-1] if request.messages else None
    if last is None or last.role != "assistant" or last.tool_calls:
        return ""
    if request.raw is not None and any(name in request.raw for name in _SAID):
        return ""
    return last.text()


async def _new_of(answer: AsyncIterator[ChatChunk], overlap: OverlapRemover) -> AsyncIterator[ChatChunk]:
    async with aclosing(cast("AsyncGenerator[ChatChunk, None]", answer)) as chunks:
        async for chunk in chunks:
            yield without_overlap(chunk, overlap)
