"""Prometheus metrics of one process.

A :class:`Metrics` is made once in ``apps/`` and handed in; nothing is global. Rule: label values come from small
closed sets (routes of the table, engine ids, error codes), never from a request; an engine id beyond the first
``MAX_ENGINES`` is counted as ``other``, so that a bad configuration cannot make the series grow without end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .tally import Counts, Timings

MAX_ENGINES = 64
MAX_ROUTES = 128
CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LINK_STATES = ("up", "degraded", "down")
_BREAKER_STATES = ("closed", "open", "half_open")


class Metrics:
    """Counters, gauges and histograms named ``codriver_*``. Durations are in seconds, money in US dollars."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._engines: set[str] = set()
        self._breaker_states: dict[str, str] = {}
        self._define_requests()
        self._define_attempts()
        self._define_states()
        self._define_semantic()

    def _define_requests(self) -> None:
        self._requests = self._counter(
            "codriver_requests", "Requests answered, by route and HTTP status.", "route status"
        )
        self._request_s = self._histogram("codriver_request_duration_seconds", "Arrival to last byte.", "route")
        self._in_flight_now = 0
        gauge = Gauge("codriver_requests_in_flight", "Requests being answered now.", registry=self.registry)
        gauge.set_function(lambda: self._in_flight_now)
        tasks = Gauge(
            "codriver_tasks", "Tasks of the event loop; with no load always the same.", registry=self.registry
        )
        tasks.set_function(_tasks)

    def _define_attempts(self) -> None:
        self._attempts = self._counter("codriver_attempts", "Attempts at engines, by how they ended.", "engine outcome")
        self._attempt_s = self._histogram("codriver_attempt_duration_seconds", "Start to end of an attempt.", "engine")
        self._first_s = self._histogram("codriver_time_to_first_token_seconds", "Start to first token.", "engine")
        self._tokens = self._counter("codriver_tokens", "Tokens read and written, by engine.", "engine type")
        self._cost = self._counter("codriver_cost_usd", "What engines charged, in US dollars.", "engine")
        self._failovers = self._counter(
            "codriver_failovers", "Answers continued on another engine.", "from_engine to_engine policy"
        )
        self._escalations = self._counter("codriver_escalations", "Answers handed to a stronger engine.", "reason")

        self._hedges = self._counter(
            "codriver_hedges", "Slow first attempts that another joined, by who gave the answer.", "engine answered_by"
        )

    def _define_states(self) -> None:
        self._link_state = self._gauge("codriver_link_state", "1 for the state that the link is in.", "state")
        self._link_rtt = self._gauge("codriver_link_rtt_seconds", "Round trip time of the link, smoothed.", "")
        self._link_rate = self._gauge("codriver_link_throughput_bits_per_second", "Rate of the link, smoothed.", "")
        self._breaker = self._gauge(
            "codriver_breaker_state", "1 for the state that an engine's circuit breaker is in.", "engine state"
        )

        self._heat_step = self._gauge("codriver_heat_step", "1 for the row of the table of actions that holds.", "step")
        self._heat_c = self._gauge("codriver_heat_celsius", "Temperature that the table is followed by.", "")
        self._heat_c.set(math.nan)

    def _define_semantic(self) -> None:
        self._semantic_names: set[str] = set()
        self._semantic = self._counter("codriver_semantic_route", "Requests by the semantic route they took.", "route")
        self._cached = self._counter("codriver_semantic_cache", "Look-ups and keeps of the semantic cache.", "outcome")

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """``route`` is the pattern of the route table, not the path as asked."""
        self._requests.add(route, str(status))
        self._request_s.add(route, seconds)

    def attempt_ended(self, engine: str, outcome: str, seconds: float, ttft_s: float | None) -> None:
        """``outcome`` is ``ok`` or an error code; ``ttft_s`` is None where no token came."""
        engine = self._bounded(engine)
        self._attempts.add(engine, outcome)
        self._attempt_s.add(engine, seconds)
        if ttft_s is not None:
            self._first_s.add(engine, ttft_s)

    def tokens(self, engine: str, prompt: int, completion: int) -> None:
        engine = self._bounded(engine)
        self._tokens.add(engine, "input", by=prompt)
        self._tokens.add(engine, "output", by=completion)

    def cost(self, engine: str, usd: float) -> None:
        self._cost.add(self._bounded(engine), by=usd)

    def failover(self, from_engine: str, to_engine: str, policy: str) -> None:
        self._failovers.add(self._bounded(from_engine), self._bounded(to_engine), policy)

    def hedged(self, engine: str, answered_by: str) -> None:
        """Another attempt joined that of ``engine``, and one of the two brought a token first."""
        self._hedges.add(self._bounded(engine), self._bounded(answered_by))

    def escalated(self, reason: str) -> None:
        """``reason`` is a word of a closed set, for example ``low_confidence`` or ``schema``."""
        self._escalations.add(reason)

    def link(self, state: str, rtt_s: float | None, throughput_bps: float | None) -> None:
        """The link as the router sees it; ``state`` is up, degraded or down. None leaves a figure as it was."""
        for known in _LINK_STATES:
            self._link_state.labels(known).set(known == state)
        if rtt_s is not None:
            self._link_rtt.set(rtt_s)
        if throughput_bps is not None:
            self._link_rate.set(throughput_bps)

    def breaker(self, engine: str, state: str) -> None:
        """``state`` is closed, open or half_open (half-open is taken too)."""
        if self._breaker_states.get(engine) == state:
            return
        self._breaker_states[engine] = state
        engine, state = self._bounded(engine), state.replace("-", "_")
        for known in _BREAKER_STATES:
            self._breaker.labels(engine, known).set(known == state)

    def heat(self, step: str, steps: Sequence[str], celsius: float | None) -> None:
        """``step`` of the table's ``steps`` holds; None where no temperature is read."""
        for known in steps:
            self._heat_step.labels(known).set(known == step)
        self._heat_c.set(math.nan if celsius is None else celsius)

    def semantic_route(self, route: str) -> None:
        """``route`` is a name of the routes file, ``none`` where no route was sure, ``failed`` where none was sought.
        Files may change while the process runs: names beyond the first ``MAX_ROUTES`` are counted as ``other``.
        """
        if route not in self._semantic_names:
            if len(self._semantic_names) >= MAX_ROUTES:
                route = "other"
            else:
                self._semantic_names.add(route)
        self._semantic.add(route)

    def semantic_cache(self, outcome: str) -> None:
        """``outcome`` is hit, miss or kept."""
        self._cached.add(outcome)

    def in_flight(self, change: int) -> None:
        """+1 when a request arrives, -1 when it is answered."""
        self._in_flight_now += change

    def watch_spans(self, waiting: Callable[[], int], dropped: Callable[[], int]) -> None:
        """Show how many spans wait on disk for their collector and how many were dropped, asked at each scrape."""
        gauge = Gauge("codriver_spans_waiting", "Spans on disk until the collector is back.", registry=self.registry)
        gauge.set_function(waiting)
        lost = Gauge("codriver_spans_dropped", "Spans that no collector will get, since start.", registry=self.registry)
        lost.set_function(dropped)

    def render(self) -> tuple[bytes, str]:
        """The text exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE

    def _bounded(self, engine: str) -> str:
        if engine in self._engines:
            return engine
        if len(self._engines) >= MAX_ENGINES:
            return "other"
        self._engines.add(engine)
        return engine

    def _counter(self, name: str, text: str, labels: str) -> Counts:
        made = Counts(name, text, labels)
        self.registry.register(made)
        return made

    def _gauge(self, name: str, text: str, labels: str) -> Gauge:
        return Gauge(name, text, labels.split(), registry=self.registry)

    def _histogram(self, name: str, text: str, label: str) -> Timings:
        made = Timings(name, text, label, _SECONDS)
        self.registry.register(made)
        return made


def _tasks() -> float:
    """How many tasks the running loop has; none where no loop runs. Counted only when somebody looks."""
    try:
        return float(len(asyncio.all_tasks()))
    except RuntimeError:
        return 0.0


def _nothing(*_: object) -> None:
    return None


class NoMetrics(Metrics):
    """Counts nothing; ``render`` gives an empty page."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    request_ended: Callable[..., None] = staticmethod(_nothing)
    attempt_ended: Callable[..., None] = staticmethod(_nothing)
    tokens: Callable[..., None] = staticmethod(_nothing)
    cost: Callable[..., None] = staticmethod(_nothing)
    failover: Callable[..., None] = staticmethod(_nothing)
    hedged: Callable[..., None] = staticmethod(_nothing)
    escalated: Callable[..., None] = staticmethod(_nothing)
    link: Callable[..., None] = staticmethod(_nothing)
    breaker: Callable[..., None] = staticmethod(_nothing)
    heat: Callable[..., None] = staticmethod(_nothing)
    in_flight: Callable[..., None] = staticmethod(_nothing)
    semantic_route: Callable[..., None] = staticmethod(_nothing)
    semantic_cache: Callable[..., None] = staticmethod(_nothing)
