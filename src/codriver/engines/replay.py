"""The replay engine: recorded answers of real models, with recorded or modelled time.

Routing is measured on it over thousands of requests. To the router it looks like a live engine: chunks, finish reason,
usage, log-probabilities where they were recorded, a queue when its slots are full. On a virtual clock
(``core/virtual.py``) it takes no wall time. Limits: it knows only recorded requests; a request's time depends on the
seed and its key alone, so that two policies meet the same weather.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.config import setting
from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health, TextOnly
from codriver.core.errors import DeadlineExceeded, EngineUnavailable, UnsupportedParameter
from codriver.core.messages import ChatChunk, ChatRequest

from . import scripted
from .scripted import Script


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded answer.

    ``tokens`` are its pieces where they were recorded (joined they are ``text``), ``logprobs`` one per token.
    ``correct`` is for whoever scores a run; the engine does not look at it. ``prompt_tokens`` 0 means: count words.
    """

    text: str
    correct: bool | None = None
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    finish_reason: str = "stop"

    def __post_init__(self) -> None:
        if self.tokens and "".join(self.tokens) != self.text:
            raise ValueError("A recording's tokens do not join to its text.")
        if self.logprobs and len(self.logprobs) != len(self.pieces):
            raise ValueError(f"A recording has {len(self.logprobs)} logprobs for {len(self.pieces)} tokens.")

    @property
    def pieces(self) -> tuple[str, ...]:
        return self.tokens or scripted.cut(self.text)


class TokenTiming(Protocol):
    """How long an answer takes: ``draw`` gives (time to first token, time per further token), both in milliseconds."""

    def draw(self, chance: random.Random, prompt_tokens: int) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class FixedTiming:
    """Figures measured on an engine. ``spread`` is the sigma of the log-normal factor on each draw (0: none)."""

    ttft_ms: float
    per_token_ms: float
    per_prompt_token_ms: float = 0.0
    spread: float = 0.0

    def draw(self, chance: random.Random, prompt_tokens: int) -> tuple[float, float]:
        factor = chance.lognormvariate(0.0, self.spread) if self.spread else 1.0
        return (self.ttft_ms + prompt_tokens * self.per_prompt_token_ms) * factor, self.per_token_ms * factor


@dataclass(frozen=True, slots=True)
class EmpiricalTiming:
    """Drawn from recorded pairs of (time to first token, time per token), in milliseconds."""

    pairs: tuple[tuple[float, float], ...]

    def draw(self, chance: random.Random, prompt_tokens: int) -> tuple[float, float]:
        return self.pairs[chance.randrange(len(self.pairs))]

    @classmethod
    def from_calls(cls, calls: Sequence[tuple[float, int]]) -> EmpiricalTiming:
        """From recorded calls of (whole latency in ms, completion tokens), where the first token was not timed.

        Modelled: a least-squares line over all calls splits latency into a start and a slope per token; each call then
        keeps that split, scaled to its own latency. Where the line makes no sense (a start or slope below zero), a
        quarter of the median latency counts as start.
        """
        if not calls:
            raise ValueError("Timing needs at least one recorded call.")
        start_ms, slope_ms = 0.0, 0.0
        if len({tokens for _, tokens in calls}) > 1:
            slope_ms, start_ms = statistics.linear_regression([n for _, n in calls], [ms for ms, _ in calls])
        if start_ms <= 0 or slope_ms <= 0:
            start_ms = statistics.median(ms for ms, _ in calls) / 4
            slope_ms = 3 * start_ms / max(1.0, statistics.median(n for _, n in calls))
        factors = (ms / (start_ms + slope_ms * tokens) for ms, tokens in calls)
        return cls(tuple((start_ms * factor, slope_ms * factor) for factor in factors))


@dataclass(frozen=True)
class ReplayConfig:
    """How recorded answers are played."""

    seed: int = setting(0, "Seed of the timing draws.")
    slots: int = setting(0, "How many answers run at once; further ones queue. 0 means no limit.", least=0)
    chunk_tokens: int = setting(1, "Tokens to a chunk of the stream.", least=1)


def last_user_text(request: ChatRequest) -> str:
    """The default key of a request: its prompt, or the text of its last user message."""
    if request.prompt is not None:
        return request.prompt
    return next((message.text() for message in reversed(request.messages) if message.role == "user"), "")


class Replay(TextOnly):
    """``card`` is the recorded model's; ``recordings`` maps the request's key (``key_of``) to its answer."""

    def __init__(
        self,
        card: EngineCard,
        recordings: Mapping[str, Recording],
        timing: TokenTiming,
        config: ReplayConfig | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.card = card
        self.key_of: Callable[[ChatRequest], str] = last_user_text
        self._recordings = recordings
        self._timing = timing
        self._config = config or ReplayConfig()
        self._clock = clock
        self._slots = asyncio.Semaphore(self._config.slots) if self._config.slots else None
        self._present = 0
        self._closed = False

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        if self._closed:
            raise EngineUnavailable(f"The engine '{self.card.id}' is closed.", engine=self.card.id)
        self.card.refuse_unfit(request)
        if request.continue_from and not self.card.can("prefill"):
            raise UnsupportedParameter(f"The model '{self.card.id}' cannot go on from a partial answer.")
        key = self.key_of(request)
        script = scripted.fit(self._script(key, request), request)
        ttft_ms, per_token_ms = self._timing.draw(random.Random(f"{self._config.seed}:{key}"), script.prompt_tokens)
        head = scripted.new_head(self.card.model, self._clock.wall_s())
        async with self._slot(deadline):
            due_s = self._clock.monotonic_s() + ttft_ms / 1000
            first = True
            for pieces, chunk in scripted.chunks(script, request, head, self._config.chunk_tokens):
                # The first token is ready at ``ttft_ms``; each further one takes ``per_token_ms``.
                due_s += max(0, pieces - first) * per_token_ms / 1000
                first = first and pieces == 0
                await self._until(due_s, deadline)
                yield chunk

    def health(self) -> Health:
        if self._closed:
            return Health("down", reason="closed")
        full = self._slots is not None and self._slots.locked()
        return Health("busy" if full else "ready", queue=self._present)

    async def aclose(self) -> None:
        self._closed = True

    def _script(self, key: str, request: ChatRequest) -> Script:
        recording = self._recordings.get(key)
        if recording is None:
            raise EngineUnavailable(f"'{self.card.id}' has no recorded answer to this request.", engine=self.card.id)
        prompt_tokens = recording.prompt_tokens or len(scripted.cut(request.text()))
        return Script(recording.pieces, prompt_tokens, recording.finish_reason, recording.logprobs)

    @asynccontextmanager
    async def _slot(self, deadline: Deadline) -> AsyncIterator[None]:
        self._present += 1
        try:
            if self._slots is not None:
                await deadline.wait(self._slots.acquire())
            try:
                yield
            finally:
                if self._slots is not None:
                    self._slots.release()
        finally:
            self._present -= 1

    async def _until(self, due_s: float, deadline: Deadline) -> None:
        """Sleep to the moment, or raise at the deadline. The end is known beforehand, so one sleep is enough."""
        if due_s > deadline.at_s or deadline.expired():
            await self._clock.sleep(deadline.remaining_s())
            raise DeadlineExceeded("The deadline passed before the answer was complete.")
        wait_s = due_s - self._clock.monotonic_s()
        if wait_s > 0:
            await self._clock.sleep(wait_s)
