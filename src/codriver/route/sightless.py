"""A fallback that cannot see: it is put the words around a picture, and its answer begins by saying so.

Rules: the sentence is Codriver's own and not left to the model; it stands at the start of an answer only, so that one
which another engine began is gone on with as ever; nothing is said before the engine has something to say.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from msgspec import UNSET
from msgspec.structs import replace

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, EngineCard
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    ImagePart,
    Message,
    StreamOptions,
    TextPart,
)
from codriver.core.wire import changed

from .resume import asked_to_go_on

_STAND_IN = "(a picture that you cannot see)"
_TOLD = "The user has been told that you cannot see the picture. Answer what you can without it."


def may_go_blind(request: ChatRequest) -> bool:
    """True for a request that a text model may answer without its pictures, and say so."""
    plain = request.response_format is None or request.response_format.type == "text"
    return request.modalities() == {"text", "image"} and plain and not request.tools and (request.n or 1) == 1


def without_pictures(request: ChatRequest) -> ChatRequest:
    """The request with words in the pictures' place."""
    return changed(request, messages=[_worded(message) for message in request.messages])


def _worded(message: Message) -> Message:
    if not isinstance(message.content, list):
        return message
    texts = [
        _STAND_IN if isinstance(part, ImagePart) else part.text
        for part in message.content
        if isinstance(part, (ImagePart, TextPart))
    ]
    return replace(message, content="\n".join(texts))


async def answered_blind(
    engine: Engine, sentence: str, request: ChatRequest, deadline: Deadline
) -> AsyncGenerator[ChatChunk, None]:
    """The engine's answer behind the sentence. Errors: those of the engine."""
    begun = bool(request.continue_from) or asked_to_go_on(request)
    asked = without_pictures(request) if begun else _opened(engine.card, sentence, without_pictures(request))
    told = begun
    answer = cast("AsyncGenerator[ChatChunk, None]", engine.generate(asked, deadline))
    async with aclosing(answer) as chunks:
        async for chunk in chunks:
            if not told and (chunk.text() or chunk.finish_reason):
                told = True
                delta = Delta(role="assistant", content=sentence)
                yield ChatChunk(
                    id=chunk.id, created=chunk.created, model=chunk.model, choices=[ChunkChoice(delta=delta)]
                )
            yield chunk if begun else _roleless(chunk)


def _opened(card: EngineCard, sentence: str, request: ChatRequest) -> ChatRequest:
    """The request to an engine whose answer the sentence begins."""
    changes: dict[str, Any] = {"stream": True, "stream_options": StreamOptions(include_usage=True)}
    if card.can("prefill"):
        changes["continue_from"] = sentence
    else:
        changes["messages"] = [*request.messages, Message(role="system", content=_TOLD)]
    return changed(request, **changes)


def _roleless(chunk: ChatChunk) -> ChatChunk:
    if not any(choice.delta.role for choice in chunk.choices):
        return chunk
    choices = [replace(choice, delta=replace(choice.delta, role=None)) for choice in chunk.choices]
    return replace(chunk, choices=choices, raw=UNSET)
