"""A circuit breaker per engine: stop asking an engine that keeps failing, and find out cheaply when it is back.

Closed → open after ``failures`` in a row → half-open after a pause that doubles each time → one probe decides. Only
the engine's own failures count: a request it rightly refused, a client that left, and anything that happened while
the link was down do not.
"""

from __future__ import annotations

from typing import Literal

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import CodriverError, DeadlineExceeded, EngineBusy, EngineError, LinkDown, UpstreamRejected

from .config import BreakerConfig

BreakerState = Literal["closed", "open", "half-open"]


def blames(error: CodriverError) -> bool:
    """True when this failure is the engine's own and should count against it."""
    if isinstance(error, (LinkDown, UpstreamRejected)):
        return False
    return isinstance(error, (EngineError, DeadlineExceeded))


class Breaker:
    """``started`` tells whether the attempt is the one probe; its end is told back with that answer.

    Attempts that began before the breaker opened may end after it: their success closes it, their failure changes
    nothing, so that ten requests that die at once count as one reason to wait and not as ten.
    """

    def __init__(self, config: BreakerConfig | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config or BreakerConfig()
        self._clock = clock
        self._failures = 0
        self._opened_times = 0
        self._open_until_s: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._open_until_s is None:
            return "closed"
        return "open" if self._clock.monotonic_s() < self._open_until_s else "half-open"

    def allows(self) -> bool:
        """True when an attempt may start now. In half-open only one may be on its way."""
        if self._open_until_s is None:
            return True
        return self.state == "half-open" and not self._probing

    def started(self) -> bool:
        """True when the attempt that starts now is the probe."""
        probe = self.state == "half-open"
        self._probing = self._probing or probe
        return probe

    def succeeded(self) -> None:
        self._failures = self._opened_times = 0
        self._open_until_s = None
        self._probing = False

    def failed(self, error: CodriverError, probe: bool = False) -> None:
        if probe:
            self._probing = False
        elif self._open_until_s is not None:
            return
        if isinstance(error, EngineBusy) and error.retry_after_s is not None:
            self._open(error.retry_after_s)
        elif blames(error):
            self._failures += 1
            if probe or self._failures >= self._config.failures:
                self._opened_times += 1
                self._open(min(self._config.open_s * 2 ** (self._opened_times - 1), self._config.most_open_s))

    def abandoned(self, probe: bool = False) -> None:
        """The attempt ended without a verdict: cancelled, or the link went down under it."""
        if probe:
            self._probing = False

    def _open(self, seconds: float) -> None:
        self._open_until_s = self._clock.monotonic_s() + min(seconds, self._config.most_open_s)
