"""JSON and server-sent events: bytes to structs and back, without losing fields nobody here knows.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html (the parts OpenAI-style streams use: ``data``
lines, comments, LF or CRLF).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .errors import MalformedBody, UpstreamMalformed
from .messages import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionDelta,
    Message,
    ToolCallDelta,
)

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()
_chunk_decoder = msgspec.json.Decoder(ChatChunk)
_whole_decoder = msgspec.json.Decoder(ChatCompletion)
# What decoding bytes from outside may raise: no JSON, no UTF-8, or nested more deeply than Python's stack.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_INTERNAL = ("__raw__", "__prompt__", "__continue_from__", "__draft__", "__caller__", "codriver")


class SseParser:
    """Feed bytes, get the ``data`` payload of each complete event. An event over ``limit_bytes`` raises.

    Comments, other fields and empty events give nothing. Errors: :class:`UpstreamMalformed`.
    """

    def __init__(self, limit_bytes: int = 8 << 20) -> None:
        self._buffer = bytearray()  # a line that has not ended yet
        self._limit_bytes = limit_bytes
        self._data: list[bytes] = []
        self._data_bytes = 0  # of the lines behind ``_data``: one that holds no data takes memory too

    def feed(self, received: bytes) -> list[bytes]:
        lines = received.split(b"\n")
        if self._buffer and len(lines) > 1:
            lines[0] = bytes(self._buffer) + lines[0]
            self._buffer.clear()
        self._buffer += lines.pop()
        events: list[bytes] = []
        for raw_line in lines:
            self._check_size(len(raw_line))
            line = raw_line[:-1] if raw_line.endswith(b"\r") else raw_line
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._data_bytes += len(raw_line) + 1
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
        self._check_size(len(self._buffer))
        return events

    @property
    def pending(self) -> bool:
        """True when the stream so far ends inside an event: it was cut."""
        return bool(self._buffer.strip() or self._data)

    def _check_size(self, line_bytes: int) -> None:
        if self._data_bytes + line_bytes > self._limit_bytes:
            raise UpstreamMalformed(f"A stream event is larger than {self._limit_bytes} bytes.")


def decode_chunk(payload: bytes) -> ChatChunk:
    """One stream event as a chunk that remembers its bytes. Errors: :class:`UpstreamMalformed`."""
    try:
        chunk = _chunk_decoder.decode(payload)
    except UNREADABLE as error:
        raise UpstreamMalformed(f"A stream event is not a chat completion chunk: {error}.") from error
    chunk.raw = payload
    return chunk


def decode_whole(body: bytes) -> ChatChunk:
    """A non-streamed ``chat.completion`` body as one ``whole`` chunk. Errors: :class:`UpstreamMalformed`."""
    try:
        whole = _whole_decoder.decode(body)
    except UNREADABLE as error:
        raise UpstreamMalformed(f"The answer is not a chat completion: {error}.") from error
    choices = [
        ChunkChoice(index=c.index, delta=_as_delta(c.message), logprobs=c.logprobs, finish_reason=c.finish_reason)
        for c in whole.choices
    ]
    return ChatChunk(
        id=whole.id, created=whole.created, model=whole.model, choices=choices, usage=whole.usage, whole=True, raw=body
    )


def _as_delta(message: AnswerMessage) -> Delta:
    calls = None
    if message.tool_calls:
        calls = [
            ToolCallDelta(
                index=index,
                id=call.id,
                type=call.type,
                function=FunctionDelta(name=call.function.name, arguments=call.function.arguments),
            )
            for index, call in enumerate(message.tool_calls)
        ]
    reasoning = message.reasoning_content or None
    return Delta(
        role="assistant",
        content=message.content,
        refusal=message.refusal,
        reasoning_content=reasoning,
        tool_calls=calls,
    )


def request_members(raw: bytes) -> dict[str, Any]:
    """All members of a request's bytes, to change them. Parsing skipped those that nobody here knows; what is wrong in
    them comes out now. Errors: :class:`MalformedBody`.
    """
    try:
        members: dict[str, Any] = msgspec.json.decode(raw)
    except UNREADABLE as error:
        raise MalformedBody(f"The request body is not valid JSON: {error}.") from error
    return members


def chunk_members(raw: bytes) -> dict[str, Any]:
    """All members of a chunk's bytes, to change them. Errors: :class:`UpstreamMalformed`."""
    try:
        members: dict[str, Any] = msgspec.json.decode(raw)
    except UNREADABLE as error:
        raise UpstreamMalformed(f"A stream event is not valid JSON: {error}.") from error
    return members


def encode(value: Any) -> bytes:
    """Any struct or plain value as JSON bytes."""
    return _encoder.encode(value)


def encode_chunk(chunk: ChatChunk) -> bytes:
    """A chunk's JSON: the bytes it arrived as where nothing was changed. Internal members are never written."""
    if chunk.raw:
        return chunk.raw
    if chunk.raw is not msgspec.UNSET or chunk.whole is not msgspec.UNSET:
        chunk = msgspec.structs.replace(chunk, raw=msgspec.UNSET, whole=msgspec.UNSET)
    return _encoder.encode(chunk)


def sse(payload: bytes) -> bytes:
    """A payload as one event."""
    return b"data: " + payload + b"\n\n"


def splice(body: bytes, key: str, value: Any) -> bytes:
    """A JSON object's bytes with one member added at its end; nothing else of it is touched."""
    trimmed = body.rstrip()
    comma = b"" if trimmed[:-1].rstrip().endswith(b"{") else b","
    return trimmed[:-1] + comma + _encoder.encode(key) + b":" + _encoder.encode(value) + b"}"


def with_extension(chunk: ChatChunk, extension: dict[str, Any]) -> ChatChunk:
    """The chunk with Codriver's extension field, in the struct and in its bytes. One that it brought along from another
    Codriver is kept in it as ``upstream``.
    """
    raw = chunk.raw or msgspec.UNSET
    if chunk.codriver:
        extension = {**extension, "upstream": chunk.codriver}
        if raw:
            members = chunk_members(raw)
            members.pop("codriver", None)
            raw = _encoder.encode(members)
    if raw:
        raw = splice(raw, "codriver", extension)
    return msgspec.structs.replace(chunk, codriver=extension, raw=raw)


def changed(request: ChatRequest, **members: Any) -> ChatRequest:
    """The request with ``members`` set (``None`` takes one out), in the struct and in the bytes it arrived as.

    So members of the body that nobody here knows survive a change.
    """
    raw = request.raw
    if raw is not None:
        body = request_members(raw)
        for name, value in members.items():
            if name in ("continue_from", "draft"):
                continue  # never part of a body: each engine has its own way to say it
            if value is None:
                body.pop(name, None)
            else:
                body[name] = value
        raw = _encoder.encode(body)
    return msgspec.structs.replace(request, raw=raw, **members)


def with_messages(request: ChatRequest, kept: int, more: Sequence[Message]) -> ChatRequest:
    """The request with its first ``kept`` messages, in the bytes they arrived as, and ``more`` behind them."""
    raw = request.raw
    if raw is not None:
        body = request_members(raw)
        body["messages"] = [*body["messages"][:kept], *more]
        raw = _encoder.encode(body)
    return msgspec.structs.replace(request, raw=raw, messages=[*request.messages[:kept], *more])


def upstream_body(request: ChatRequest, changes: dict[str, Any], drop: tuple[str, ...] = ()) -> bytes:
    """The request's body for a server upstream: its own bytes when nothing differs, else edited member by member.

    ``changes`` are members to set (``None`` values too), ``drop`` members to take out; unknown members survive.
    """
    known = {"model": request.model, "stream": request.stream}
    same = all(key in known and known[key] == value for key, value in changes.items())
    if request.raw is not None and same and request.codriver is None and not drop:
        return request.raw
    body = request_members(request.raw or _encoder.encode(request))
    for key in (*_INTERNAL, *drop):
        body.pop(key, None)
    body.update(changes)
    return _encoder.encode(body)


__all__ = [
    "DONE",
    "UNREADABLE",
    "SseParser",
    "changed",
    "chunk_members",
    "decode_chunk",
    "decode_whole",
    "encode",
    "encode_chunk",
    "request_members",
    "splice",
    "sse",
    "upstream_body",
    "with_extension",
]
