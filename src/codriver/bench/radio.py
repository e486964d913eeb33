"""One direction of a radio link: a first-in-first-out queue that empties as fast as a trace allows.

The rule: a packet leaves at the first instant by which the trace could have passed it after everything before it.
Capacity that nobody used is gone. Nothing here knows about sockets, so a test can drive it on a manual clock.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from codriver.core.clock import Clock

from .traces import PACKET_BYTES, CapacityCurve, Direction, LinkTrace

BATCH_MS = 5.0
"""In steady traffic packets leave in batches this far apart, which keeps the wake-ups at 200 a second."""


class TraceTime:
    """Milliseconds into the trace. At ``scale`` 1 they pass like real ones; at 10 the trace runs ten times as fast."""

    def __init__(self, clock: Clock, start_s: float, scale: float) -> None:
        self._clock = clock
        self._scale = scale
        self._start_ms = start_s * 1000
        self._began_s = clock.monotonic_s()

    def now_ms(self) -> float:
        return self._start_ms + (self._clock.monotonic_s() - self._began_s) * 1000 * self._scale

    async def sleep_ms(self, trace_ms: float) -> None:
        await self._clock.sleep(trace_ms / 1000 / self._scale)


@dataclass(frozen=True, slots=True)
class Packet:
    """What takes ``cost_bytes`` of the link; ``passed`` is called when it has left, and must not block."""

    cost_bytes: int
    passed: Callable[[], None]


class Lane:
    """One direction, shared by all connections. ``run`` is its service loop; ``put`` never blocks, ``room`` does."""

    def __init__(
        self, trace: LinkTrace, direction: Direction, time: TraceTime, *, loop: bool, queue_bytes: int
    ) -> None:
        self.queued_bytes = 0
        self.passed_bytes = 0
        self._curve = CapacityCurve(trace.steps(direction), trace.step_ms, loop)
        self._mean_per_ms = sum(trace.steps(direction)) / (trace.duration_s * 1000)
        self._time = time
        self._limit_bytes = queue_bytes
        self._queue: deque[Packet] = deque()
        self._forced: bool | None = None
        self._credit_bytes = 0.0
        self._credited_ms = time.now_ms()
        self._pending = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._sleeper: asyncio.Task[None] | None = None

    def put(self, packet: Packet) -> None:
        if not self._queue:
            # An idle link saves nothing up.
            self._credit_bytes, self._credited_ms = 0.0, self._time.now_ms()
            self._pending.set()
        self._queue.append(packet)
        self.queued_bytes += packet.cost_bytes
        if self.queued_bytes >= self._limit_bytes:
            self._room.clear()

    async def room(self) -> None:
        """Wait until the queue is below its bound."""
        await self._room.wait()

    def force(self, up: bool | None) -> None:
        """False: nothing passes. True: the trace's mean rate, without its outages. None: the trace."""
        self._credit()
        self._forced = up
        if self._sleeper is not None:
            self._sleeper.cancel()

    async def run(self) -> None:
        """Serve until cancelled. Asleep while nothing is queued, and through outages."""
        try:
            while True:
                await self._pending.wait()
                self._credit()
                self._serve()
                if self._queue:
                    await self._pause()
        finally:
            if self._sleeper is not None:
                self._sleeper.cancel()

    def _credit(self) -> None:
        now_ms = self._time.now_ms()
        if self._forced is None:
            self._credit_bytes += self._curve.bytes_until(now_ms) - self._curve.bytes_until(self._credited_ms)
        elif self._forced:
            self._credit_bytes += self._mean_per_ms * (now_ms - self._credited_ms)
        self._credited_ms = now_ms

    def _serve(self) -> None:
        while self._queue and self._queue[0].cost_bytes <= self._credit_bytes + 1e-3:
            packet = self._queue.popleft()
            self._credit_bytes -= packet.cost_bytes
            self.queued_bytes -= packet.cost_bytes
            self.passed_bytes += packet.cost_bytes
            packet.passed()
        if self.queued_bytes < self._limit_bytes:
            self._room.set()
        if not self._queue:
            self._pending.clear()

    async def _pause(self) -> None:
        """Sleep until the first packet may leave; full ones, a sign of bulk, go in batches. ``force`` cuts it short."""
        now_ms = self._credited_ms
        missing = self._queue[0].cost_bytes - self._credit_bytes
        if self._forced is None:
            due_ms = self._curve.time_ms(self._curve.bytes_until(now_ms) + missing) - now_ms
        else:
            due_ms = missing / self._mean_per_ms if self._forced and self._mean_per_ms else math.inf
        if self._queue[0].cost_bytes == PACKET_BYTES:
            due_ms = max(due_ms, BATCH_MS)
        # A link that stays down is looked at again every hour; ``force`` wakes it at once.
        self._sleeper = asyncio.ensure_future(self._time.sleep_ms(min(due_ms, 3_600_000.0)))
        await asyncio.wait({self._sleeper})
        self._sleeper = None
