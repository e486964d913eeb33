"""A scripted engine that fails on purpose, and counts who leaves it running.

It answers ``words`` one a chunk, ``token_s`` apart on the loop's time, and goes on deterministically from a prefix. A
:class:`Fault` says what goes wrong and after how many words.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, EngineCard, Health, Locality, Price, TextOnly
from codriver.core.errors import CodriverError, EngineBusy, EngineDied, EngineUnavailable, UpstreamRejected
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionDelta,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

Kind = Literal[
    "none", "stall", "die", "empty", "no_finish", "refuse", "reject", "busy", "slow", "die_after_finish",
    "stall_after_finish", "two_finishes", "hang_on_close",
]  # fmt: skip
WORDS = tuple(f"{' ' if i else ''}w{i}" for i in range(12))
EVERY: frozenset[Capability] = frozenset({"chat", "completions", "tools", "json_schema", "logprobs", "prefill"})


@dataclass(frozen=True)
class Fault:
    """``after`` words (0: before the first) the fault strikes."""

    kind: Kind = "none"
    after: int = 0


@dataclass
class Faulty(TextOnly):
    """``calls`` counts generate calls that were begun, ``open`` those not closed yet, ``requests`` what was asked."""

    name: str
    locality: Locality = "vehicle"
    words: tuple[str, ...] = WORDS
    fault: Fault = field(default_factory=Fault)
    token_s: float = 0.05
    ttft_s: float = 0.1
    logprob: float = -0.01
    price: Price = field(default_factory=Price)
    capabilities: frozenset[Capability] = EVERY
    tool: bool = False
    state: Literal["ready", "loading", "busy", "down"] = "ready"
    context_tokens: int = 4096
    calls: int = 0
    open: int = 0
    requests: list[ChatRequest] = field(default_factory=list)

    @property
    def card(self) -> EngineCard:  # type: ignore[override]
        return EngineCard(
            self.name,
            self.locality,
            self.name,
            capabilities=self.capabilities,
            price=self.price,
            context_tokens=self.context_tokens,
        )

    @property
    def text(self) -> str:
        return "".join(self.words)

    def health(self) -> Health:
        return Health(self.state)

    async def aclose(self) -> None: ...

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self.calls += 1
        self.open += 1
        self.requests.append(request)
        try:
            self._refuse()
            async for chunk in self._answer(request):
                yield chunk
        finally:
            self.open -= 1
            if self.fault.kind == "hang_on_close":
                await asyncio.sleep(1000)

    def _refuse(self) -> None:
        errors: dict[str, CodriverError] = {
            "refuse": EngineUnavailable("refused", engine=self.name),
            "reject": UpstreamRejected("rejected", engine=self.name),
            "busy": EngineBusy("busy", engine=self.name, retry_after_s=5.0),
        }
        if self.fault.kind in errors:
            raise errors[self.fault.kind]

    async def _answer(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        words = self._left(request)
        limit = request.limit_tokens if request.limit_tokens is not None else len(words)
        finish = "tool_calls" if self.tool else "length" if limit < len(words) else "stop"
        words = words[:limit]
        await self._strike(0)
        if self.fault.kind == "empty":
            return
        await asyncio.sleep(self.ttft_s)
        usage = Usage(7, len(words), 7 + len(words))
        if not request.stream:
            await asyncio.sleep(self.token_s * len(words))
            yield self._chunk(Delta(role="assistant", content="".join(words)), finish, usage)
            return
        yield self._chunk(Delta(role="assistant", content=""))
        for index, word in enumerate(words):
            if index:
                await self._strike(index)
                await asyncio.sleep(self.token_s * (100 if self.fault.kind == "slow" else 1))
            yield self._word(word, request)
        await self._strike(len(words))
        if self.fault.kind == "no_finish":
            return
        for _ in range(2 if self.fault.kind == "two_finishes" else 1):
            yield self._chunk(Delta(), finish)
        if self.fault.kind == "die_after_finish":
            raise EngineDied("died after its finish", engine=self.name)
        if self.fault.kind == "stall_after_finish":
            await asyncio.sleep(1e6)
        if request.stream_options is not None and request.stream_options.include_usage:
            yield ChatChunk(id=self.name, model=self.name, usage=usage)

    def _left(self, request: ChatRequest) -> tuple[str, ...]:
        part = request.continue_from or ""
        assert self.text.startswith(part) or not part, "asked to go on from what it would never say"
        words, length = [], 0
        for word in self.words:
            length += len(word)
            if length > len(part):
                words.append(word)
        return tuple(words)

    async def _strike(self, index: int) -> None:
        if self.fault.after != index:
            return
        if self.fault.kind in ("stall", "hang_on_close"):
            await asyncio.sleep(1e6)
        if self.fault.kind == "die":
            raise EngineDied(f"{self.name} died", engine=self.name)

    def _word(self, word: str, request: ChatRequest) -> ChatChunk:
        if self.tool:
            call = ToolCallDelta(index=0, function=FunctionDelta(arguments=word))
            return self._chunk(Delta(tool_calls=[call]))
        logprobs = Logprobs([TokenLogprob(word, self.logprob)]) if request.logprobs else None
        chunk = self._chunk(Delta(content=word))
        chunk.choices[0].logprobs = logprobs
        return chunk

    def _chunk(self, delta: Delta, finish: str | None = None, usage: Usage | None = None) -> ChatChunk:
        chunk = ChatChunk(
            id=self.name, created=1, model=self.name, choices=[ChunkChoice(delta=delta, finish_reason=finish)]
        )
        if usage is not None:
            chunk.usage = usage
        return chunk


@dataclass
class Weather:
    """A link whose state the test sets."""

    state: Literal["up", "degraded", "down"] = "up"
    listeners: list[object] = field(default_factory=list)

    def estimate(self):  # type: ignore[no-untyped-def]
        from codriver.route.link import LinkEstimate

        return LinkEstimate(self.state, 0.05, 1e6, 0.0, 1.0)

    def on_down(self, listener):  # type: ignore[no-untyped-def]
        self.listeners.append(listener)

        def off() -> None:
            with contextlib.suppress(ValueError):
                self.listeners.remove(listener)

        return off

    def become(self, state: Literal["up", "degraded", "down"]) -> None:
        before, self.state = self.state, state
        if state == "down" and before != "down":
            for listener in list(self.listeners):
                listener()  # type: ignore[operator]
