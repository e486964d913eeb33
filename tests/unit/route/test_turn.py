"""Waits that end in time on the loop that the server really runs on."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from codriver.core.deadline import Deadline
from codriver.core.errors import FirstTokenTimeout, NoEngineLeft
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta
from codriver.core.plan import Attempt, AttemptPlan
from codriver.engines.null import Null, NullConfig
from codriver.route.config import RouteConfig
from codriver.route.execute import Run
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.turn import Turn
from tests.unit.route.drive import ask


class Hanging(Null):
    """Takes a request and never says a word."""

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        await asyncio.Event().wait()
        yield ChatChunk()


async def answered(policy: str, first_token_ms: float) -> tuple[str, list[str]]:
    """What came of a request: the text or the error, and each attempt's outcome."""
    engines = {"v": Null(NullConfig(id="v")), "c": Hanging(NullConfig(id="c", locality="cloud"))}
    hybrid = HybridEngine(Lineup(engines), RouteConfig())
    request = ask(codriver={"policy": policy, "first_token_ms": first_token_ms})
    text, outcomes = "", []
    async with asyncio.timeout(5):
        async for chunk in hybrid.generate(request, Deadline.after(20)):
            text += chunk.text()
            if isinstance(chunk.codriver, dict):
                outcomes = [attempt["outcome"] for attempt in chunk.codriver.get("attempts", [])]
    return text, outcomes


@pytest.mark.parametrize("first_token_ms", [0.001, 0.4, 0.6, 3.0])
def test_a_very_short_wait_ends_at_once(first_token_ms: float) -> None:
    began_s = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with pytest.raises(FirstTokenTimeout, match="The engine 'c' gave no first token in time"):
            runner.run(answered("cloud-only", first_token_ms))
        try:
            text, outcomes = runner.run(answered("cloud-first", first_token_ms))
        except NoEngineLeft as error:
            # In so short a time the other engine may be late too.
            assert error.message == "No engine could answer (c: first_token_timeout; v: first_token_timeout)."
            assert first_token_ms < 1
        else:
            assert text
            assert outcomes == ["first_token_timeout", "answered"]
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize(("writes", "told"), [(True, "late"), (False, "TimeoutError")])
def test_an_engine_is_not_blamed_for_a_process_that_stood_still(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], writes: bool, told: str
) -> None:
    """What came over the wire meanwhile is read; an engine that has sent nothing is given up all the same."""

    async def engine() -> AsyncIterator[ChatChunk]:
        await asyncio.sleep(0.05 if writes else 60)
        yield ChatChunk(id="late")

    async def wait() -> str:
        turn = Turn(engine())
        asyncio.get_running_loop().call_later(0.01, time.sleep, 0.4)
        try:
            chunk = await turn.next(0.1)
        except TimeoutError:
            return "TimeoutError"
        assert chunk is not None
        return chunk.id

    began_s = time.monotonic()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(wait()) == told
    assert time.monotonic() - began_s < 5


class LateToken(Null):
    """A role, as servers begin, and its token at once after ``ttft_s``; ``ttft_s`` of None: never."""

    ttft_s: float | None = 0.05

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        await asyncio.sleep(60 if self.ttft_s is None else self.ttft_s)
        yield ChatChunk(choices=[ChunkChoice(delta=Delta(role="assistant", content=""))])
        await asyncio.sleep(0.01)
        yield ChatChunk(choices=[ChunkChoice(delta=Delta(content="late"))])
        yield ChatChunk(choices=[ChunkChoice(finish_reason="stop")])


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("hedge_s", [math.inf, 0.08, 5.0])
@pytest.mark.parametrize(("ttft_s", "outcome"), [(0.05, "answered"), (None, "first_token_timeout")])
def test_an_answer_that_lies_unread_is_read(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], hedge_s: float, ttft_s: float | None, outcome: str
) -> None:
    """The process stands still past the first token's limit, before the first chunk; also with a second engine near."""
    cloud, spare = LateToken(NullConfig(id="c", locality="cloud")), LateToken(NullConfig(id="v"))
    cloud.ttft_s, spare.ttft_s = ttft_s, None
    first = Attempt("c", "cloud", "first", start="at_once", first_token_s=0.1, hedge_s=hedge_s)
    plan = AttemptPlan((first, Attempt("v", "vehicle", "spare", first_token_s=0.1)), deadline_s=5.0)

    async def answer() -> str:
        run = Run(Lineup({"c": cloud, "v": spare}), RouteConfig(), plan, ask(), Deadline.after(5.0))
        asyncio.get_running_loop().call_later(0.03, time.sleep, 0.4)
        try:
            async for _ in run.chunks():
                pass
        except NoEngineLeft:
            pass
        return next(record.outcome for record in run.records if record.engine == "c")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(answer()) == outcome
