"""Virtual time: the same order as real time, none of its cost."""

from __future__ import annotations

import asyncio
import time

import pytest

from codriver.core.deadline import Deadline
from codriver.core.errors import DeadlineExceeded
from codriver.core.virtual import LoopClock, Stalled, run_virtual


def test_hours_pass_without_wall_time() -> None:
    async def main() -> float:
        await asyncio.sleep(36_000)
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run_virtual(main(), start_s=5.0) == pytest.approx(36_005.0)
    assert time.perf_counter() - began < 1.0


def test_sleepers_wake_in_order_of_their_time_and_of_their_start() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((name, round(loop.time(), 6)))
            if name == "b":
                await sleeper("b2", 0.5)

        await asyncio.gather(sleeper("c", 3), sleeper("b", 1), sleeper("d", 3), sleeper("a", 0))
        return woken

    assert run_virtual(main()) == [("a", 0), ("b", 1), ("b2", 1.5), ("c", 3), ("d", 3)]


def test_timeouts_queues_and_cancellation_work_as_on_a_real_loop() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        queue: asyncio.Queue[str] = asyncio.Queue()

        async def producer() -> None:
            for name in ("one", "two"):
                await asyncio.sleep(10)
                await queue.put(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(producer())
            seen.append(await queue.get())
            try:
                async with asyncio.timeout(3):
                    await queue.get()
            except TimeoutError:
                seen.append(f"timeout at {asyncio.get_running_loop().time():g}")
            seen.append(await queue.get())
        return seen

    assert run_virtual(main()) == ["one", "timeout at 13", "two"]


def test_a_deadline_on_the_loop_clock_fires() -> None:
    async def main() -> float:
        clock = LoopClock(wall_start_s=1_700_000_000.0)
        with pytest.raises(DeadlineExceeded):
            await Deadline.after(7.5, clock).wait(clock.sleep(100))
        assert clock.wall_s() == pytest.approx(1_700_000_007.5)
        return clock.monotonic_s()

    assert run_virtual(main()) == pytest.approx(7.5)


def test_exceptions_come_out_and_pending_tasks_are_cancelled() -> None:
    cancelled: list[bool] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            cancelled.append(True)

    async def main() -> None:
        task = asyncio.create_task(forever())
        await asyncio.sleep(1)
        assert not task.done()
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        run_virtual(main())
    assert cancelled == [True]


def test_a_deadlock_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codriver.core.virtual.THREAD_GRACE_S", 0.01)

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stalled, match="what no timer will bring"):
        run_virtual(main())


def test_a_thread_may_finish_when_no_timer_is_set() -> None:
    async def main() -> int:
        return await asyncio.to_thread(lambda: 7)

    assert run_virtual(main()) == 7


def test_twenty_thousand_sleeps_are_quick() -> None:
    async def one(index: int) -> None:
        for _ in range(20):
            await asyncio.sleep(0.01 + index * 1e-5)

    async def main() -> float:
        await asyncio.gather(*(one(index) for index in range(1_000)))
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run_virtual(main()) == pytest.approx(20 * (0.01 + 999e-5))
    assert time.perf_counter() - began < 20.0
