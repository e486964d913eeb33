"""What a drive is made of: its length, its rate of requests, its policies, and the assumptions behind its figures."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from codriver.core.errors import BadConfigValue

from . import traces
from .traces import LinkTrace


@dataclass(frozen=True, slots=True)
class DrivePolicy:
    """A way of answering, as the vehicle's settings. ``title`` is the rows' ``system``; ``router``: by what the router
    knows, and not in a fixed order; ``replays``: recorded outcomes can tell what becomes of it; ``scores``: its cloud
    scores drafts.
    """

    title: str
    env: tuple[tuple[str, str], ...]
    sentence: str
    router: bool = False
    replays: bool = True
    scores: bool = False


# Who knows nothing of documents sends them as they are.
_WHOLE = ("CODRIVER_ROUTE_CONDENSE", "never")
_ROUTER = (("CODRIVER_ROUTE_POLICY", "auto"), ("CODRIVER_ROUTE_LINK_AWARE", "1"))
POLICIES: tuple[DrivePolicy, ...] = (
    DrivePolicy(
        "vehicle-only",
        (("CODRIVER_ROUTE_POLICY", "vehicle-only"), _WHOLE),
        "The model on board answers everything.",
    ),
    DrivePolicy(
        "cloud-only",
        (("CODRIVER_ROUTE_POLICY", "cloud-only"), _WHOLE),
        "Everything goes over the link; nobody steps in when it is gone.",
    ),
    DrivePolicy(
        "cloud with fallback",
        (("CODRIVER_ROUTE_POLICY", "cloud-first"), ("CODRIVER_ROUTE_LINK_AWARE", "0"), _WHOLE),
        "A gateway with time-outs and a fallback list: the cloud first, the vehicle when the cloud fails or is late.",
    ),
    DrivePolicy(
        "codriver",
        _ROUTER,
        "The router: it watches the link, knows its own model's strengths, and goes on where an answer broke off.",
        router=True,
    ),
    DrivePolicy(
        "codriver with hedging",
        (*_ROUTER, ("CODRIVER_ROUTE_HEDGE_AFTER", "0.95")),
        "The router; a cloud slower to begin than 95 times of 100 is joined by the next, and the quicker one answers.",
        router=True,
    ),
    DrivePolicy(
        "codriver with everything on",
        (
            *_ROUTER,
            ("CODRIVER_ROUTE_HEDGE_AFTER", "0.95"),
            ("CODRIVER_ROUTE_BUDGET_USD", "0.0001"),
            ("CODRIVER_ROUTE_BUDGET_DAY_USD", "0.001"),
        ),
        "The router with hedging, at most 0.01 cents an answer and 0.1 cents a day.",
        router=True,
        replays=False,
    ),
    DrivePolicy(
        "codriver with a first sentence",
        (*_ROUTER, ("CODRIVER_ROUTE_LEAD_SENTENCE", "1")),
        "The router; where the cloud is to answer and is slower to begin, the vehicle gives the first sentence.",
        router=True,
        replays=False,
    ),
    DrivePolicy(
        "codriver with verified drafts",
        (
            *_ROUTER,
            ("CODRIVER_CLOUD_PREFILL", "vllm"),
            ("CODRIVER_CLOUD_VERIFY", "vllm"),
        ),
        "The router; a draft that is not good enough is scored by the cloud, which goes on from where it disagrees.",
        router=True,
        replays=False,
        scores=True,
    ),
)
# What a drive compares when nothing is asked for.
USUAL = ("vehicle-only", "cloud-only", "cloud with fallback", "codriver")


@dataclass(frozen=True, slots=True)
class CloudPrice:
    """US dollars per million tokens that a cloud attempt is taken to cost.

    The cloud of the drive is a stand-in on this machine and costs nothing. The default is an assumption: the list price
    of a small hosted model (GPT-4o mini at its introduction, July 2024).
    """

    input_usd: float = 0.15
    output_usd: float = 0.60

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6


@dataclass(frozen=True)
class DriveSettings:
    """One drive. ``start_s`` None takes the window by :func:`worst_window`; ``classes`` makes a tenth of the requests
    local_only and a seventh redact; with ``documents`` every tenth is a question about documents of the vehicle.
    """

    traces: tuple[str, ...] = ("TMobile-UMTS-driving",)
    seconds: float = 100.0
    start_s: float | None = None
    requests_per_minute: float = 20.0
    seed: int = 1
    policies: tuple[str, ...] = USUAL
    base_delay_ms: float = 20.0
    classes: bool = False
    documents: bool = False
    price: CloudPrice = CloudPrice()

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not self.requests_per_minute > 0:
            raise BadConfigValue("A drive needs more than zero seconds and requests per minute.", param="seconds")
        for name in self.policies:
            policy(name)

    @property
    def count(self) -> int:
        return max(1, round(self.requests_per_minute * self.seconds / 60))


def policy(title: str) -> DrivePolicy:
    """Errors: :class:`BadConfigValue` naming those that there are."""
    for known in POLICIES:
        if title in (known.title, known.title.replace(" ", "-")):
            return known
    told = ", ".join(f"'{known.title}'" for known in POLICIES)
    raise BadConfigValue(f"There is no drive policy '{title}'. Known are: {told}.", param="policy")


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a trace that a drive replays."""

    trace: LinkTrace
    start_s: float
    seconds: float

    def outages(self) -> list[tuple[float, float]]:
        """Outages of a second or more, in seconds since the window began, cut at its ends. The trace repeats."""
        found = []
        for lap in range(int((self.start_s + self.seconds) // self.trace.duration_s) + 1):
            for start, end in self.trace.outages():
                low = max(0.0, start + lap * self.trace.duration_s - self.start_s)
                high = min(self.seconds, end + lap * self.trace.duration_s - self.start_s)
                if low < high:
                    found.append((low, high))
        return found

    def told(self) -> str:
        outages = self.outages()
        dark_s = sum(end - start for start, end in outages)
        return (
            f"{self.trace.name}, {self.start_s:g} to {self.start_s + self.seconds:g} s of {self.trace.duration_s:g}: "
            f"{len(outages)} outages of a second or more, {dark_s:.1f} s ({dark_s / self.seconds:.0%}) without service"
        )


def window(name: str, settings: DriveSettings) -> Window:
    """Errors: :class:`UnknownEntry` for a trace that is not there."""
    trace = traces.load(name)
    start_s = settings.start_s
    if start_s is None:
        start_s = worst_window(trace, settings.seconds)
    elif not 0 <= start_s < trace.duration_s:
        raise BadConfigValue(
            f"Trace {name} lasts {trace.duration_s:g} s; it cannot begin at {start_s:g}.", param="start"
        )
    return Window(trace, start_s, settings.seconds)


def worst_window(trace: LinkTrace, seconds: float, most_dark: float = 0.3) -> float:
    """The start, in whole seconds, of the window with most outage time, but no more than ``most_dark`` of it.

    It does not begin in an outage, so that every policy starts with a link. A drive longer than the trace starts at 0.
    """
    best, best_dark = 0.0, -1.0
    outages = trace.outages()
    for start in range(max(1, math.floor(trace.duration_s - seconds) + 1)):
        dark = sum(max(0.0, min(end, start + seconds) - max(begin, start)) for begin, end in outages) / seconds
        begins_dark = any(begin < start + 2.0 and end > start for begin, end in outages)
        if best_dark < dark <= most_dark and not begins_dark:
            best, best_dark = float(start), dark
    return best


def arrivals(count: int, seconds: float, seed: int) -> Sequence[float]:
    """Times of ``count`` requests in a window: a Poisson process given its count is ``count`` uniform times, sorted."""
    chance = random.Random(f"arrivals:{seed}")
    return sorted(chance.uniform(0.0, seconds) for _ in range(count))
