"""What became of each request of a drive, and the figures made of it, each with its count and 95 % interval.

The rule: an answer counts when it is whole and came before the request's deadline on the asking side's clock. A right
answer that came late is no answer. Requests that cannot be wrong (small talk) are left out of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from codriver.core.messages import Privacy

Where = Literal["vehicle", "cloud", "mixed", "nobody"]


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """One request's way. ``at_s``: when it was asked, since the drive began; ``outcome``: ``in time``, ``late``, or the
    error's code; ``where``: who wrote the answer (``mixed``: more than one). ``correct`` is None where an answer cannot
    be wrong. ``cost_usd`` counts every cloud attempt, also one whose answer was not used.
    """

    item: str
    kind: str
    source: str
    at_s: float
    deadline_s: float
    outcome: str
    where: Where
    ttft_ms: float | None
    total_ms: float
    correct: bool | None
    graded: bool
    why: str
    cloud_called: bool
    cost_usd: float
    failovers: int
    link: str = ""
    attempts: list[dict[str, Any]] = []
    text: str = ""
    privacy: Privacy = "any"

    @property
    def leaked(self) -> bool:
        """A request that had to stay in the vehicle was put to the cloud."""
        return self.privacy == "local_only" and any(
            one.get("engine") == "cloud" and not str(one.get("outcome", "")).startswith("skipped")
            for one in self.attempts
        )

    @property
    def in_time(self) -> bool:
        return self.outcome == "in time"

    @property
    def right(self) -> bool:
        """Right and in time."""
        return self.in_time and self.correct is True


class LinkMoment(msgspec.Struct, frozen=True):
    """The link at ``t_s`` since the drive began: the truth of the trace, and what the vehicle believed."""

    t_s: float
    capacity_kbps: float
    up: bool
    queued_bytes: int
    believed: str


class PolicyRun(msgspec.Struct, kw_only=True):
    """One policy's drive. ``busy``: share of the window in which a process computed, in units of all cores."""

    policy: str
    trace: str
    fates: list[Fate]
    link: list[LinkMoment] = []
    busy: dict[str, float] = {}
    planned: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def complete(self) -> bool:
        return len(self.fates) >= self.planned


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval and the count behind it; NaN where nothing was measured."""

    value: float
    low: float
    high: float
    n: int


def share(hits: int, n: int) -> Figure:
    """A share with Wilson's score interval (Wilson 1927), which holds at small counts and at 0 and 1."""
    if n == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    z = 1.959964
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Figure(p, max(0.0, middle - half), min(1.0, middle + half), n)


def quantile(values: Iterable[float], q: float) -> Figure:
    """The q-quantile, interval by order statistics (binomial, normal approximation)."""
    ordered = sorted(values)
    n = len(ordered)
    if n == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    spread = 1.959964 * math.sqrt(n * q * (1 - q))

    def at(rank: float) -> float:
        return ordered[min(n - 1, max(0, round(rank)))]

    return Figure(at(q * (n - 1)), at(q * (n - 1) - spread), at(q * (n - 1) + spread), n)


def mean(values: Sequence[float]) -> Figure:
    """The mean, interval by the normal approximation."""
    n = len(values)
    if n == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    middle = sum(values) / n
    if n == 1:
        return Figure(middle, math.nan, math.nan, 1)
    spread = 1.959964 * math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1) / n)
    return Figure(middle, middle - spread, middle + spread, n)


@dataclass(frozen=True)
class Summary:
    """A policy's figures. ``kinds``: accuracy by kind of request."""

    policy: str
    trace: str
    n: int
    planned: int
    answered_in_time: Figure
    accuracy: Figure
    kinds: dict[str, Figure]
    cloud_calls: Figure
    ttft_p50_ms: Figure
    ttft_p95_ms: Figure
    ttft_p99_ms: Figure
    cost_usd: Figure
    bytes_up: float
    bytes_down: float
    leaks: int
    by_vehicle: int
    by_cloud: int
    mixed: int
    failovers: int
    failures: dict[str, int]


def summarise(run: PolicyRun) -> Summary:
    fates = run.fates
    graded = [fate for fate in fates if fate.graded]
    waits = [fate.ttft_ms for fate in fates if fate.ttft_ms is not None]
    failures: dict[str, int] = {}
    for fate in fates:
        if not fate.in_time:
            failures[fate.outcome] = failures.get(fate.outcome, 0) + 1
    return Summary(
        policy=run.policy,
        trace=run.trace,
        n=len(fates),
        planned=max(run.planned, len(fates)),
        answered_in_time=_share_of(fates, lambda fate: fate.in_time),
        accuracy=_share_of(graded, lambda fate: fate.right),
        kinds={
            kind: _share_of([fate for fate in graded if fate.source == kind], lambda fate: fate.right)
            for kind in sorted({fate.source for fate in graded})
        },
        cloud_calls=_share_of(fates, lambda fate: fate.cloud_called),
        ttft_p50_ms=quantile(waits, 0.5),
        ttft_p95_ms=quantile(waits, 0.95),
        ttft_p99_ms=quantile(waits, 0.99),
        cost_usd=mean([fate.cost_usd for fate in fates]),
        bytes_up=run.bytes_up / max(1, len(fates)),
        bytes_down=run.bytes_down / max(1, len(fates)),
        leaks=sum(fate.leaked for fate in fates),
        by_vehicle=sum(fate.in_time and fate.where == "vehicle" for fate in fates),
        by_cloud=sum(fate.in_time and fate.where == "cloud" for fate in fates),
        mixed=sum(fate.in_time and fate.where == "mixed" for fate in fates),
        failovers=sum(fate.failovers for fate in fates),
        failures=failures,
    )


def _share_of(fates: Sequence[Fate], hit: Callable[[Fate], bool]) -> Figure:
    return share(sum(hit(fate) for fate in fates), len(fates))
