"""The link to the cloud: up, degraded or down, from what requests see and from small probes.

:class:`LinkTracker` is the rule, without time or sockets of its own. :class:`LinkMonitor` drives it: it probes often
while the cloud is in use, seldom otherwise, and tells listeners the moment the link goes down.

The rule: a probe that stays unanswered for ``down_after_s`` while no other byte arrives means *down*, so slow (a full
buffer on a cellular link, a model that thinks) is told from dead. A refused or reset connection is an answer: the
link works and the server does not, which is the circuit breaker's business. Coming back takes ``up_after`` answered
probes; the first one makes the link *degraded*, so that a flapping link is not trusted at once.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from codriver.core.cadence import Cadence
from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import CodriverError, DeadlineExceeded
from codriver.observe.journal import NO_JOURNAL, NoJournal
from codriver.observe.metrics import Metrics, NoMetrics

from .config import LinkConfig

LinkState = Literal["up", "degraded", "down"]
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ETIMEDOUT}
_WINDOW_S = 10


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """``rtt_s``: smoothed round trip; ``throughput_bps``: most bits heard in one second of the last ten; ``loss``:
    share of the last twenty probes without an answer; ``since_s``: how long the state has held. NaN where nothing is
    known yet.
    """

    state: LinkState
    rtt_s: float
    throughput_bps: float
    loss: float
    since_s: float


class LinkView(Protocol):
    """What the router needs of a link. ``state`` is asked several times a request, so it must cost nothing."""

    @property
    def state(self) -> LinkState: ...

    def estimate(self) -> LinkEstimate: ...

    def on_down(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` when the link goes down; the returned function takes it off again."""


_STEADY = LinkEstimate("up", math.nan, math.nan, 0.0, math.inf)


class SteadyLink:
    """A link that is always up: for engines that need none, and for a router told not to look."""

    state: LinkState = "up"

    def estimate(self) -> LinkEstimate:
        return _STEADY

    def on_down(self, listener: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class LinkTracker:
    """State from events. Every method takes the time in seconds; nothing here waits."""

    def __init__(self, config: LinkConfig, now_s: float) -> None:
        self._config = config
        self.state: LinkState = "up"
        self.changed_s = now_s
        self.rtt_s = math.nan
        self._heard_s = now_s
        self._probe_sent_s: float | None = None
        self._answered_in_row = 0
        self._probes: deque[bool] = deque(maxlen=20)
        self._heard: deque[list[int]] = deque()  # [second, bytes heard in it]

    def probe_sent(self, now_s: float) -> None:
        if self._probe_sent_s is None:
            self._probe_sent_s = now_s

    def probe_answered(self, now_s: float, rtt_s: float) -> None:
        self._probe_sent_s = None
        self._probes.append(True)
        self._heard_s = now_s
        self._answered_in_row += 1
        self.rtt_s = rtt_s if math.isnan(self.rtt_s) else 0.7 * self.rtt_s + 0.3 * rtt_s
        if self.state == "down":
            self.rtt_s = rtt_s
            self._become("degraded", now_s)
        self._judge_rtt(now_s)

    def probe_lost(self, now_s: float) -> None:
        """The probe was given up. It stays the oldest unanswered one: a new connection does not reset the count."""
        self._probes.append(False)
        self._answered_in_row = 0
        self._judge_silence(now_s)

    def unreachable(self, now_s: float) -> None:
        """The network itself said that there is no way."""
        self._probe_sent_s = None
        self._probes.append(False)
        self._answered_in_row = 0
        self._become("down", now_s)

    def heard(self, now_s: float, count_bytes: int) -> None:
        self._heard_s = now_s
        second = int(now_s)
        if self._heard and self._heard[-1][0] == second:
            self._heard[-1][1] += count_bytes
            return
        self._heard.append([second, count_bytes])
        while self._heard[0][0] <= second - _WINDOW_S:
            self._heard.popleft()

    def tick(self, now_s: float) -> None:
        self._judge_silence(now_s)

    def next_verdict_s(self) -> float:
        """When silence would next change the state; ``inf`` when nothing is awaited."""
        if self._probe_sent_s is None or self.state == "down":
            return math.inf
        return max(self._probe_sent_s, self._heard_s) + self._config.down_after_s

    def throughput_bps(self, now_s: float) -> float:
        recent = [count for second, count in self._heard if second > now_s - _WINDOW_S]
        return 8.0 * max(recent) if recent else math.nan

    def loss(self) -> float:
        return 1 - sum(self._probes) / len(self._probes) if self._probes else 0.0

    def _judge_silence(self, now_s: float) -> None:
        # A hair of tolerance, because a timer may fire a rounding error before its time.
        if self._probe_sent_s is not None and now_s + 1e-4 >= self.next_verdict_s():
            self._answered_in_row = 0
            self._become("down", now_s)

    def _judge_rtt(self, now_s: float) -> None:
        slow, fast = self._config.degraded_rtt_s, 0.7 * self._config.degraded_rtt_s
        if self.state == "up" and self.rtt_s > slow:
            self._become("degraded", now_s)
        elif self.state == "degraded" and self.rtt_s < fast and self._answered_in_row >= self._config.up_after:
            self._become("up", now_s)

    def _become(self, state: LinkState, now_s: float) -> None:
        if state != self.state:
            self.state, self.changed_s = state, now_s


class LinkMonitor:
    """Drives a tracker from real traffic (it is a ``LinkObserver``) and from ``probe``, which returns a round trip in
    seconds. ``cadence``: of the probes while the cloud is not in use; those of a cloud in use go on as configured.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[float]],
        config: LinkConfig | None = None,
        clock: Clock = SYSTEM_CLOCK,
        metrics: Metrics | NoMetrics | None = None,
        journal: NoJournal = NO_JOURNAL,
    ) -> None:
        self._journal = journal
        self._probe = probe
        self._config = config or LinkConfig()
        self._clock = clock
        self._metrics = metrics or NoMetrics()
        self._tracker = LinkTracker(self._config, clock.monotonic_s())
        self._told: LinkState = self._tracker.state
        self._listeners: set[Callable[[], None]] = set()
        self._awaited = 0
        self._in_use = asyncio.Event()
        self.cadence = Cadence()

    @property
    def state(self) -> LinkState:
        return self._tracker.state

    def estimate(self) -> LinkEstimate:
        t, now_s = self._tracker, self._clock.monotonic_s()
        return LinkEstimate(t.state, t.rtt_s, t.throughput_bps(now_s), t.loss(), now_s - t.changed_s)

    def on_down(self, listener: Callable[[], None]) -> Callable[[], None]:
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # LinkObserver

    def sent(self) -> None:
        self._awaited += 1
        self._in_use.set()

    def received(self, count_bytes: int) -> None:
        self._tracker.heard(self._clock.monotonic_s(), count_bytes)

    def settled(self) -> None:
        self._awaited = max(0, self._awaited - 1)
        if not self._awaited:
            self._in_use.clear()

    def failed(self, reason: str) -> None:
        """A request failed on the way: the next probe, ``probe_interval_s`` away at most, says if it was the link."""
        self._in_use.set()

    async def run(self) -> None:
        """Probe until cancelled, and never twice within ``probe_interval_s``: a client that asks one thing after the
        other would otherwise send a probe along with every request.
        """
        while True:
            await self._probe_once()
            probed_s = self._clock.monotonic_s()
            if self._awaited == 0 and self._tracker.state == "up":
                await self._idle()
                if not self._awaited:
                    self._in_use.clear()
            early_s = probed_s + self._config.probe_interval_s - self._clock.monotonic_s()
            if early_s > 0:
                await self._clock.sleep(early_s)

    async def _idle(self) -> None:
        """Until the cloud is used, or the next probe is due."""
        wake = asyncio.ensure_future(self._in_use.wait())
        try:
            await self._first_of(wake, self.cadence.stretched_s(self._config.idle_interval_s))
            while self.cadence.factor == 0 and not wake.done():
                await self._first_of(wake, self._config.idle_interval_s)
        finally:
            wake.cancel()

    async def _first_of(self, awaited: asyncio.Future[Any], seconds: float) -> None:
        """Return when ``awaited`` is done or ``seconds`` have passed on the injected clock."""
        timer = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait([awaited, timer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()

    async def _probe_once(self) -> None:
        started_s = self._clock.monotonic_s()
        give_up_s = started_s + self._config.retry_s
        self._tracker.probe_sent(started_s)
        task = asyncio.ensure_future(self._probe())
        try:
            while not task.done():
                wait_s = min(self._tracker.next_verdict_s(), give_up_s) - self._clock.monotonic_s()
                await self._first_of(task, max(0.001, wait_s))
                now_s = self._clock.monotonic_s()
                if task.done():
                    break
                self._tracker.tick(now_s)
                self._announce()
                if now_s >= give_up_s:
                    break
        finally:
            if not task.done():
                task.cancel()
                task.add_done_callback(_forget)
        now_s = self._clock.monotonic_s()
        if task.done():
            self._judge(task, now_s, now_s - started_s)
        else:
            self._tracker.probe_lost(now_s)
        self._announce()

    def _judge(self, task: asyncio.Future[float], now_s: float, took_s: float) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self._tracker.probe_answered(now_s, task.result())
        elif _no_way(error):
            self._tracker.unreachable(now_s)
        elif isinstance(error, (DeadlineExceeded, TimeoutError, asyncio.CancelledError)):
            self._tracker.probe_lost(now_s)
        elif isinstance(error, (OSError, CodriverError)):
            # Refused, reset or an HTTP error: bytes came back, so the link itself works.
            self._tracker.probe_answered(now_s, took_s)
        else:
            raise error

    def _announce(self) -> None:
        estimate = self.estimate()
        self._metrics.link(estimate.state, estimate.rtt_s, estimate.throughput_bps)
        self._journal.link(estimate.state, estimate.rtt_s, estimate.throughput_bps)
        told, self._told = self._told, estimate.state
        if told != "down" and estimate.state == "down":
            for listener in tuple(self._listeners):
                listener()


def _forget(task: asyncio.Future[float]) -> None:
    """Take note of a given-up probe's end, so that nothing complains that nobody did."""
    if not task.cancelled():
        task.exception()


def _no_way(error: BaseException) -> bool:
    """True when an error, or one it came from, says that the network has no way to the server."""
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, socket.gaierror) or (isinstance(seen, OSError) and seen.errno in _UNREACHABLE):
            return True
        seen = seen.__cause__ if seen is not None else None
    return False
