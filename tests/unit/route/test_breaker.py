"""The breaker's transitions, and that only the engine's own failures move it."""

from __future__ import annotations

import pytest

from codriver.core.clock import ManualClock
from codriver.core.errors import (
    BadImage,
    CodriverError,
    EngineBusy,
    EngineDied,
    EngineUnavailable,
    FirstTokenTimeout,
    LinkDown,
    UpstreamError,
    UpstreamRejected,
)
from codriver.route.breaker import Breaker, blames
from codriver.route.config import BreakerConfig


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> Breaker:
    return Breaker(BreakerConfig(failures=3, open_s=2.0, most_open_s=10.0), clock)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        assert breaker.allows()
        breaker.failed(EngineDied("x"), breaker.started())


@pytest.mark.parametrize(
    ("error", "guilty"),
    [
        (EngineDied("x"), True),
        (EngineUnavailable("x"), True),
        (UpstreamError("x"), True),
        (FirstTokenTimeout("x"), True),
        (LinkDown("x"), False),
        (UpstreamRejected("x"), False),
        (BadImage("x"), False),
    ],
)
def test_who_is_to_blame(error: CodriverError, guilty: bool) -> None:
    assert blames(error) is guilty


async def test_it_opens_after_failures_in_a_row_only(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"
    assert not breaker.allows()


async def test_half_open_lets_exactly_one_probe_through(breaker: Breaker, clock: ManualClock) -> None:
    fail(breaker, 3)
    await clock.advance(2.0)
    assert breaker.state == "half-open"
    assert breaker.allows()
    assert breaker.started() is True
    assert not breaker.allows()
    breaker.succeeded()
    assert breaker.state == "closed"


async def test_the_pause_doubles_up_to_its_bound(breaker: Breaker, clock: ManualClock) -> None:
    fail(breaker, 3)
    for pause_s in (2.0, 4.0, 8.0, 10.0, 10.0):
        await clock.advance(pause_s - 0.01)
        assert breaker.state == "open"
        await clock.advance(0.01)
        fail(breaker)
    breaker.succeeded()
    fail(breaker, 3)
    await clock.advance(2.0)
    assert breaker.state == "half-open"


async def test_many_that_die_at_once_count_as_one_reason_to_wait(breaker: Breaker, clock: ManualClock) -> None:
    begun = [breaker.started() for _ in range(10)]
    for probe in begun:
        breaker.failed(EngineDied("x"), probe)
    await clock.advance(2.0)
    assert breaker.state == "half-open"


async def test_an_old_attempt_does_not_end_the_probe(breaker: Breaker, clock: ManualClock) -> None:
    old = breaker.started()
    fail(breaker, 3)
    await clock.advance(2.0)
    assert breaker.started() is True
    breaker.abandoned(old)
    assert not breaker.allows()
    breaker.failed(EngineDied("x"), old)
    assert not breaker.allows()
    assert breaker.state == "half-open"


async def test_an_abandoned_probe_lets_the_next_one_try(breaker: Breaker, clock: ManualClock) -> None:
    fail(breaker, 3)
    await clock.advance(2.0)
    breaker.abandoned(breaker.started())
    assert breaker.allows()
    assert breaker.state == "half-open"


async def test_a_busy_engine_is_left_alone_for_as_long_as_it_asks(breaker: Breaker, clock: ManualClock) -> None:
    breaker.failed(EngineBusy("x", retry_after_s=5.0), breaker.started())
    assert not breaker.allows()
    await clock.advance(4.9)
    assert not breaker.allows()
    await clock.advance(0.2)
    assert breaker.allows()
    breaker.failed(EngineBusy("x", retry_after_s=1e9), breaker.started())
    await clock.advance(10.0)
    assert breaker.allows()
