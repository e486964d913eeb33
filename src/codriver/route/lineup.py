"""The engines a router can choose from, and what it knows of each."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.engine import Engine
from codriver.observe.metrics import Metrics, NoMetrics

from .breaker import Breaker
from .condition import NO_SENSORS, NoSensors
from .config import BreakerConfig
from .link import LinkView, SteadyLink
from .quality import Quality
from .redact import NO_VEIL, NoVeil
from .spending import NO_SPENDING, NoSpending

# How many waits for a first token are kept of each engine, and how many it takes to speak of a quantile.
_WAITS = 64
_LEAST_WAITS = 20


@dataclass(slots=True)
class Pace:
    """Smoothed speed of one engine in seconds; the first guesses are a small model's on two cores."""

    ttft_s: float = 0.6
    token_s: float = 0.02
    tokens: float = 48.0
    _waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=_WAITS))

    def record(self, ttft_s: float, total_s: float, tokens: int) -> None:
        self.ttft_s += 0.2 * (ttft_s - self.ttft_s)
        self.tokens += 0.1 * (tokens - self.tokens)
        if tokens > 1:
            self.token_s += 0.2 * ((total_s - ttft_s) / (tokens - 1) - self.token_s)

    def waited(self, seconds: float) -> None:
        """A first token took this long, or had not come by then."""
        self._waits_s.append(seconds)

    def slow_s(self, quantile: float) -> float:
        """The ``quantile`` of the latest waits for a first token; ``inf`` while there are too few of them."""
        if len(self._waits_s) < _LEAST_WAITS:
            return math.inf
        ordered = sorted(self._waits_s)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]

    def needed_s(self, limit_tokens: int | None) -> float:
        """Time for an answer of usual length, with half as much again for safety."""
        tokens = min(2 * self.tokens, limit_tokens or self.tokens * 2)
        return 1.5 * (self.ttft_s + tokens * self.token_s)


@dataclass(slots=True)
class Lineup:
    """Engines in order of preference within their locality; ``link`` is the one that cloud engines share."""

    engines: Mapping[str, Engine]
    link: LinkView = field(default_factory=SteadyLink)
    quality: Quality = field(default_factory=Quality)
    metrics: Metrics | NoMetrics = field(default_factory=NoMetrics)
    clock: Clock = SYSTEM_CLOCK
    breaker_config: BreakerConfig = field(default_factory=BreakerConfig)
    spending: NoSpending = NO_SPENDING
    sensors: NoSensors = NO_SENSORS
    breakers: dict[str, Breaker] = field(init=False)
    paces: dict[str, Pace] = field(init=False)
    veil: NoVeil = field(init=False, default=NO_VEIL)
    _by_locality: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.breakers = {name: Breaker(self.breaker_config, self.clock) for name in self.engines}
        self.paces = {name: Pace() for name in self.engines}
        self._by_locality = {}
        for name, engine in self.engines.items():
            self._by_locality.setdefault(engine.card.locality, []).append(name)

    def of(self, locality: str) -> list[str]:
        return self._by_locality.get(locality, [])

    def without_link(self) -> Lineup:
        """The same engines, breakers and knowledge, for a router that does not look at the link."""
        blind = copy.copy(self)
        blind.link = SteadyLink()
        return blind

    def veiled(self, veil: NoVeil) -> Lineup:
        """The same with the engines as a request that needs ``veil`` may see them."""
        if veil is NO_VEIL:
            return self
        seen = copy.copy(self)
        seen.engines, seen.veil = veil.over(self.engines), veil
        return seen

    def link_down(self, engine: str) -> bool:
        return self.engines[engine].card.locality == "cloud" and self.link.state == "down"
