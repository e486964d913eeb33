"""Runs an attempt plan: one answer out of as many engines as it takes, in one stream.

What it promises. A stream that ends without an error is one complete answer. Time limits fire even when an engine
never sends a byte. A death before the client has anything is invisible; one after it follows the attempt's policy
(resume, restart, declare). An answer that must be whole to be worth anything (JSON, tool calls) is delivered whole
while another engine could still take over, so that it is never spliced from two. While the link is down the cloud is
neither tried nor blamed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import msgspec

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.errors import CodriverError, DeadlineExceeded, LinkDown, NoEngineLeft
from codriver.core.messages import ChatChunk, ChatRequest, StreamOptions
from codriver.core.plan import Attempt, AttemptPlan
from codriver.observe.spans import start_attempt

from .config import RouteConfig
from .gate import GateKeeper
from .lineup import Lineup
from .live import AttemptRecord, Live, Rejected
from .quality import request_features
from .resume import continued
from .shape import Shaper
from .turn import Turn


class Run:
    """One plan being run for one request. ``chunks`` is iterated once; ``records`` tell what became of each attempt."""

    def __init__(
        self, lineup: Lineup, config: RouteConfig, plan: AttemptPlan, request: ChatRequest, deadline: Deadline
    ) -> None:
        self._lineup = lineup
        self._config = config
        self._plan = plan
        self._request = request
        self._deadline = deadline.within(None if math.isinf(plan.deadline_s) else plan.deadline_s)
        self._arrived_s = lineup.clock.monotonic_s()
        self._queue = deque(plan.attempts)
        self._shaper = Shaper(request)
        self._held: Live | None = None
        self._errors: list[CodriverError] = []
        self._spent_usd = 0.0
        self.records: list[AttemptRecord] = []

    @property
    def answer(self) -> Answer:
        """What the client has been given so far."""
        return self._shaper.delivered

    async def chunks(self) -> AsyncGenerator[ChatChunk, None]:
        """The answer. Raises a :class:`CodriverError` when there is none, or when it was cut and could not go on."""
        try:
            while self._queue:
                attempt = self._queue.popleft()
                refusal = self._why_skip(attempt)
                if refusal is not None:
                    self._errors.append(refusal)
                    self._record(attempt, f"skipped:{refusal.code}")
                    continue
                try:
                    async with aclosing(self._attempt(attempt)) as stream:
                        async for chunk in stream:
                            yield chunk
                    return
                except Rejected:
                    continue
                except CodriverError as error:
                    self._errors.append(error)
                    self._after_death(attempt, error)
            if self._held is None or self.answer.text:
                raise self._verdict()
            async with aclosing(self._deliver_held(self._held)) as stream:
                async for chunk in stream:
                    yield chunk
        finally:
            await self._drop_held()

    # ------------------------------------------------------------ one attempt

    def _why_skip(self, attempt: Attempt) -> CodriverError | None:
        """Why an attempt of the plan must not start after all: the world may have moved since the plan was made."""
        name = attempt.engine
        if self._deadline.expired():
            return DeadlineExceeded("The deadline passed before an engine could answer.")
        if self._plan.policy != "cloud-only" and self._lineup.link_down(name):
            return LinkDown("The link to the cloud is down; the cloud was not tried.", engine=name)
        if not self._lineup.breakers[name].allows():
            return NoEngineLeft(f"The engine '{name}' keeps failing and is given a pause.", engine=name)
        price = self._lineup.engines[name].card.price
        least_usd = price.cost_usd(len(self._request.text()) // 4, self._request.limit_tokens or 1)
        if self._spent_usd + least_usd > self._plan.budget_usd:
            return NoEngineLeft(f"The budget does not allow the engine '{name}'.", engine=name)
        return None

    def _record(self, attempt: Attempt, outcome: str = "running") -> AttemptRecord:
        started_ms = 1e3 * (self._lineup.clock.monotonic_s() - self._arrived_s)
        record = AttemptRecord(attempt.engine, attempt.why, started_ms, outcome)
        self.records.append(record)
        return record

    def _begin(self, attempt: Attempt) -> Live:
        engine = self._lineup.engines[attempt.engine]
        record = self._record(attempt)
        span = start_attempt(engine.card, len(self.records) - 1, attempt.why)
        deadline = self._deadline.within(None if math.isinf(attempt.total_s) else attempt.total_s)
        self._lineup.breakers[attempt.engine].started()
        return Live(attempt, Turn(engine, self._request_for(attempt), deadline), record, span, deadline)

    async def _attempt(self, attempt: Attempt) -> AsyncGenerator[ChatChunk, None]:
        live = self._begin(attempt)
        unwatch = self._watch_link(live)
        error: CodriverError | None = None
        ended = False
        try:
            async with aclosing(self._source(live)) as source:
                async for chunk in self._shaped(source, live):
                    yield chunk
            live.record.outcome, ended = "answered", True
        except Rejected as rejection:
            live.record.outcome, ended = "rejected", True
            self._held = live
            self._lineup.metrics.escalated(str(rejection))
            raise
        except CodriverError as failure:
            error = self._blame_link(live, failure)
            live.record.outcome = error.code
            raise error from failure
        finally:
            unwatch()
            self._settle(live, ended, error)
            if self._held is not live:
                await live.turn.aclose()

    def _source(self, live: Live) -> AsyncGenerator[ChatChunk, None]:
        gate = live.attempt.gate
        if gate is None:
            return live.timed()
        features = request_features(self._request)
        keeper = GateKeeper(gate, self._lineup.quality, live.attempt.engine, features, self._request)
        return live.gated(keeper, lambda: any(self._why_skip(attempt) is None for attempt in self._queue))

    async def _shaped(self, source: AsyncGenerator[ChatChunk, None], live: Live) -> AsyncGenerator[ChatChunk, None]:
        """Chunks as the client gets them. One that another engine could still replace is given out only when whole."""
        whole = self._must_be_whole() and bool(self._queue)
        waiting: list[ChatChunk] = []
        self._shaper.begin(self._lineup.engines[live.attempt.engine].card)
        async for chunk in source:
            if chunk.finish_reason is not None:
                live.record.outcome = "answered"
            for ready in self._shaper.take(chunk, lambda: self._extension(live)):
                if whole and not self._shaper.finished:
                    waiting.append(ready)
                    continue
                for earlier in waiting:
                    yield self._shaper.deliver(earlier)
                waiting.clear()
                if self._held is not None:
                    await self._drop_held()
                yield self._shaper.deliver(ready)

    def _must_be_whole(self) -> bool:
        wants = self._request.response_format
        return bool(self._request.tools) or (wants is not None and wants.type != "text")

    def _request_for(self, attempt: Attempt) -> ChatRequest:
        card = self._lineup.engines[attempt.engine].card
        request = self._request
        changes: dict[str, object] = {}
        if self.answer.text and not self._shaper.restarting:
            request = continued(request, self.answer.text, self._shaper.delivered_tokens, card)
        if len(self._plan.attempts) > 1 and not request.stream:
            # Only a stream shows in time that an engine is dying; the gateway collects it again.
            changes |= {"stream": True, "stream_options": StreamOptions(include_usage=True)}
        if attempt.gate is not None and card.can("logprobs") and not request.logprobs:
            changes |= {"logprobs": True, "top_logprobs": 2, "raw": None}
        return msgspec.structs.replace(request, **changes) if changes else request

    def _watch_link(self, live: Live) -> Callable[[], None]:
        if live.attempt.locality != "cloud" or not self._config.link_aware:
            return lambda: None
        return self._lineup.link.on_down(lambda: live.turn.hurry(self._config.stall_grace_s))

    def _blame_link(self, live: Live, error: CodriverError) -> CodriverError:
        name = live.attempt.engine
        if self._plan.policy != "cloud-only" and self._lineup.link_down(name) and not isinstance(error, LinkDown):
            return LinkDown("The link to the cloud went down during the answer.", engine=name)
        return error

    def _settle(self, live: Live, ended: bool, error: CodriverError | None) -> None:
        """Book an attempt's end: breaker, pace, metrics, span."""
        name, record = live.attempt.engine, live.record
        took_s = self._lineup.clock.monotonic_s() - live.started_s
        record.took_ms = 1e3 * took_s
        ttft_s = None if record.ttft_ms is None else record.ttft_ms / 1e3
        breaker = self._lineup.breakers[name]
        if ended:
            breaker.succeeded()
        elif error is None or self._lineup.link_down(name):
            # Cancelled by the client, or lost with the link: that says nothing about the engine.
            breaker.abandoned()
        else:
            breaker.failed(error)
        if record.outcome == "running":
            record.outcome = "cancelled"
        if record.outcome == "answered" and ttft_s is not None:
            self._lineup.paces[name].record(ttft_s, took_s, record.tokens)
        metrics = self._lineup.metrics
        metrics.attempt_ended(name, "ok" if record.outcome == "answered" else record.outcome, took_s, ttft_s)
        metrics.breaker(name, breaker.state)
        if live.usage is not None:
            cost_usd = self._lineup.engines[name].card.price.cost_usd(
                live.usage.prompt_tokens, live.usage.completion_tokens
            )
            self._spent_usd += cost_usd
            metrics.tokens(name, live.usage.prompt_tokens, live.usage.completion_tokens)
            metrics.cost(name, cost_usd)
        live.span.end(record.outcome, live.usage, error)

    # ------------------------------------------------------------ what comes next

    def _after_death(self, attempt: Attempt, error: CodriverError) -> None:
        if not self.answer.text:
            return
        policy = attempt.on_late_death
        if policy == "declare":
            self._queue.clear()
            return
        if not self._queue:
            # A drafter whose draft was rejected can still finish what a better engine began.
            drafted = {record.engine for record in self.records if record.outcome == "rejected"}
            self._queue.extend(
                replace(a, gate=None, start="after_failure", why="goes on where the cloud stopped")
                for a in self._plan.attempts
                if a.engine in drafted
            )
        if self._queue:
            self._lineup.metrics.failover(attempt.engine, self._queue[0].engine, policy)
            self._shaper.fail_over(attempt.engine, self._queue[0].engine, policy, error.code)

    async def _deliver_held(self, live: Live) -> AsyncGenerator[ChatChunk, None]:
        """No better answer came: the rejected draft is the answer, and says so."""
        self._held = None
        live.record.why += "; its draft was the best there was"
        error: CodriverError | None = None
        try:
            async with aclosing(live.rest()) as source:
                async for chunk in self._shaped(source, live):
                    yield chunk
            live.record.outcome = "answered"
        except CodriverError as failure:
            error = failure
            raise
        finally:
            self._settle(live, live.record.outcome == "answered", error)
            await live.turn.aclose()

    async def _drop_held(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await held.turn.aclose()

    def _extension(self, live: Live) -> dict[str, object]:
        extension: dict[str, object] = {
            "engine": live.attempt.engine,
            "locality": live.attempt.locality,
            "link": self._lineup.link.estimate().state,
            "attempts": [record.as_dict() for record in self.records],
        }
        if live.record.confidence is not None:
            extension["confidence"] = round(live.record.confidence, 4)
        return extension

    def _verdict(self) -> CodriverError:
        """What to tell the client when no attempt led to an answer."""
        if self.answer.text or len(self._errors) == 1:
            return self._errors[-1]
        if self._deadline.expired():
            return DeadlineExceeded("The deadline passed before an engine could answer.")
        told = "; ".join(f"{record.engine}: {record.outcome.removeprefix('skipped:')}" for record in self.records)
        return NoEngineLeft(f"No engine could answer ({told}).")
