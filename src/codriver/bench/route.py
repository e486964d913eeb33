"""Who should be asked? Routers on recorded outcomes: area, cost, calibration, and the time that a decision takes.

Five folds by question; every router sees the other four. Beside ours stand chance, the category's mean (it is told the
subject, which a car is not), the nearest neighbours by embedding, and an oracle that knows both outcomes. Intervals are
95 % by bootstrap over questions, the difference to the category's mean paired. RouteLLM's published figures (Ong et al.
2024, arXiv:2406.18665) are for routers trained on other data and are left out: they could not be checked here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, EngineCard
from codriver.core.messages import ChatRequest, Message
from codriver.engines.null import Null, NullConfig
from codriver.route import evaluate
from codriver.route.decide import Decider
from codriver.route.evaluate import SHARES, Interval, Ranking
from codriver.route.fit import Examples, fit_model
from codriver.route.learned import LearnedQuality
from codriver.route.lineup import Lineup
from codriver.route.outcome_model import OutcomeModel
from codriver.route.quality import Quality

from .drive_inputs import data_folder
from .outcome_sets import EMBEDDER, OutcomeSet, cached_embeddings, embedding_engine, examples_of, outcome_sets
from .route_systems import CrossFit, category_mean, cross_fit, fit_figures, nearest, ranking
from .rows import Report, Row, machine

_QUICK = 400
_TIMED = 320
_WARM_UP = 20
Embed = Callable[..., np.ndarray]


def run(quick: bool = False) -> Report:
    """Measure and report. ``quick``: 400 questions of each set and fewer resamples. Errors: :class:`MissingFile`,
    :class:`MissingExtra`.
    """
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    embed = cached_embeddings(told=lambda line: print(line, flush=True))
    rows: list[Row] = []
    everything: list[Examples] = []
    for each in outcome_sets(data_folder(), _QUICK if quick else None):
        examples = examples_of([each], embed)
        everything.append(examples)
        rows += judge_set(each, examples, rounds=200 if quick else 1000)
    prompts = [one.prompt for each in outcome_sets(data_folder(), _TIMED // 3) for one in each.outcomes]
    rows += decision_times(prompts, fit_model(everything[0], EMBEDDER), embedding_engine(threads=1))
    return Report("route", machine(), begun, rows)


def judge_set(each: OutcomeSet, examples: Examples, rounds: int, seed: int = 0) -> list[Row]:
    """All rows of one set."""
    fitted = cross_fit(each, examples, EMBEDDER)
    gains = each.gains()
    weights = evaluate.resamples(len(gains), rounds, seed)
    known = f"{each.weak} {each.weak_good().mean():.3f}, {each.strong} {each.strong_good().mean():.3f}"
    systems: dict[str, Ranking] = {
        "codriver": ranking(each, fitted.scores),
        "category mean": ranking(each, category_mean(each)),
        "nearest neighbours": ranking(each, nearest(each, examples.embeddings)),
        "oracle": Ranking(gains, gains),
    }
    maker = _Rows(each.name, len(gains))
    rows: list[Row] = []
    for name, order in systems.items():
        rows.append(maker.of(name, "apgr", evaluate.area(order, weights), known if name == "codriver" else ""))
        rows += [maker.of(name, f"calls_at_{part:.0%}", evaluate.cost(order, part, weights)) for part in SHARES]
    chance = _by_chance(gains, rounds, seed)
    rows.append(maker.of("random at equal rate", "apgr", chance, "spread of random orders"))
    rows += [maker.of("random at equal rate", f"calls_at_{p:.0%}", Interval(p, p, p), "expected") for p in SHARES]
    for name in ("category mean", "nearest neighbours"):
        over = evaluate.difference(systems["codriver"], systems[name], weights)
        note = "paired; above the interval" if over.low > 0 else "paired; not above the interval"
        rows.append(maker.of("codriver", f"apgr_over_{name.replace(' ', '_')}", over, note))
    return rows + _fit_rows(each, fitted, maker)


def decision_times(prompts: list[str], model: OutcomeModel, embedder: Engine) -> list[Row]:
    """Time from a request to its plan on one core: read with the embedder, and by the words' model alone."""
    lineup_with = _lineup(
        LearnedQuality(model, embedder, {"vehicle": _first(model, 0), "cloud": _first(model, 1)}, 5.0)
    )
    requests = [ChatRequest(messages=[Message(role="user", content=prompt)]) for prompt in prompts]
    with _one_core():
        with_ms = asyncio.run(_time(lineup_with, requests))
        without_ms = asyncio.run(_time(_lineup(_calibrated()), requests))
    rows = []
    for case, taken in (("with embedding", with_ms), ("without embedding", without_ms)):
        for metric, share in (("decision_p50_ms", 50), ("decision_p99_ms", 99)):
            value = round(float(np.percentile(taken, share)), 4)
            note = "one core, request to plan, questions of the three sets"
            rows.append(Row("codriver", case, metric, value, "ms", len(taken), None, None, note))
    return rows


def _lineup(quality: Quality) -> Lineup:
    vehicle, cloud = Null(NullConfig(id="vehicle")), Null(NullConfig(id="cloud", locality="cloud"))
    vehicle.card = EngineCard("vehicle", "vehicle", capabilities=frozenset({"chat", "logprobs"}))
    return Lineup({"vehicle": vehicle, "cloud": cloud}, quality=quality)


def _calibrated() -> Quality:
    from importlib import resources

    from codriver.route.quality import load_calibration

    shipped = next(
        file
        for file in (resources.files("codriver.route") / "data").iterdir()
        if file.name.startswith("smollm2") and file.name.endswith(".json")
    )
    with resources.as_file(shipped) as path:
        return Quality({"vehicle": load_calibration(path)})


async def _time(lineup: Lineup, requests: list[ChatRequest]) -> list[float]:
    decider, taken = Decider(lineup), []
    for request in requests:
        began_s = time.perf_counter()
        await lineup.quality.read(request, Deadline.after(10.0))
        decider.plan(request, 30.0)
        taken.append(1e3 * (time.perf_counter() - began_s))
    return taken[_WARM_UP:]


@contextmanager
def _one_core() -> Iterator[None]:
    """The process on one of its cores, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _first(model: OutcomeModel, number: int) -> str:
    return list(model.file.heads)[number]


def _by_chance(gains: np.ndarray, rounds: int, seed: int) -> Interval:
    chance = np.random.default_rng(seed)
    areas = [Ranking(chance.random(len(gains)), gains).area() for _ in range(rounds)]
    low, high = np.percentile(areas, [2.5, 97.5])
    return Interval(0.5, float(low), float(high))


def _fit_rows(each: OutcomeSet, fitted: CrossFit, maker: _Rows) -> list[Row]:
    rows = []
    for model, told, good in (
        (each.weak, fitted.weak, each.weak_good()),
        (each.strong, fitted.strong, each.strong_good()),
    ):
        for metric, value in fit_figures(told, good).items():
            note = f"P(good) of {model}, out of fold"
            which = "weak" if model == each.weak else "strong"
            rows.append(
                Row("codriver", each.name, f"{which}_{metric}", round(value, 4), "", maker.count, None, None, note)
            )
    return rows


class _Rows:
    def __init__(self, case: str, count: int) -> None:
        self.case, self.count = case, count

    def of(self, system: str, metric: str, found: Interval, note: str = "") -> Row:
        value, low, high = (round(number, 4) for number in (found.value, found.low, found.high))
        return Row(system, self.case, metric, value, "", self.count, low, high, note)
