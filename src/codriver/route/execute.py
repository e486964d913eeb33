"""Runs an attempt plan: one answer out of as many engines as it takes, in one stream.

What it promises. A stream that ends without an error is one complete answer, also where an engine only says that it
is. Time limits fire even when an engine never sends a byte. A death before the client has anything is invisible; one
after it follows the attempt's policy (resume, restart, declare). An answer that must be whole to be worth anything
(tool calls, JSON that not every other engine could finish) is delivered whole while another engine could still take
over, so that it is never spliced from two; other JSON is followed, and is valid wherever it was spliced.
While the link is down the cloud is neither tried nor blamed.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial

from msgspec.structs import replace

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.errors import (
    CodriverError,
    DeadlineExceeded,
    EngineDied,
    EngineUnavailable,
    LinkDown,
    NoEngineLeft,
    RequestError,
    UpstreamRejected,
)
from codriver.core.messages import ChatChunk, ChatRequest, Privacy, StreamOptions
from codriver.core.plan import Attempt, AttemptPlan
from codriver.core.wire import changed
from codriver.observe.spans import start_attempt

from .config import RouteConfig
from .follow import Followed
from .gate import GateKeeper
from .hedge import Race
from .lead import HandedOver
from .lineup import Lineup
from .live import AttemptRecord, Live, Rejected, writes
from .redact import refuse_leak
from .resume import continued, goes_on
from .shape import Shaper
from .sightless import answered_blind
from .sound import why_unsound
from .turn import Turn

# Silence shorter than this says nothing of an engine, whatever limit it broke.
_TELLING_SILENCE_S = 1.0
# How often a request that waits for the link looks at it.
_LINK_POLL_S = 0.05
# A budget that allows more than this bounds nothing, where the engine's context is not known.
_LONG_ANSWER_TOKENS = 1 << 15


class Run:
    """One plan being run for one request. ``chunks`` is iterated once; ``records`` tell what became of each attempt.

    The clock of ``deadline`` times everything.
    """

    def __init__(
        self, lineup: Lineup, config: RouteConfig, plan: AttemptPlan, request: ChatRequest, deadline: Deadline
    ) -> None:
        refuse_leak(plan, lineup.engines)
        self._lineup = lineup
        self._config = config
        self._plan = plan
        self._request = request
        self._clock = deadline.clock
        self._arrived_s = self._clock.monotonic_s()
        self._deadline = self._by(plan.deadline_s, deadline)
        self._queue = deque(plan.attempts)
        self._shaper = Shaper(request)
        self._json = Followed(request)
        self._held: Live | None = None
        self._cut: tuple[Attempt, CodriverError] | None = None
        self._errors: list[CodriverError] = []
        self._spent_usd = 0.0
        self._ending: list[asyncio.Task[None]] = []
        self.records: list[AttemptRecord] = []
        # What the answer's extension tells besides.
        self.told: dict[str, object] = {}

    @property
    def privacy(self) -> Privacy:
        """The class that the plan was made for."""
        return self._plan.privacy

    @property
    def answer(self) -> Answer:
        """What the client has been given so far."""
        return self._shaper.delivered

    async def chunks(self) -> AsyncGenerator[ChatChunk, None]:
        """The answer. Raises a :class:`CodriverError` when there is none, or when it was cut and could not go on."""
        try:
            if self._plan.policy == "cloud-only":
                await self._link_up()
            while (live := self._next()) is not None:
                try:
                    if live.attempt.hedge_s < math.inf and self._queue:
                        live = await self._leader(live)
                    stream = self._source(live)
                    unwatch = self._watch_link(live)
                    try:
                        async for chunk in stream:
                            for ready in self._ready(live, chunk):
                                if live.follows:
                                    self._json.take(ready, live.attempt.engine)
                                yield self._shaper.deliver(ready)
                                if self._held is not None:
                                    await self._drop_held()
                    finally:
                        unwatch()
                        await stream.aclose()
                    return
                except HandedOver:
                    self._handed_over(live)
                except Rejected as rejection:
                    await self._hold(live, rejection)
                except CodriverError as failure:
                    self._died(live, failure)
                finally:
                    if live is not self._held:
                        await self._end(live)
                if (reason := self._full()) is not None:
                    yield self._shaper.close(reason, self._extension(live))
                    return
            raise self._told(self._verdict())
        finally:
            await self._drop_held()
            if self._ending:
                await asyncio.wait(self._ending)

    async def _link_up(self) -> None:
        """Where only the cloud may answer, wait for the link: what is sent into a dead one helps nobody.

        Raises :class:`LinkDown` when it stays down for the whole deadline.
        """
        while self._lineup.link_down(self._plan.attempts[0].engine):
            if self._deadline.expired():
                raise LinkDown("The link to the cloud was down until the deadline; the cloud was not tried.")
            await self._clock.sleep(min(_LINK_POLL_S, max(0.001, self._deadline.remaining_s())))

    # ------------------------------------------------------------ whose turn it is

    def _next(self) -> Live | None:
        """The next attempt of the plan that may start; after the last one, the held draft, if any."""
        while self._queue:
            attempt = self._queue.popleft()
            if attempt.start == "after_failure" and self._held is not None:
                continue
            refusal = self._why_skip(attempt)
            if refusal is None:
                return self._begin(attempt)
            self._errors.append(refusal)
            self._record(attempt, f"skipped:{refusal.code}")
        live = self._held
        if live is None or self._shaper.begun:
            return None
        self._held = None
        live.record.why += "; its draft was the best there was"
        live.record.outcome = "running"
        return live

    def _why_skip(self, attempt: Attempt) -> CodriverError | None:
        """Why an attempt of the plan must not start after all: the world may have moved since the plan was made."""
        name = attempt.engine
        if self._clock.monotonic_s() >= min(self._deadline.at_s, self._arrived_s + attempt.total_s):
            return DeadlineExceeded("The deadline passed before an engine could answer.")
        if self._plan.policy != "cloud-only" and self._lineup.link_down(name):
            return LinkDown("The link to the cloud is down; the cloud was not tried.", engine=name)
        if not attempt.despite_pause and not self._lineup.breakers[name].allows():
            return NoEngineLeft(f"The engine '{name}' keeps failing and is given a pause.", engine=name)
        if self._plan.budget_usd < math.inf and self._affordable_tokens(attempt) < (self._request.limit_tokens or 1):
            return NoEngineLeft(f"The budget does not allow the engine '{name}'.", engine=name)
        return None

    def _affordable_tokens(self, attempt: Attempt) -> float:
        """How many tokens of this engine the rest of the budget pays for, the prompt (at about four characters a token)
        paid first.
        """
        price = self._lineup.engines[attempt.engine].card.price
        if not (price.input_usd or price.output_usd):
            return math.inf
        left_usd = self._plan.budget_usd - self._spent_usd - price.cost_usd(self._prompt_tokens(), 0)
        if left_usd < 0:
            return -1
        return left_usd * 1e6 / price.output_usd if price.output_usd else math.inf

    def _prompt_tokens(self) -> int:
        return len(self._request.text()) // 4

    def _by(self, seconds: float, deadline: Deadline | None = None) -> Deadline:
        """The deadline, ended ``seconds`` after the request's arrival at the latest."""
        deadline = deadline or self._deadline
        return Deadline(min(deadline.at_s, self._arrived_s + seconds), self._clock)

    def _record(self, attempt: Attempt, outcome: str = "running") -> AttemptRecord:
        started_ms = 1e3 * (self._clock.monotonic_s() - self._arrived_s)
        record = AttemptRecord(attempt.engine, attempt.why, started_ms, outcome)
        self.records.append(record)
        return record

    def _begin(self, attempt: Attempt) -> Live:
        if self._cut is not None:
            died, error = self._cut
            self._cut = None
            how, code = (died.on_late_death, error.code) if died.until == "end" else ("hand_over", "first_sentence")
            self._lineup.metrics.failover(died.engine, attempt.engine, how)
            self._shaper.fail_over(died.engine, attempt.engine, how, code)
        engine = self._lineup.engines[attempt.engine]
        record = self._record(attempt)
        span = start_attempt(engine.card, len(self.records) - 1, attempt.why)
        deadline = self._by(attempt.total_s)
        probe = self._lineup.breakers[attempt.engine].started()
        request = self._request_for(attempt)
        if attempt.sightless:
            turn = Turn(answered_blind(engine, self._config.cannot_see, request, deadline))
        else:
            turn = Turn(engine.generate(request, deadline))
        return Live(attempt, turn, record, span, deadline, choices=self._request.n or 1, probe=probe)

    # ------------------------------------------------------------ two at once

    async def _leader(self, first: Live) -> Live:
        """``first`` or, where it is slow to begin, whoever is quicker. The other stays a way out."""
        race = Race(self._lineup.link, self._beside, self._failed_beside)
        leader = None
        try:
            leader = await race.leader(first)
        finally:
            for live in race.running:
                if leader is not None:
                    live.record.outcome = "hedge_lost"
                    self._lineup.paces[live.attempt.engine].waited(live.waited_s)
                    self._lineup.metrics.hedged(first.attempt.engine, leader.attempt.engine)
                    self._queue.appendleft(replace(live.attempt, start="after_failure", hedge_s=math.inf))
                self._end_soon(live)
        return leader

    def _beside(self, first: Live) -> Live | None:
        """Begin the next attempt that may start now, beside ``first``."""
        for attempt in self._queue:
            if attempt.gate is None and self._why_skip(attempt) is None:
                self._queue.remove(attempt)
                return self._begin(replace(attempt, why=f"joins {first.attempt.engine}, which is slow to begin"))
        return None

    def _failed_beside(self, live: Live, failure: CodriverError) -> None:
        self._died(live, failure)
        self._end_soon(live)

    def _end_soon(self, live: Live) -> None:
        self._ending.append(asyncio.ensure_future(self._end(live)))

    # ------------------------------------------------------------ one attempt

    def _ready(self, live: Live, chunk: ChatChunk) -> list[ChatChunk]:
        """What the client gets now that ``chunk`` came. A part that another engine could still replace is kept back
        until the answer is whole.
        """
        shaper, before = self._shaper, self._shaper.ended
        ready = shaper.take(chunk, partial(self._answered, live))
        if live.unready:
            ready = [*live.unready, *ready]
        if not shaper.ended:
            # Nor is a held draft given up for a role: an answer that then ends without a word is none.
            keeps = live.whole or (self._held is not None and not any(map(writes, ready)))
            live.unready = ready if keeps else []
            return [] if keeps else ready
        live.unready = []
        if not before:
            self._refuse_unsound(live, ready)
        return ready

    def _answered(self, live: Live) -> dict[str, object]:
        """The attempt's answer is whole: what its last chunk tells."""
        live.record.outcome = "answered"
        live.record.took_ms = self._since_ms(live)
        return self._extension(live)

    def _refuse_unsound(self, live: Live, pending: list[ChatChunk]) -> None:
        """Raises :class:`EngineDied` for an answer that says that it is whole and is not: it never gets its end."""
        replaceable = bool(self._queue) or self._held is not None
        reason = why_unsound(self._request, self.answer, pending, replaceable)
        if reason is not None:
            name = live.attempt.engine
            raise EngineDied(f"The engine '{name}' {reason}.", engine=name)

    def _source(self, live: Live) -> AsyncGenerator[ChatChunk, None]:
        """The attempt's chunks from here on, and the shaper made ready for them."""
        gate = live.attempt.gate
        live.follows = self._can_pass_on(live.attempt)
        replaceable = bool(self._queue) or self._held is not None
        live.whole = replaceable and not live.follows and self._must_be_whole(live.attempt)
        self._shaper.begin(not goes_on(self._request, self._lineup.engines[live.attempt.engine].card))
        if live.kept:
            return live.rest()
        if live.attempt.until == "first_sentence":
            return live.leading()
        if gate is None or self._shaper.begun:
            return live.timed()
        features = self._lineup.quality.features(self._request)
        keeper = GateKeeper(gate, self._lineup.quality, live.attempt.engine, features, self._request)
        return live.gated(keeper, self._another_will_try)

    def _another_will_try(self) -> bool:
        """True when an attempt that replaces a rejected draft may start now."""
        return any(a.start == "after_rejection" and self._why_skip(a) is None for a in self._queue)

    def _must_be_whole(self, attempt: Attempt) -> bool:
        """True for an answer of which a part is worth nothing, and for one that the client sees only at its end."""
        request = self._request
        wants = request.response_format
        if request.tools or (request.n or 1) > 1 or (wants is not None and wants.type != "text"):
            return True
        return not request.stream and attempt.on_late_death != "resume"

    def _can_pass_on(self, attempt: Attempt) -> bool:
        """True for JSON that whoever is left can finish, or that has been passed on already."""
        if attempt.on_late_death != "resume" or not self._json.is_followed:
            return False
        left = {one.engine for one in [*self._queue, *self._drafters()]}
        return bool(left or self._shaper.begun) and self._json.can_be_finished(
            self._lineup.engines[name].card for name in left
        )

    def _request_for(self, attempt: Attempt) -> ChatRequest:
        card = self._lineup.engines[attempt.engine].card
        request = self._request
        if self._shaper.begun and not self._shaper.restarting and self.answer.text:
            request = continued(request, self.answer.text, self.answer.text_pieces, card)
        elif request.continue_from and not goes_on(request, card):
            request = continued(request, "", 0, card)
        changes: dict[str, object] = {}
        if self._held is not None and card.can("verify") and self._plan.privacy == "any":
            changes["draft"] = None if self._must_be_whole(attempt) else self._held.draft
        if not request.stream and (len(self._plan.attempts) > 1 or attempt.inter_token_s < math.inf):
            # Only a stream shows in time that an engine is dying; the gateway collects it again.
            changes |= {"stream": True, "stream_options": StreamOptions(include_usage=True)}
        if attempt.gate is not None and card.can("logprobs") and not request.logprobs:
            changes |= {"logprobs": True, "top_logprobs": 2}
        if self._plan.budget_usd < math.inf and request.limit_tokens is None:
            affordable = self._affordable_tokens(attempt)
            if affordable < (card.context_tokens or _LONG_ANSWER_TOKENS):
                changes["max_tokens"] = int(affordable)
        return changed(request, **changes) if changes else request

    def _watch_link(self, live: Live) -> Callable[[], None]:
        name = live.attempt.engine
        if live.attempt.locality != "cloud" or self._plan.policy == "cloud-only":
            return _nothing
        return self._lineup.link.on_down(
            lambda: live.turn.hurry(self._config.stall_grace_s, lambda: self._lineup.link_down(name))
        )

    def _extension(self, live: Live) -> dict[str, object]:
        extension: dict[str, object] = {
            "engine": live.attempt.engine,
            "locality": live.attempt.locality,
            "link": self._lineup.link.state,
            "privacy": self._plan.privacy,
            **self._lineup.veil.told(),
            "attempts": [record.as_dict() for record in self.records],
            **self.told,
        }
        if live.record.confidence is not None:
            extension["confidence"] = round(live.record.confidence, 4)
        return extension

    def _told(self, verdict: CodriverError) -> CodriverError:
        verdict.told = {
            "link": self._lineup.link.state,
            "privacy": self._plan.privacy,
            "attempts": [record.as_dict() for record in self.records],
            **self.told,
            "failovers": self._shaper.failovers,
        }
        return verdict

    def _since_ms(self, live: Live) -> float:
        return 1e3 * (self._clock.monotonic_s() - live.started_s)

    # ------------------------------------------------------------ how it ended

    async def _hold(self, live: Live, rejection: Rejected) -> None:
        """Keep a rejected draft in the background; of two, the one that is more likely to be right."""
        live.record.outcome = "rejected"
        live.record.took_ms = self._since_ms(live)
        self._lineup.breakers[live.attempt.engine].succeeded()
        self._lineup.metrics.escalated(str(rejection))
        held = self._held
        if held is None or (held.record.confidence or 0.0) <= (live.record.confidence or 0.0):
            self._held = live
            if held is not None:
                await self._end(held)

    def _handed_over(self, live: Live) -> None:
        """The first sentence is out. Whoever gave it can also finish, where nobody else does."""
        live.record.outcome = "led"
        live.record.took_ms = self._since_ms(live)
        name = live.attempt.engine
        if self._shaper.begun:
            self._cut = (live.attempt, NoEngineLeft(f"Nobody could go on after the first sentence of '{name}'."))
        self._queue.append(replace(live.attempt, until="end", start="after_failure", why="goes on itself"))

    def _died(self, live: Live, failure: CodriverError) -> None:
        """An attempt failed: what the client is to be told, and whether another may go on."""
        error = live.error = self._blame_link(live, failure)
        live.record.outcome = error.code
        self._errors.append(error)
        if not self._shaper.begun:
            return
        self._cut = (live.attempt, error)
        unfit = (not live.follows and self._must_be_whole(live.attempt)) or self.answer.tool_calls_begun
        if live.attempt.on_late_death == "declare" or (unfit and live.attempt.on_late_death == "resume"):
            self._queue.clear()
        elif not self._queue:
            self._queue.extend(self._drafters())

    def _full(self) -> str | None:
        """How the answer ends where the engine died after its last token, and only the end is missing."""
        limit = self._request.limit_tokens
        if self._cut is None:
            return None
        if self._json.is_whole:
            return "stop"
        return "length" if limit is not None and self.answer.text_pieces >= limit else None

    def _drafters(self) -> list[Attempt]:
        """Engines whose draft was rejected can still finish what a better engine began."""
        tried = [record.engine for record in self.records if not record.outcome.startswith("skipped")]
        drafted = {record.engine for record in self.records if record.outcome == "rejected"}
        return [
            replace(a, gate=None, start="after_failure", why="goes on where the cloud stopped")
            for a in self._plan.attempts
            if a.engine in drafted and tried.count(a.engine) == 1
        ]

    def _blame_link(self, live: Live, error: CodriverError) -> CodriverError:
        """What looks like the engine's fault is the link's while it is down; an answer that arrived is an answer."""
        if not isinstance(error, (EngineUnavailable, EngineDied, DeadlineExceeded)):
            return error
        name = live.attempt.engine
        if self._plan.policy == "cloud-only" or not self._lineup.link_down(name):
            return error
        down = LinkDown("The link to the cloud went down during the answer.", engine=name)
        down.__cause__ = error
        return down

    async def _drop_held(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await self._end(held)

    async def _end(self, live: Live) -> None:
        """Stop an attempt and book its end, once."""
        try:
            if not live.settled:
                live.settled = True
                self._settle(live)
        finally:
            await live.turn.aclose()

    def _settle(self, live: Live) -> None:
        """Book an attempt's end: breaker, pace, tokens, cost, metrics, span."""
        name, record, error = live.attempt.engine, live.record, live.error
        breaker, metrics = self._lineup.breakers[name], self._lineup.metrics
        if record.outcome == "running":
            record.outcome = "cancelled"
        record.took_ms = record.took_ms or self._since_ms(live)
        if record.confidence is not None:
            self._lineup.quality.judged(name, self._request, record.confidence)
        if record.outcome in ("answered", "led"):
            breaker.succeeded()
            if record.ttft_ms is not None:
                self._lineup.paces[name].waited(record.ttft_ms / 1e3)
            # An answer in one piece has no first token of its own.
            if record.outcome == "answered" and record.ttft_ms is not None and record.tokens > 1:
                self._lineup.paces[name].record(record.ttft_ms / 1e3, live.worked_s, record.tokens)
        elif error is None or self._lineup.link_down(name) or not _telling(error, live):
            breaker.abandoned(live.probe)
        else:
            breaker.failed(error, live.probe)
        ttft_s = None if record.ttft_ms is None else record.ttft_ms / 1e3
        metrics.attempt_ended(
            name, "ok" if record.outcome == "answered" else record.outcome, record.took_ms / 1e3, ttft_s
        )
        metrics.breaker(name, breaker.state)
        self._book_cost(live)
        live.span.end(record.outcome, live.usage, error)

    def _book_cost(self, live: Live) -> None:
        """What the attempt cost. An engine that did not say how much it wrote is taken by the chunks that came."""
        name, usage = live.attempt.engine, live.usage
        if usage is not None:
            self._lineup.metrics.tokens(name, usage.prompt_tokens, usage.completion_tokens)
        price = self._lineup.engines[name].card.price
        if not (price.input_usd or price.output_usd):
            return
        if usage is None and not live.record.tokens and live.record.outcome != "hedge_lost":
            return
        tokens = (
            (usage.prompt_tokens, usage.completion_tokens) if usage else (self._prompt_tokens(), live.record.tokens)
        )
        cost_usd = price.cost_usd(*tokens)
        self._spent_usd += cost_usd
        self._lineup.spending.spend(cost_usd)
        self._lineup.metrics.cost(name, cost_usd)

    def _verdict(self) -> CodriverError:
        """What to tell the client when no attempt led to an answer."""
        if self._cut is not None:
            return self._cut[1]
        if len(self._errors) == 1:
            return self._errors[0]
        if all(isinstance(error, (RequestError, UpstreamRejected)) for error in self._errors):
            # Nobody failed: the request is at fault. An engine that says so itself is clearer than a server's refusal.
            return next((error for error in self._errors if isinstance(error, RequestError)), self._errors[0])
        if self._deadline.expired() or all(error.code == DeadlineExceeded.code for error in self._errors):
            return DeadlineExceeded("The deadline passed before an engine could answer.")
        told = "; ".join(f"{record.engine}: {record.outcome.removeprefix('skipped:')}" for record in self.records)
        return NoEngineLeft(f"No engine could answer ({told}).")


def _telling(error: CodriverError, live: Live) -> bool:
    """True when the failure says something of the engine. A time limit that the client set very short does not."""
    return not isinstance(error, DeadlineExceeded) or live.silent_s >= _TELLING_SILENCE_S


def _nothing() -> None:
    return None
