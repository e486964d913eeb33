"""What the APIs other than OpenAI chat share: their bodies become the one ``ChatRequest``, its chunks become theirs.

A shape is a ``parse`` that gives an :class:`Asked`, and a :class:`Writer` that says the answer in its own words. Rules:
a stream's status goes out with its first chunk; its last event follows a finish reason and nothing else; what a shape
cannot say - a part of the answer taken back - ends the stream as an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError, EngineDied, MalformedBody, UnsupportedParameter
from codriver.core.messages import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ContentPart,
    RequestOptions,
    StreamOptions,
    TextPart,
    refuse_out_of_range,
)
from codriver.core.parsing import parse_as
from codriver.core.wire import decode_whole, encode, splice

from . import chat
from .exchange import Exchange, Headers


class Writer(Protocol):
    """One answer in one API's words. ``take`` gives the bytes for a chunk, ``end`` those that make the stream whole,
    ``body`` the answer of a request that does not stream, after ``take`` was given all of it in one chunk. ``hear``
    is told of each chunk when it comes.
    """

    @property
    def headers(self) -> Headers: ...

    def hear(self, chunk: ChatChunk) -> None: ...

    def take(self, chunk: ChatChunk) -> bytes: ...

    def end(self, answer: ChatCompletion) -> bytes: ...

    def body(self, answer: ChatCompletion) -> bytes: ...

    def last_event(self, error: CodriverError) -> bytes: ...


@dataclass(slots=True)
class Asked:
    """``writer`` knows what the answer has to repeat of the question."""

    chat: ChatRequest
    writer: Writer

    @property
    def model(self) -> str:
        return self.chat.model


# ---------------------------------------------------------------- questions


def read(decoder: msgspec.json.Decoder[Any], body: bytes, kinds: str = "") -> Any:
    """The body as the decoder's type; ``kinds`` are the content types it takes.

    Errors: :class:`MalformedBody`; :class:`UnsupportedParameter` for content of a type that is not taken.
    """
    try:
        return parse_as(decoder, body)
    except MalformedBody as error:
        if kinds and "Invalid value" in error.message and (error.param or "").endswith("type"):
            named = error.message.partition("Invalid value ")[2].rstrip(".")
            raise UnsupportedParameter(
                f"The type {named} in '{error.param}' is not supported. Supported: {kinds}.", param=error.param
            ) from error
        raise


def encoded(value: Any) -> bytes:
    """JSON of what a client sent. It is a level or two deeper here than there. Errors: :class:`MalformedBody`."""
    try:
        return encode(value)
    except RecursionError as error:
        raise MalformedBody("The request body is not valid: it is nested too deeply.") from error


def refuse_members(body: Any, names: tuple[str, ...], why: str = "is not supported") -> None:
    """Raise :class:`UnsupportedParameter` for the first of ``names`` that the body sets."""
    for name in names:
        if getattr(body, name):
            raise UnsupportedParameter(f"'{name}' {why}.", param=name)


def question(
    exchange: Exchange,
    request: ChatRequest,
    extras: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> ChatRequest:
    """``request`` made ready: its bytes, its options, its limits checked.

    ``request.codriver`` is what the client's body says there; ``extras`` are members that only some engines know;
    ``names`` are the client's words for members that it calls otherwise. Errors: :class:`MalformedBody`,
    :class:`UnsupportedParameter`.
    """
    options, request.codriver = request.codriver, None
    prompt, request.prompt = request.prompt, None
    if request.stream:
        request.stream_options = StreamOptions(include_usage=True)
    try:
        refuse_out_of_range(request)
    except MalformedBody as error:
        own = (names or {}).get(error.param or "", error.param)
        raise MalformedBody(error.message.replace(f"'{error.param}'", f"'{own}'"), param=own) from None
    raw = encoded(request)
    for name, value in (extras or {}).items():
        if value is not None:
            raw = splice(raw, name, value)
    request.raw, request.prompt = raw, prompt
    request.codriver = exchange.head.request_options(options)
    if request.stream:
        _refuse_restart(request.codriver)
    return request


def content_of(parts: list[ContentPart]) -> str | list[ContentPart]:
    """Parts as a message's content: plain text where there is nothing else, which every chat template takes."""
    if all(isinstance(part, TextPart) for part in parts):
        return "\n".join(part.text for part in parts if isinstance(part, TextPart))
    return parts


def _refuse_restart(options: RequestOptions | None) -> None:
    if options is not None and options.failover == "restart":
        raise UnsupportedParameter(
            "'codriver.failover' cannot be 'restart' in a stream of this API, which has no way to take text back: "
            "use 'resume' or 'declare', or do not stream.",
            param="codriver.failover",
        )


# ---------------------------------------------------------------- answers


async def respond(exchange: Exchange, engine: Engine, asked: Asked, deadline: Deadline) -> None:
    """Answer from ``engine`` in the words of the request's writer, streamed or whole, as it asks."""
    async with chat.open_chunks(engine, asked.chat, deadline) as chunks:
        if asked.chat.stream:
            await _stream(exchange, chunks, asked.writer)
        else:
            await _whole(exchange, chunks, asked.writer)


async def _whole(exchange: Exchange, chunks: AsyncIterator[ChatChunk], writer: Writer) -> None:
    answer = Answer()
    async for chunk in chunks:
        chat.note(exchange, chunk)
        writer.hear(chunk)
        answer.add(chunk)
    done = _completed(exchange, answer)
    writer.take(decode_whole(encode(done)))
    await exchange.answer(writer.body(done))


async def _stream(exchange: Exchange, chunks: AsyncIterator[ChatChunk], writer: Writer) -> None:
    answer = Answer()
    async for chunk in chunks:
        chat.note(exchange, chunk)
        if chunk.codriver and chunk.codriver.get("restart") and (answer.text or answer.tool_calls_begun):
            raise EngineDied(
                "The engine died and another one began the answer anew, but this API's streams cannot take back what "
                "was sent. Use the failover 'resume', or do not stream.",
                engine=exchange.engine,
            )
        writer.hear(chunk)
        answer.add(chunk)
        written = writer.take(chunk)
        if not exchange.streaming:
            exchange.refusal = _Cut(writer)
            await exchange.start_stream(writer.headers)
        if written:
            await exchange.write(written)
    await exchange.end_stream(writer.end(_completed(exchange, answer)))


def _completed(exchange: Exchange, answer: Answer) -> ChatCompletion:
    chat.refuse_cut(answer.complete, exchange.engine)
    exchange.usage = answer.usage
    done = answer.completion()
    exchange.span.answered_by(done.model, tuple(choice.finish_reason or "" for choice in done.choices))
    return done


@dataclass(slots=True)
class _Cut:
    """The refusal of a stream that has begun: its writer's, which knows what went before."""

    writer: Writer

    def body(self, error: CodriverError) -> bytes:
        return self.writer.last_event(error)

    def last_event(self, error: CodriverError) -> bytes:
        return self.writer.last_event(error)
