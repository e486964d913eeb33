"""A trailing assistant message is the beginning of the answer: so a Codriver in a vehicle asks its cloud to go on.

llama.cpp takes it so; most servers take it for a turn that is over, and would begin again. An engine behind
:class:`GoesOn` goes on: from the last character where its card says ``prefill``, else by being asked to. Left as they
are: requests with tools, for JSON or for several answers, which nobody goes on with in words, and those whose last
message says itself what it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from msgspec.structs import replace

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, EngineCard, Health
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, TensorRequest, Tensors
from codriver.core.wire import request_members, with_messages

from .resume import OverlapRemover, continued, goes_on, without_overlap

# vLLM's members of a request, and what a plain message has: Mistral's has ``prefix`` beside it, for one.
_SAID = frozenset({"continue_final_message", "add_generation_prompt"})
_PLAIN = frozenset({"role", "content"})


class GoesOn:
    """``engine`` with that rule; everything else it does as before."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def card(self) -> EngineCard:
        return self._engine.card

    def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        trailing = _trailing(request)
        part = trailing + (request.continue_from or "")
        if not part or request.prompt is not None or _is_particular(request):
            return self._engine.generate(request, deadline)
        asked = replace(request, continue_from=None)
        if trailing:
            asked = with_messages(asked, len(request.messages) - 1, ())
        asked = continued(asked, part, 0, self.card)
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


def _trailing(request: ChatRequest) -> str:
    """The text of a last message that is the beginning of the answer; empty where it is not, or says what it is."""
    last = request.messages[-1] if len(request.messages) > 1 else None
    if last is None or last.role != "assistant" or last.tool_calls:
        return ""
    if request.raw is not None:
        members = request_members(request.raw)
        if not _SAID.isdisjoint(members) or not _PLAIN.issuperset(members["messages"][-1]):
            return ""
    return last.text()


def _is_particular(request: ChatRequest) -> bool:
    form = request.response_format
    return bool(request.tools) or (request.n or 1) > 1 or (form is not None and form.type != "text")


async def _new_of(answer: AsyncIterator[ChatChunk], overlap: OverlapRemover) -> AsyncIterator[ChatChunk]:
    async with aclosing(cast("AsyncGenerator[ChatChunk, None]", answer)) as chunks:
        async for chunk in chunks:
            yield without_overlap(chunk, overlap)
