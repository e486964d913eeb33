"""One attempt while it runs: its turn under the attempt's time limits, what is known of it, and its gate."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.errors import CodriverError, DeadlineExceeded, EngineDied, FirstTokenTimeout, InterTokenTimeout
from codriver.core.messages import ChatChunk, ChunkChoice, Delta, Usage
from codriver.core.plan import Attempt
from codriver.observe.spans import AttemptSpan

from .gate import GateKeeper
from .lead import HandedOver, Lead
from .turn import Turn

# After its finish reason a stream has only usage to give: worth no more than this.
_AFTER_FINISH_S = 1.0


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
        told: dict[str, object] = {
            "engine": self.engine,
            "why": self.why,
            "started_ms": round(self.started_ms, 3),
            "outcome": self.outcome,
            "took_ms": round(self.took_ms, 3),
            "tokens": self.tokens,
        }
        if self.ttft_ms is not None:
            told["ttft_ms"] = round(self.ttft_ms, 3)
        if self.confidence is not None:
            told["confidence"] = round(self.confidence, 3)
        return told


class Rejected(Exception):
    """The draft did not pass its gate; its turn is held in the background."""


@dataclass(slots=True)
class Live:
    """``deadline`` is the attempt's own; ``choices`` how many answers were asked for; ``probe`` whether the engine's
    breaker hangs on it; ``settled`` whether its end is booked. ``kept`` are chunks of a draft that nobody has been
    given yet, ``unready`` those of an answer that is given out only ``whole``; ``follows``: it is JSON that another
    engine can finish.

    Only waiting for the engine counts against its limits and its pace: a client that is slow to take what it is given
    is not the engine's fault.
    """

    attempt: Attempt
    turn: Turn
    record: AttemptRecord
    span: AttemptSpan
    deadline: Deadline
    choices: int = 1
    probe: bool = False
    error: CodriverError | None = None
    settled: bool = False
    usage: Usage | None = None
    finished: bool = False
    silent_s: float = 0.0
    worked_s: float = 0.0
    kept: list[ChatChunk] = field(default_factory=list)
    whole: bool = False
    follows: bool = False
    unready: list[ChatChunk] = field(default_factory=list)
    started_s: float = field(init=False)
    _begun: set[int] = field(default_factory=set)
    _ended: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.started_s = self.deadline.clock.monotonic_s()

    # ------------------------------------------------------------ while nobody reads it

    @property
    def waited_s(self) -> float:
        """Seconds since the start."""
        return self.deadline.clock.monotonic_s() - self.started_s

    @property
    def left_s(self) -> float:
        """Seconds that the first token may still take."""
        return min(self.attempt.first_token_s - self.waited_s, self.deadline.remaining_s())

    @property
    def shows(self) -> bool:
        """True once a held turn has brought a token."""
        return any(_brings(choice) for chunk in self.turn.kept for choice in chunk.choices)

    @property
    def dead(self) -> bool:
        """True when a held turn has ended without a token, or is too late for one."""
        return self.turn.over or self.left_s <= 0

    @property
    def draft(self) -> str:
        """What a held attempt has written so far, and nobody has been given."""
        return "".join(chunk.text() for chunk in (*self.kept, *self.turn.kept))

    def catch_up(self) -> None:
        """Count the time since the start as waited for: a reader goes on from here."""
        self.silent_s = self.worked_s = self.waited_s

    # ------------------------------------------------------------ being read

    async def timed(self) -> AsyncGenerator[ChatChunk, None]:
        """The turn's chunks under the attempt's limits. What comes before the first token waits for it, so that a death
        before it stays invisible; what goes wrong after the finish reason is of no interest. Raises
        :class:`EngineDied` for a stream without a finish reason.
        """
        opening: list[ChatChunk] = []
        if self.record.ttft_ms is not None:
            self.silent_s = 0.0
        while (chunk := await self._next()) is not None:
            if chunk.usage:
                self.usage = chunk.usage
            if self.finished:
                if chunk.usage:
                    yield chunk if not chunk.choices else msgspec.structs.replace(chunk, choices=[], raw=msgspec.UNSET)
                continue
            if self._carries(chunk):
                self.silent_s = 0.0
                if self.record.ttft_ms is None:
                    self._first_token()
                    for earlier in opening:
                        yield earlier
            elif self.record.ttft_ms is None:
                opening.append(chunk)
                continue
            yield chunk
        if not self._ended or not self._begun <= self._ended:
            name = self.attempt.engine
            raise EngineDied(f"The engine '{name}' stopped in the middle of its answer.", engine=name)

    async def _next(self) -> ChatChunk | None:
        began_s = self.deadline.clock.monotonic_s()
        limit_s = self.attempt.first_token_s if self.record.ttft_ms is None else self.attempt.inter_token_s
        left_s = min(limit_s - self.silent_s, self.deadline.at_s - began_s)
        if self.finished:
            left_s = min(left_s, _AFTER_FINISH_S)
        overall = self.deadline.at_s - began_s <= left_s
        try:
            if left_s <= 0 and not self.turn.ready:
                raise TimeoutError
            if self.record.ttft_ms is None:
                with self.span.activate():
                    return await self.turn.next(left_s)
            return await self.turn.next(left_s)
        except TimeoutError:
            if self.finished:
                return None
            raise self._too_late(overall) from None
        except CodriverError:
            if self.finished:
                return None
            raise
        finally:
            waited_s = self.deadline.clock.monotonic_s() - began_s
            self.silent_s += waited_s
            self.worked_s += waited_s
            if self.turn.spared:
                self.turn.spared, self.silent_s = False, 0.0

    def _carries(self, chunk: ChatChunk) -> bool:
        """True when the chunk brings the client something: text, a tool call, or the end. Counts both."""
        carries = False
        for choice in chunk.choices:
            self._begun.add(choice.index)
            if choice.finish_reason:
                self._ended.add(choice.index)
                self.finished = len(self._ended) >= self.choices
                carries = True
            if _writes(choice.delta):
                self.record.tokens += 1
                carries = True
        return carries

    def _first_token(self) -> None:
        self.record.ttft_ms = 1e3 * self.worked_s
        self.span.first_token()

    def _too_late(self, overall: bool) -> CodriverError:
        name = self.attempt.engine
        if overall:
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
                if verdict != "wait":
                    yield chunk
                    continue
                self.kept.append(chunk)
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

    async def leading(self) -> AsyncGenerator[ChatChunk, None]:
        """The first sentence. Raises :class:`HandedOver` at its end."""
        lead = Lead()
        async with aclosing(self.timed()) as stream:
            async for chunk in stream:
                part = lead.take(chunk)
                if part is not None:
                    yield part
                if lead.over:
                    raise HandedOver

    async def rest(self) -> AsyncGenerator[ChatChunk, None]:
        """A held draft after all: what was kept, then what the engine has written since."""
        for chunk in self.kept:
            yield chunk
        async with aclosing(self.timed()) as stream:
            async for chunk in stream:
                yield chunk


def _writes(delta: Delta) -> bool:
    return bool(delta.content or delta.tool_calls or delta.reasoning_content or delta.refusal)


def _brings(choice: ChunkChoice) -> bool:
    """True for what the client is waiting for: a token, or the end."""
    return bool(choice.finish_reason) or _writes(choice.delta)


def writes(chunk: ChatChunk) -> bool:
    """True for a chunk with text or a tool call in it."""
    return any(_writes(choice.delta) for choice in chunk.choices)
