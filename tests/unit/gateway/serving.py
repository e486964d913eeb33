"""A real gateway on loopback, an engine that does what a test says, and raw sockets to speak to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health, TextOnly
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, Embeddings, EmbedRequest, Usage
from codriver.gateway import Gateway, GatewayConfig, Listening, serve
from codriver.observe.metrics import Metrics

CHAT = b'{"messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"stream":true,"messages":[{"role":"user","content":"hi"}]}'


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> ChatChunk:
    choices = [] if text is None else [ChunkChoice(delta=Delta(content=text), finish_reason=finish)]
    return ChatChunk(id="chatcmpl-1", created=1, model="m", choices=choices, **more)


USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
HELLO = (chunk("Hel"), chunk("lo", "stop"), chunk(usage=USAGE))


class Scripted(TextOnly):
    """Yields ``script``; an exception in it is raised, an event in it is awaited. Remembers what happened to it."""

    def __init__(self, *script: ChatChunk | BaseException | asyncio.Event, id: str = "scripted") -> None:
        self.card = EngineCard(id=id, locality="vehicle", model=id, capabilities=frozenset({"chat", "completions"}))
        self.script = script
        self.state: Health = Health("ready")
        self.requests: list[ChatRequest] = []
        self.deadlines: list[Deadline] = []
        self.started = asyncio.Event()
        self.closed = asyncio.Event()

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self.requests.append(request)
        self.deadlines.append(deadline)
        self.started.set()
        try:
            for step in self.script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, BaseException):
                    raise step
                else:
                    yield step
        finally:
            self.closed.set()

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        return Embeddings([[0.5, -1.5, 0.25] for _ in request.texts()], 4, "m")

    def health(self) -> Health:
        return self.state

    async def aclose(self) -> None: ...


class Reply:
    """One parsed HTTP answer."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        self.status = int(first.split(b" ")[1]) if first else 0
        self.headers = {
            name.decode().lower(): value.strip().decode() for name, _, value in (line.partition(b":") for line in lines)
        }


async def speak(port: int, *parts: bytes) -> Reply:
    """Send the parts on one connection and read until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return Reply(await asyncio.wait_for(reader.read(), 20))
    finally:
        writer.close()


def http(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if method == "POST" and not any("encoding" in line.lower() for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def ask(port: int, path: str, body: bytes, *headers: str) -> Reply:
    return await speak(port, http("POST", path, body, *headers))


async def get(port: int, path: str, *headers: str) -> Reply:
    return await speak(port, http("GET", path, b"", *headers))


@asynccontextmanager
async def running(engine: Any, metrics: Metrics | None = None, **settings: Any) -> AsyncIterator[Listening]:
    config = GatewayConfig(port=0, **settings)
    engines = engine if isinstance(engine, dict) else {"auto": engine}
    gateway = Gateway(engines, next(iter(engines)), config, metrics or Metrics())
    listening = await serve(gateway, config)
    try:
        yield listening
    finally:
        await listening.aclose()
