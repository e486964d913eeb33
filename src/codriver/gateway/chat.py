"""``POST /v1/chat/completions``: parse once, hand to the engine, pass its chunks on in their own bytes.

Rules: a stream's status goes out with its first chunk, so that an engine that fails before it answers with a real
status; usage goes out when asked for, once, last; ``[DONE]`` follows a finish reason and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

import msgspec

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import EngineDied
from codriver.core.messages import ChatChunk, ChatRequest, RequestOptions, Usage, parse_chat
from codriver.core.wire import DONE, chunk_members, encode, encode_chunk, splice

from .exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Encode = Callable[[ChatChunk], bytes]


def parse(exchange: Exchange, body: bytes) -> tuple[ChatRequest, RequestOptions | None]:
    """Errors: :class:`MalformedBody`."""
    request = parse_chat(body)
    request.codriver = exchange.head.request_options(request.codriver)
    return request, request.codriver


def open_chunks(engine: Engine, request: ChatRequest, deadline: Deadline) -> aclosing[AsyncGenerator[ChatChunk, None]]:
    """The engine's chunks; leaving the block stops the engine at once."""
    return aclosing(cast("AsyncGenerator[ChatChunk, None]", engine.generate(request, deadline)))


async def respond(exchange: Exchange, engine: Engine, request: ChatRequest, deadline: Deadline) -> None:
    """Answer ``request`` from ``engine``, streamed or whole, as it asks."""
    async with open_chunks(engine, request, deadline) as chunks:
        if request.stream:
            await stream(exchange, chunks, wants_usage(request), encode_chunk)
        else:
            await whole(exchange, chunks)


def wants_usage(request: ChatRequest) -> bool:
    return request.stream_options is not None and request.stream_options.include_usage


async def whole(exchange: Exchange, chunks: AsyncIterator[ChatChunk]) -> None:
    """One ``chat.completion`` body."""
    answer = Answer()
    only: ChatChunk | None = None
    async for chunk in chunks:
        note(exchange, chunk)
        only = chunk if answer.chunks == 0 and chunk.whole is True else None
        answer.add(chunk)
    refuse_cut(answer.complete, exchange.engine)
    exchange.usage = answer.usage
    if only is not None and only.raw:
        exchange.span.answered_by(only.model, tuple(c.finish_reason or "" for c in only.choices))
        await exchange.answer(only.raw)
        return
    completion = answer.completion()
    exchange.span.answered_by(completion.model, tuple(c.finish_reason or "" for c in completion.choices))
    await exchange.answer(encode(completion))


async def stream(exchange: Exchange, chunks: AsyncIterator[ChatChunk], usage_asked: bool, to_bytes: Encode) -> None:
    """Events as the chunks come. ``to_bytes`` makes a chunk's JSON."""
    last_usage: ChatChunk | None = None
    finished: dict[int, str | None] = {}
    async for chunk in chunks:
        note(exchange, chunk)
        for choice in chunk.choices:
            finished[choice.index] = choice.finish_reason or finished.get(choice.index)
        if chunk.usage:
            exchange.usage = chunk.usage
            last_usage = chunk
            if not chunk.choices and not chunk.codriver:
                continue
        shown = _shown(chunk, usage_asked)
        if not exchange.streaming:
            await exchange.start_stream()
        await exchange.event(to_bytes(shown))
    refuse_cut(bool(finished) and all(finished.values()), exchange.engine)
    exchange.span.answered_by(chunk.model, tuple(reason or "" for reason in finished.values()))
    if usage_asked and last_usage is not None:
        await exchange.event(to_bytes(_usage_only(last_usage)))
    await exchange.end_stream(DONE)


def note(exchange: Exchange, chunk: ChatChunk) -> None:
    """Keep what the response's headers, the span and the console want to know: who answers."""
    extension = chunk.codriver
    if isinstance(extension, dict) and isinstance(extension.get("engine"), str):
        exchange.engine = extension["engine"]
        exchange.told = extension


def refuse_cut(complete: bool, engine: str) -> None:
    """Raise :class:`EngineDied` for an answer that ended without its finish reason."""
    if not complete:
        raise EngineDied(f"The engine '{engine}' ended its answer before it was complete.", engine=engine)


def _shown(chunk: ChatChunk, usage_asked: bool) -> ChatChunk:
    """The chunk as the client asked for it: ``usage`` is null in all but the last chunk, or absent in all."""
    if not usage_asked:
        return chunk if chunk.usage is msgspec.UNSET else _without_usage(chunk, msgspec.UNSET)
    if chunk.usage is None:
        return chunk
    if chunk.usage is msgspec.UNSET and chunk.raw:
        return msgspec.structs.replace(chunk, usage=None, raw=splice(chunk.raw, "usage", None))
    return _without_usage(chunk, None)


def _without_usage(chunk: ChatChunk, usage: msgspec.UnsetType | None) -> ChatChunk:
    if not chunk.raw:
        return msgspec.structs.replace(chunk, usage=usage)
    members = chunk_members(chunk.raw)
    members.pop("usage", None)
    if usage is None:
        members["usage"] = None
    return msgspec.structs.replace(chunk, usage=usage, raw=encode(members))


def _usage_only(chunk: ChatChunk) -> ChatChunk:
    if not chunk.choices and not chunk.codriver:
        return chunk
    return ChatChunk(id=chunk.id, created=chunk.created, model=chunk.model, usage=cast("Usage", chunk.usage))
