"""A point in time by which work must be done, on an injected clock.

A deadline is made once per request, at the edge; everything below derives shorter ones from it and
none can outlive its parent. Waiting under a deadline goes through :meth:`Deadline.wait`, which fires even when
the awaited thing never makes progress.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar

import msgspec

from .clock import SYSTEM_CLOCK, Clock
from .errors import DeadlineExceeded

T = TypeVar("T")


class Deadline(msgspec.Struct, frozen=True):
    """``at_s`` is on the clock's monotonic scale; ``math.inf`` means none."""

    at_s: float = math.inf
    clock: Clock = SYSTEM_CLOCK

    @classmethod
    def after(cls, seconds: float, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        return cls(clock.monotonic_s() + seconds, clock)

    @classmethod
    def never(cls, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        return cls(math.inf, clock)

    def remaining_s(self) -> float:
        """Seconds left; 0.0 when expired, ``inf`` when there is none."""
        return max(0.0, self.at_s - self.clock.monotonic_s())

    def expired(self) -> bool:
        return self.clock.monotonic_s() >= self.at_s

    def within(self, seconds: float | None) -> Deadline:
        """The earlier of this deadline and ``seconds`` from now."""
        if seconds is None:
            return self
        return Deadline(min(self.at_s, self.clock.monotonic_s() + seconds), self.clock)

    async def wait(self, work: Awaitable[T], error: type[DeadlineExceeded] = DeadlineExceeded, what: str = "") -> T:
        """Await ``work``; when time runs out first, cancel it and raise ``error``."""
        task = asyncio.ensure_future(work)
        if math.isinf(self.at_s):
            return await task
        timer = asyncio.ensure_future(self.clock.sleep(self.remaining_s()))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise error(what or "The deadline passed before the answer was complete.")
        finally:
            timer.cancel()
            if not task.done():
                task.cancel()
