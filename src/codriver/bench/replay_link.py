"""A recorded link for virtual time: how long bytes take on a trace, and an engine at its far end.

The rule is the shaping proxy's, reduced to one request at a time: bytes pass as fast as the trace allows, nothing
passes in an outage, each way costs the propagation delay. Requests do not compete for the link here: a question and its
answer are a few kilobytes on a link of megabits.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from codriver.core.clock import Clock
from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health, LinkObserver, TextOnly
from codriver.core.messages import ChatChunk, ChatRequest
from codriver.engines.replay import Replay

from .traces import CapacityCurve, LinkTrace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PROBE_BYTES = 300
_EVENT_BYTES = 220  # a chunk's JSON around its text


class VirtualLink:
    """``start_s``: where in the trace it begins; the trace repeats."""

    def __init__(self, trace: LinkTrace, clock: Clock, start_s: float = 0.0, base_delay_ms: float = 20.0) -> None:
        self._curves = {way: CapacityCurve(trace.steps(way), trace.step_ms) for way in ("down", "up")}
        self._trace = trace
        self._clock = clock
        self._offset_s = start_s - clock.monotonic_s()
        self._delay_s = base_delay_ms / 1e3

    async def carry(self, way: str, count_bytes: int, delayed: bool = True) -> None:
        """Wait until ``count_bytes`` have passed, and for the delay unless they follow others closely."""
        now_ms = 1e3 * (self._clock.monotonic_s() + self._offset_s)
        curve = self._curves[way]
        takes_s = (curve.time_ms(curve.bytes_until(now_ms) + count_bytes) - now_ms) / 1e3
        await self._clock.sleep(max(0.0, takes_s) + (self._delay_s if delayed else 0.0))

    async def probe(self) -> float:
        """A round trip, in seconds."""
        began_s = self._clock.monotonic_s()
        await self.carry("up", _PROBE_BYTES)
        await self.carry("down", _PROBE_BYTES)
        return self._clock.monotonic_s() - began_s


class FarEngine(TextOnly):
    """A replay engine at the other end of a link."""

    def __init__(self, engine: Replay, link: VirtualLink, observer: LinkObserver) -> None:
        self.card: EngineCard = engine.card
        self._engine = engine
        self._link = link
        self._observer = observer

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self._observer.sent()
        try:
            await self._link.carry("up", 600 + len(request.text()))
            stream = cast("AsyncGenerator[ChatChunk, None]", self._engine.generate(request, Deadline.never()))
            first = True
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    size = _EVENT_BYTES + len(chunk.text())
                    await self._link.carry("down", size, delayed=first)
                    first = False
                    self._observer.received(size)
                    yield chunk
        finally:
            self._observer.settled()

    def health(self) -> Health:
        return self._engine.health()

    async def aclose(self) -> None:
        await self._engine.aclose()
