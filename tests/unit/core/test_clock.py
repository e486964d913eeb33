"""Time as a value: the manual clock stands still until it is moved."""

from __future__ import annotations

import asyncio
import time

from codriver.core.clock import SYSTEM_CLOCK, ManualClock


async def test_sleepers_wake_in_order_and_not_before_their_time() -> None:
    clock, woken = ManualClock(), []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic_s() - 1000.0))

    tasks = [asyncio.ensure_future(sleeper(*each)) for each in (("c", 3.0), ("a", 1.0), ("b", 1.0), ("now", 0.0))]
    await clock.advance(0.5)
    assert woken == [("now", 0.0)]
    await clock.advance(2.0)
    assert woken[1:] == [("a", 1.0), ("b", 1.0)]
    tasks[0].cancel()
    await clock.advance(5.0)
    assert len(woken) == 3
    assert clock.monotonic_s() == 1007.5


async def test_a_sleeper_that_sleeps_again_wakes_in_the_same_advance() -> None:
    clock, seen = ManualClock(0.0), []

    async def ticking() -> None:
        while True:
            await clock.sleep(1.0)
            seen.append(clock.wall_s())

    task = asyncio.ensure_future(ticking())
    await clock.advance(3.5)
    assert seen == [1.0, 2.0, 3.0]
    task.cancel()


async def test_the_machines_own_clock() -> None:
    before = time.monotonic()
    await SYSTEM_CLOCK.sleep(0)
    assert before <= SYSTEM_CLOCK.monotonic_s() <= time.monotonic()
    assert abs(SYSTEM_CLOCK.wall_s() - time.time()) < 60
