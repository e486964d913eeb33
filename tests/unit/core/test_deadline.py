"""Deadlines: derived ones never outlive their parent, and waiting ends in time."""

from __future__ import annotations

import asyncio
import math

import pytest

from codriver.core.clock import ManualClock
from codriver.core.deadline import Deadline
from codriver.core.errors import DeadlineExceeded, FirstTokenTimeout


async def test_it_counts_down_and_expires() -> None:
    clock = ManualClock()
    deadline = Deadline.after(2.0, clock)
    assert deadline.remaining_s() == 2.0
    await clock.advance(1.5)
    assert not deadline.expired()
    await clock.advance(1.0)
    assert deadline.expired()
    assert deadline.remaining_s() == 0.0
    assert math.isinf(Deadline.never(clock).remaining_s())


def test_a_child_never_outlives_its_parent() -> None:
    clock = ManualClock()
    parent = Deadline.after(2.0, clock)
    assert parent.within(1.0).remaining_s() == 1.0
    assert parent.within(9.0).remaining_s() == 2.0
    assert parent.within(None) is parent
    assert Deadline.never(clock).within(3.0).remaining_s() == 3.0


async def test_waiting_ends_although_nothing_ever_comes() -> None:
    clock = ManualClock()
    stuck = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(Deadline.after(1.0, clock).wait(stuck, FirstTokenTimeout, "nothing came"))
    await clock.advance(0.9)
    assert not waiting.done()
    await clock.advance(0.2)
    with pytest.raises(FirstTokenTimeout, match="nothing came"):
        await waiting
    assert stuck.cancelled()


async def test_waiting_gives_the_result_or_the_error() -> None:
    clock = ManualClock()

    async def fails() -> None:
        raise KeyError("x")

    assert await Deadline.after(1.0, clock).wait(asyncio.sleep(0, 7)) == 7
    assert await Deadline.never(clock).wait(asyncio.sleep(0, 8)) == 8
    with pytest.raises(KeyError):
        await Deadline.after(1.0, clock).wait(fails())


async def test_a_cancelled_wait_cancels_the_work() -> None:
    for deadline in (Deadline.after(5.0, ManualClock()), Deadline.never(ManualClock())):
        stuck = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(deadline.wait(stuck))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert stuck.cancelled()


async def test_an_expired_deadline_ends_a_wait_at_once() -> None:
    with pytest.raises(DeadlineExceeded):
        await Deadline(0.0, ManualClock()).wait(asyncio.get_running_loop().create_future())
