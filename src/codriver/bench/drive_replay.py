"""The replayed drive: thousands of recorded outcomes through the real router, in virtual time, over a recorded link.

Whether an answer is right is known from the recording of the model that wrote it; how long it takes is drawn: the
cloud's time from recorded calls of a hosted model (taskdistill), the vehicle's from figures measured on SmolLM2-135M
with llama.cpp on two cores. So accuracy is that of the recorded pair of models, time that of a small car. An answer
that broke off is begun anew elsewhere (``failover`` restart), because only whole answers have a verdict.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Price
from codriver.core.errors import CodriverError
from codriver.core.messages import Policy, RequestOptions
from codriver.core.virtual import LoopClock, run_virtual
from codriver.engines.replay import EmpiricalTiming, FixedTiming, Recording, Replay, ReplayConfig, last_user_text
from codriver.route.config import LinkConfig, RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.link import LinkMonitor, LinkView, SteadyLink
from codriver.route.quality import Quality

from . import datasets
from .datasets import Outcome
from .drive_outcomes import Fate, PolicyRun
from .drive_settings import DriveSettings, Window
from .drive_settings import policy as named
from .folds import FOLDS
from .replay_link import FarEngine, VirtualLink
from .replay_router import FoldRouter, fold_of, request_for

# llama.cpp by its wheel, SmolLM2-135M Q4_1, two cores: 404 prompt and 88 answer tokens a second.
VEHICLE_TIMING = FixedTiming(ttft_ms=40.0, per_token_ms=1e3 / 88, per_prompt_token_ms=1e3 / 404, spread=0.2)
_DEADLINE_S, _FIRST_TOKEN_S = 15.0, 4.0
_CHUNK_TOKENS = 16
_EVERY_S = 1.0  # a request a second


@dataclass(frozen=True)
class Pair:
    """Recorded outcomes of one weak and one strong model, which one router serves."""

    name: str
    models: str
    outcomes: tuple[Outcome, ...]

    def part(self, count: int, seed: int) -> Pair:
        """At most ``count`` of its outcomes, drawn with a seed, in order."""
        if count >= len(self.outcomes):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.outcomes)), count))
        return Pair(self.name, self.models, tuple(self.outcomes[i] for i in chosen))


def pairs(folder: Path) -> tuple[Pair, ...]:
    """The recorded pairs in ``folder/routing``. Errors: :class:`MissingFile`."""
    routing = folder / "routing"
    together = (*datasets.routellm_mmlu(routing / "routellm_mmlu"), *datasets.routellm_gsm8k(routing))
    return (
        Pair("routellm", "Mixtral-8x7B in the vehicle's place, GPT-4-1106 in the cloud", together),
        Pair("mmlu-pro", "Phi-3-mini in the vehicle's place, Gemini-1.5-Pro in the cloud", datasets.mmlu_pro(routing)),
    )


def cloud_timing(taskdistill: Path) -> EmpiricalTiming:
    """Of 16,083 recorded calls, short answers and longer ones. Errors: :class:`MissingFile`."""
    calls = [*datasets.cloud_calls(taskdistill), *datasets.cloud_calls(taskdistill, "invoices")]
    return EmpiricalTiming.from_calls([(call.latency_ms, call.completion_tokens) for call in calls])


@dataclass(frozen=True)
class Replayed:
    """What a replayed drive is run with; ``window`` says where in the trace it begins."""

    window: Window
    timing: EmpiricalTiming
    settings: DriveSettings
    call_budget: float = 0.49

    def wanted_calls(self) -> float:
        """The share of requests to want the cloud for, so that the budget's share is called: none is in an outage that
        the router has noticed. A car knows this of its link from experience; here it comes from the whole trace.
        """
        trace, link = self.window.trace, LinkConfig()
        unnoticed_s = link.down_after_s + link.idle_interval_s / 2
        dark_s = sum(max(0.0, end - start - unnoticed_s) for start, end in trace.outages())
        return self.call_budget / (1.0 - dark_s / trace.duration_s)


def drive_pair(policy: str, pair: Pair, routers: Sequence[FoldRouter], given: Replayed) -> PolicyRun:
    """One policy over all of a pair's outcomes. The router drives once per fold, each with what that fold may know."""
    run = PolicyRun(policy=policy, trace=given.window.trace.name, fates=[], planned=len(pair.outcomes))
    parts: list[tuple[list[Outcome], FoldRouter | None]] = [(list(pair.outcomes), None)]
    if named(policy).router:
        by_fold = [[o for o in pair.outcomes if fold_of(o) == fold] for fold in range(FOLDS)]
        parts = list(zip(by_fold, routers, strict=True))
    for number, (outcomes, router) in enumerate(parts):
        start_s = given.window.start_s + number * 101.0
        run.fates += run_virtual(_Road(outcomes, given, start_s).drive(policy, router))
    return run


class _Road:
    """One drive in virtual time; made outside the loop, run inside it."""

    def __init__(self, outcomes: Sequence[Outcome], given: Replayed, start_s: float) -> None:
        self._outcomes = outcomes
        self._given = given
        self._start_s = start_s

    async def drive(self, policy: str, router: FoldRouter | None) -> list[Fate]:
        clock = LoopClock()
        link = VirtualLink(
            self._given.window.trace, clock, self._start_s, base_delay_ms=self._given.settings.base_delay_ms
        )
        monitor = LinkMonitor(link.probe, clock=clock)
        aware = named(policy).router
        hybrid = HybridEngine(self._lineup(link, monitor, aware, router), _config(policy, router, self._given))
        probing = asyncio.ensure_future(monitor.run()) if aware else None
        chance = random.Random(f"replay:{self._given.settings.seed}")
        length_s = len(self._outcomes) * _EVERY_S
        times_s = sorted(chance.uniform(0.0, length_s) for _ in self._outcomes)
        order = list(self._outcomes)
        chance.shuffle(order)
        try:
            asked = [self._ask(hybrid, at_s, one, policy) for at_s, one in zip(times_s, order, strict=True)]
            return list(await asyncio.gather(*asked))
        finally:
            if probing is not None:
                probing.cancel()
                with suppress(asyncio.CancelledError):
                    await probing

    def _lineup(self, link: VirtualLink, monitor: LinkMonitor, aware: bool, router: FoldRouter | None) -> Lineup:
        clock = LoopClock()
        seed = self._given.settings.seed
        price = self._given.settings.price
        weak = Replay(
            EngineCard("vehicle", "vehicle", "weak"),
            _recordings(self._outcomes, lambda one: one.weak_text),
            VEHICLE_TIMING,
            ReplayConfig(seed=seed, slots=4, chunk_tokens=_CHUNK_TOKENS),
            clock,
        )
        strong = Replay(
            EngineCard("cloud", "cloud", "strong", price=Price(price.input_usd, price.output_usd)),
            _recordings(self._outcomes, lambda one: one.strong_text),
            self._given.timing,
            ReplayConfig(seed=seed, chunk_tokens=_CHUNK_TOKENS),
            clock,
        )
        for engine in (weak, strong):
            engine.key_of = lambda request: request.user or last_user_text(request)
        view: LinkView = monitor if aware else SteadyLink()
        far = FarEngine(strong, link, monitor)
        quality = router.quality if router is not None else Quality()
        return Lineup({"vehicle": weak, "cloud": far}, view, quality, clock=clock)

    async def _ask(self, hybrid: HybridEngine, at_s: float, outcome: Outcome, policy: str) -> Fate:
        clock = LoopClock()
        await clock.sleep(at_s - clock.monotonic_s())
        options = RequestOptions(failover="restart", first_token_ms=1e3 * _FIRST_TOKEN_S)
        request = msgspec.structs.replace(request_for(outcome), stream=True, codriver=options)
        began_s = clock.monotonic_s()
        ttft_s: float | None = None
        answer, error = Answer(), ""
        try:
            stream = hybrid.generate(request, Deadline.after(_DEADLINE_S, clock))
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    if ttft_s is None and chunk.text():
                        ttft_s = clock.monotonic_s() - began_s
                    answer.add(chunk)
        except CodriverError as failure:
            error = failure.code
        return self._fate(outcome, at_s, answer, _Times(ttft_s, clock.monotonic_s() - began_s, error, policy))

    def _fate(self, outcome: Outcome, at_s: float, answer: Answer, times: _Times) -> Fate:
        told: dict[str, Any] = answer.codriver if isinstance(answer.codriver, dict) else {}
        attempts = [dict(one) for one in told.get("attempts", [])]
        calls = [one for one in attempts if one["engine"] == "cloud" and not one["outcome"].startswith("skipped")]
        # A failed answer does not tell its attempts; only a policy that uses no cloud is known not to have called it.
        called = bool(calls) or (bool(times.error) and times.policy != "vehicle-only")
        place = None if times.error else told.get("engine")
        right = {"vehicle": outcome.weak_ok, "cloud": outcome.strong_ok}.get(str(place), False)
        prompt_tokens = max(1, len(outcome.prompt) // 4)
        price = self._given.settings.price
        most = max(1, len(outcome.strong_text or "A") // 4)
        return Fate(
            item=outcome.id,
            kind="question",
            source=outcome.source,
            at_s=at_s,
            deadline_s=_DEADLINE_S,
            outcome=times.error or ("in time" if times.total_s <= _DEADLINE_S else "late"),
            where="vehicle" if place == "vehicle" else "cloud" if place == "cloud" else "nobody",
            ttft_ms=None if times.ttft_s is None else 1e3 * times.ttft_s,
            total_ms=1e3 * times.total_s,
            correct=right,
            graded=True,
            why="as recorded",
            cloud_called=called,
            cost_usd=sum(
                price.cost_usd(prompt_tokens, min(most, _CHUNK_TOKENS * int(one.get("tokens", 0)))) for one in calls
            ),
            failovers=len(told.get("failovers", [])),
            link=str(told.get("link", "")),
        )


@dataclass(frozen=True, slots=True)
class _Times:
    ttft_s: float | None
    total_s: float
    error: str
    policy: str


def _recordings(outcomes: Sequence[Outcome], text: Callable[[Outcome], str | None]) -> dict[str, Recording]:
    """Where only right or wrong was recorded, the answer is a letter: these are questions of choice."""
    return {one.id: Recording(text(one) or "A", prompt_tokens=max(1, len(one.prompt) // 4)) for one in outcomes}


def _config(policy: str, router: FoldRouter | None, given: Replayed) -> RouteConfig:
    """The router's settings; the recorded answers carry no log-probabilities, so that the prior alone decides."""
    if router is not None:
        hedge_after = float(dict(named(policy).env).get("CODRIVER_ROUTE_HEDGE_AFTER", "0"))
        skip_below = router.skip_below(given.wanted_calls())
        return RouteConfig(policy="auto", skip_below=skip_below, min_confidence=0.0, hedge_after=hedge_after)
    names: dict[str, Policy] = {
        "vehicle-only": "vehicle-only",
        "cloud-only": "cloud-only",
        "cloud with fallback": "cloud-first",
    }
    return RouteConfig(policy=names[policy], link_aware=False)
