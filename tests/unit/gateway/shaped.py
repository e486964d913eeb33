"""Asks a gateway in one of its other APIs' shapes, and reads the streams that come back."""

from __future__ import annotations

import json
from typing import Any

from codriver.core.messages import ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta

from .serving import Reply, ask, running

Json = dict[str, Any]


async def said(engine: Any, path: str, body: Json | bytes, *headers: str, **settings: Any) -> Reply:
    """The answer of a gateway over ``engine``."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with running(engine, **settings) as server:
        return await ask(server.port, path, payload, *headers)


def events(reply: Reply) -> list[Json]:
    """A stream's events, each of whose names is its ``type``."""
    names = [line[7:].decode() for line in reply.body.split(b"\n") if line.startswith(b"event: ")]
    found = [json.loads(line[6:]) for line in reply.body.split(b"\n") if line.startswith(b"data: ")]
    assert names == [event["type"] for event in found]
    return found


def lines(reply: Reply) -> list[Json]:
    """A stream's lines of JSON, without the sizes between them."""
    return [json.loads(line) for line in reply.body.split(b"\n") if line.startswith(b"{")]


def delta(finish: str | None = None, **members: Any) -> ChatChunk:
    choice = ChunkChoice(delta=Delta(**members), finish_reason=finish)
    return ChatChunk(id="chatcmpl-1", created=1, model="m", choices=[choice])


def call(index: int, arguments: str, id: str | None = None, name: str | None = None) -> ChatChunk:
    """A piece of a tool call; ``id`` and ``name`` where it begins."""
    function = FunctionDelta(name=name, arguments=arguments)
    return delta(tool_calls=[ToolCallDelta(index=index, id=id, function=function)])


CALLS = (
    call(0, "", "call_a", "heat"),
    call(0, '{"celsius":'),
    call(0, "21}"),
    call(1, "{}", "call_b", "horn"),
    delta("tool_calls"),
)
