"""One attempt while it runs: its turn under the attempt's time limits, what is known of it, and its gate."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from codriver.core.clock import Clock
from codriver.core.deadline import Deadline
from codriver.core.errors import CodriverError, DeadlineExceeded, EngineDied, FirstTokenTimeout, InterTokenTimeout
from codriver.core.messages import ChatChunk, Usage
from codriver.core.plan import Attempt
from codriver.observe.spans import AttemptSpan

from .gate import GateKeeper
from .turn import Turn


@dataclass(slots=True)
class AttemptRecord:
    """What became of one attempt; times in milliseconds, ``started_ms`` since the request arrived, ``ttft_ms`` since
    the start.
    """

    engine: str
    why: str
    started_ms: float
    outcome: str = "running"
    took_ms: float = 0.0
    ttft_ms: float | None = None
    tokens: int = 0
    confidence: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain values, rounded to microseconds; what is not known is left out."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items() if v is not None}


class Rejected(Exception):
    """The draft did not pass its gate; its turn is held in the background."""


@dataclass(slots=True)
class Live:
    """``deadline`` is the attempt's own; ``kept`` are chunks of a draft that nobody has been given yet."""

    attempt: Attempt
    turn: Turn
    record: AttemptRecord
    span: AttemptSpan
    deadline: Deadline
    usage: Usage | None = None
    kept: list[ChatChunk] = field(default_factory=list)
    started_s: float = field(init=False)
    _token_s: float = field(init=False)
    _finished: bool = False

    def __post_init__(self) -> None:
        self.started_s = self._token_s = self._clock.monotonic_s()

    @property
    def _clock(self) -> Clock:
        return self.deadline.clock

    async def timed(self) -> AsyncGenerator[ChatChunk, None]:
        """The turn's chunks under the attempt's limits. A role-only chunk waits for the first token, so that a death
        before it stays invisible. Raises :class:`EngineDied` for a stream without a finish reason."""
        role: ChatChunk | None = None
        while (chunk := await self._next()) is not None:
            if chunk.usage:
                self.usage = chunk.usage
            if _carries(chunk):
                self._count_token()
            elif self.record.ttft_ms is None:
                role = chunk
                continue
            if role is not None:
                yield role
                role = None
            self._finished = self._finished or chunk.finish_reason is not None
            yield chunk
        if not self._finished:
            name = self.attempt.engine
            raise EngineDied(f"The engine '{name}' stopped in the middle of its answer.", engine=name)

    async def _next(self) -> ChatChunk | None:
        limit_s = self.attempt.first_token_s if self.record.ttft_ms is None else self.attempt.inter_token_s
        left_s = limit_s - (self._clock.monotonic_s() - self._token_s)
        left_s = min(left_s, self.deadline.remaining_s())
        if left_s <= 0:
            raise self._too_late()
        try:
            if self.record.ttft_ms is None:
                with self.span.activate():
                    return await self.turn.next(left_s)
            return await self.turn.next(left_s)
        except TimeoutError:
            raise self._too_late() from None

    def _count_token(self) -> None:
        self._token_s = self._clock.monotonic_s()
        self.record.tokens += 1
        if self.record.ttft_ms is None:
            self.record.ttft_ms = 1e3 * (self._token_s - self.started_s)
            self.span.first_token()

    def _too_late(self) -> CodriverError:
        name = self.attempt.engine
        if self.deadline.expired():
            return DeadlineExceeded(f"The engine '{name}' was not finished when its time ran out.")
        if self.record.ttft_ms is None:
            return FirstTokenTimeout(f"The engine '{name}' gave no first token in time.")
        return InterTokenTimeout(f"The engine '{name}' fell silent in the middle of its answer.")

    async def gated(self, keeper: GateKeeper, another_will_try: Callable[[], bool]) -> AsyncGenerator[ChatChunk, None]:
        """A draft's chunks once its gate lets it pass. Raises :class:`Rejected`, with the turn held, when it does not
        and another engine is there to try; with nobody else there, the draft is the answer.
        """
        verdict = "wait"
        async with aclosing(self.timed()) as stream:
            async for chunk in stream:
                self.kept.append(chunk)
                if verdict == "wait":
                    verdict = keeper.read(chunk)
                    if not math.isnan(keeper.confidence):
                        self.record.confidence = keeper.confidence
                    if verdict == "reject" and another_will_try():
                        break
                if verdict != "wait":
                    for earlier in self.kept:
                        yield earlier
                    self.kept.clear()
        if verdict == "reject" and self.kept:
            self.turn.hold()
            raise Rejected(keeper.reason)
        for chunk in self.kept:
            yield chunk

    async def rest(self) -> AsyncGenerator[ChatChunk, None]:
        """A held draft after all: what was kept, then what the engine has written since."""
        for chunk in self.kept:
            yield chunk
        if not self._finished:
            async with aclosing(self.timed()) as stream:
                async for chunk in stream:
                    yield chunk


def _carries(chunk: ChatChunk) -> bool:
    """True when the chunk brings the client something: text, a tool call, or the end."""
    for choice in chunk.choices:
        delta = choice.delta
        if delta.content or delta.tool_calls or delta.reasoning_content or delta.refusal or choice.finish_reason:
            return True
    return False
