"""A real gateway in a thread of its own, so that synchronous clients can be used, and engines that fail as asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health, TextOnly
from codriver.core.errors import CodriverError, EngineBusy, PromptTooLong, UpstreamError
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta
from codriver.engines.null import Null
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.observe.metrics import Metrics

KEY = "test-key"
BUSY = EngineBusy("The engine is busy.")
LONG = PromptTooLong("The prompt is too long.")
BROKEN = UpstreamError("The server answered with an error.")


def piece(text: str = "", finish: str | None = None, **more: Any) -> ChatChunk:
    return ChatChunk(
        id="c", created=1, model="m", choices=[ChunkChoice(delta=Delta(content=text), finish_reason=finish)], **more
    )


class Says(TextOnly):
    """Gives its chunks, then raises its error; without one it waits until it is closed, and ``closed`` tells so."""

    def __init__(self, *chunks: ChatChunk, error: CodriverError | None = None, waits: bool = False) -> None:
        self.card = EngineCard(id="says", locality="vehicle", model="m", modalities=frozenset({"text", "image"}))
        self._chunks, self._error, self._waits = chunks, error, waits
        self.requests: list[ChatRequest] = []
        self.closed = threading.Event()

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self.requests.append(request)
        try:
            for chunk in self._chunks:
                yield chunk
            if self._error is not None:
                raise self._error
            if self._waits:
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    def health(self) -> Health:
        return Health("ready")

    async def aclose(self) -> None: ...


def engines() -> dict[str, Any]:
    """``auto`` answers; ``who`` says who it was; the others fail as they are called, ``cut`` in mid-answer."""
    return {
        "auto": Null(),
        "who": Says(piece("Hi."), piece(finish="stop", codriver={"engine": "who", "attempts": [{"engine": "who"}]})),
        "cut": Says(piece("Hel"), error=BROKEN),
        "busy": Says(error=BUSY),
        "long": Says(error=LONG),
        "waits": Says(piece("Hel"), waits=True),
    }


@contextmanager
def served(known: dict[str, Any]) -> Iterator[str]:
    """The address of a gateway over the engines ``known``; the first is the default."""
    ready, found = threading.Event(), {}

    async def run() -> None:
        config = GatewayConfig(port=0, api_keys=(KEY,))
        listening = await serve(Gateway(known, next(iter(known)), config, Metrics()), config)
        found["url"], found["loop"], found["stop"] = listening.urls[0], asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await found["stop"].wait()
        await listening.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(10)
        yield found["url"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(10)
