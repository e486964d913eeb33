"""An engine whose runtime is stepped by one thread: admission, deadlines, chunks, health, the end.

A runtime adds how it is opened, how text becomes tokens and back, and what it is told of a request. The rule kept
here: what would break a step for all is refused before it is submitted; an answer that is left stops at the next step.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.config import setting
from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health, TextOnly
from codriver.core.errors import (
    EngineDied,
    EngineUnavailable,
    PromptTooLong,
    RequestError,
    UnsupportedParameter,
)
from codriver.core.messages import ChatChunk, ChatRequest

from .answer_writer import AnswerWriter
from .json_subset import WORDS, fits
from .openai_link import Expiry
from .step_loop import Job, StepLoop


@dataclass(frozen=True)
class SteppedConfig:
    """One model in this process; what it is loaded from is the runtime's to say."""

    id: str = setting("vehicle", "The engine's name.")
    model: Path = setting(Path("model"), "The model.")
    locality: Literal["vehicle", "cloud"] = setting("vehicle", "Where the engine runs.")
    context_tokens: int = setting(2048, "Context of one conversation, in tokens.", least=64)
    slots: int = setting(4, "Conversations that are answered at once.", least=1, most=64)
    threads: int = setting(0, "Threads that compute; 0 means every core this process may use.", least=0)
    batch_tokens: int = setting(
        256, "Prompt tokens per step; a prompt that is being read can be cancelled between steps.", least=32, most=4096
    )
    input_usd: float = setting(0.0, "US dollars per million input tokens, for the budget.", least=0)
    output_usd: float = setting(0.0, "US dollars per million output tokens, for the budget.", least=0)


class Stepped(TextOnly):
    """Made cold: :meth:`load` opens the runtime, and :meth:`health` says ``loading`` meanwhile."""

    runtime: str  # its name, for sentences

    def __init__(self, card: EngineCard, slots: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self.card = card
        self._slots = slots
        self._clock = clock
        self._state: Literal["ready", "loading", "down"] = "loading"
        self._reason = ""
        self._steps: StepLoop | None = None
        self._permits = asyncio.Semaphore(slots)
        self._queue = 0
        self._mean_s = 0.0

    @abstractmethod
    def open(self) -> StepLoop:
        """Load the model; called in a thread. Errors: ``RuntimeError`` with the runtime's own words."""

    @abstractmethod
    def refuse(self, request: ChatRequest) -> None:
        """Errors: :class:`UnsupportedParameter` for what the card allows and the runtime would ignore or fail on."""

    @abstractmethod
    def tokens(self, request: ChatRequest) -> tuple[Any, int]:
        """The prompt as the runtime takes it, and its length in tokens. Errors: :class:`RequestError`."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Text of tokens, without special ones."""

    @abstractmethod
    def settings(self, request: ChatRequest, limit: int) -> Any:
        """What the runtime is told of a request of at most ``limit`` tokens."""

    async def load(self) -> None:
        """Errors: :class:`EngineUnavailable`."""
        try:
            steps = await asyncio.to_thread(self.open)
        except RuntimeError as error:
            self._state, self._reason = "down", f"{self.runtime} could not load the model"
            said = str(error).strip().splitlines()[-1][-200:]
            raise EngineUnavailable(
                f"{self.runtime} could not load {self.card.model}: {said}", engine=self.card.id
            ) from error
        if self._state == "down":
            return
        self._steps = steps
        steps.on_failure = self._failed
        steps.start()
        self._state = "ready"

    def _failed(self, reason: str) -> None:
        """Called from the step thread. A runtime that failed once is not trusted again."""
        self._state, self._reason = "down", f"{self.runtime} failed: {reason}"

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self.card.refuse_unfit(request)
        self.refuse(request)
        steps = self._ready_steps()
        self._queue += 1
        expiry = Expiry(deadline)
        job: Job | None = None
        try:
            await expiry.wait(self._permits.acquire)
            try:
                begun_s = self._clock.monotonic_s()
                self._ready_steps()
                ids, count = await asyncio.to_thread(self.tokens, request)
                limit = self._limit(request, count)
                job = Job(ids, self.settings(request, limit), asyncio.get_running_loop())
                steps.submit(job)
                writer = AnswerWriter(self.decode, request, count)
                yield writer.begin(self.card.id)
                while not writer.finished:
                    event = await expiry.wait(job.events.get)
                    if isinstance(event, Exception):
                        raise self._error(event) from event
                    for chunk in writer.chunks(event):
                        yield chunk
                yield writer.usage()
                self._learn(self._clock.monotonic_s() - begun_s)
            finally:
                if job is not None:
                    job.left = True  # a job that finished is not in the loop any more, and this changes nothing
                self._permits.release()
        finally:
            expiry.end()
            self._queue -= 1

    def _limit(self, request: ChatRequest, prompt_tokens: int) -> int:
        room = self.card.context_tokens - prompt_tokens
        if room < 1:
            raise PromptTooLong(
                f"The prompt has {prompt_tokens} tokens; '{self.card.id}' has a context of "
                f"{self.card.context_tokens} tokens.",
                param="messages",
            )
        return room if request.limit_tokens is None else max(1, min(room, request.limit_tokens))

    def _ready_steps(self) -> StepLoop:
        if self._state == "loading":
            raise EngineUnavailable(
                f"The engine '{self.card.id}' is still loading.", engine=self.card.id, retry_after_s=1.0
            )
        if self._state == "down" or self._steps is None:
            raise EngineUnavailable(f"The engine '{self.card.id}' is down: {self._reason}.", engine=self.card.id)
        return self._steps

    def _error(self, event: Exception) -> Exception:
        if isinstance(event, (ValueError, TypeError)):
            return RequestError(f"The engine '{self.card.id}' refused the request's settings.")
        return EngineDied(f"The engine '{self.card.id}' stopped before its answer was complete.", engine=self.card.id)

    def _learn(self, took_s: float) -> None:
        self._mean_s = took_s if self._mean_s == 0.0 else 0.8 * self._mean_s + 0.2 * took_s

    def health(self) -> Health:
        """``queue`` counts requests in work and waiting; ``eta_s`` is from the mean time of recent answers."""
        if self._state == "down":
            return Health("down", self._queue, reason=self._reason)
        waiting = self._queue - self._slots + 1
        if self._state == "ready" and waiting > 0:
            return Health("busy", self._queue, self._mean_s * waiting / self._slots)
        return Health(self._state, self._queue)

    async def aclose(self) -> None:
        """End the step thread and free the model. Answers under way end with :class:`EngineDied`."""
        self._state, self._reason = "down", "it was closed"
        steps, self._steps = self._steps, None
        if steps is not None:
            await asyncio.to_thread(steps.close)


def wanted_schema(request: ChatRequest) -> dict[str, Any] | None:
    form = request.response_format
    if form is None or form.type == "text":
        return None
    return form.json_schema.schema if form.json_schema and form.json_schema.schema else {"type": "object"}


def refuse_each(engine: str, refused: list[tuple[bool, str, str]]) -> None:
    """Errors: :class:`UnsupportedParameter` for the first that is asked: (is it, its name, why not)."""
    for is_asked, param, reason in refused:
        if is_asked:
            raise UnsupportedParameter(f"The model '{engine}' does not support this '{param}': {reason}.", param=param)


def refused_by_all(request: ChatRequest) -> list[tuple[bool, str, str]]:
    """What no stepped runtime here can do."""
    schema = wanted_schema(request)
    return [
        ((request.n or 1) > 1, "n", "it gives one answer per request"),
        (bool(request.logit_bias), "logit_bias", "it cannot weigh single tokens"),
        (bool(request.codriver and request.codriver.lora), "codriver.lora", "it has no adapters"),
        (
            schema is not None and not fits(schema),
            "response_format",
            f"its schemas may use: {', '.join(sorted(WORDS))}",
        ),
        (
            schema is not None and bool(request.continue_from),
            "response_format",
            "it cannot go on inside a JSON answer",
        ),
    ]
