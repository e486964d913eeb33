"""The drive, live or replayed: from settings to a result, to rows, and as a bench.

``live`` and ``replay`` give a :class:`DriveResult`; ``report_rows`` makes the rows every bench has; ``run`` is
``codriver bench drive``.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from codriver.catalogue import Catalogue, Store, pull
from codriver.core.errors import BadConfigValue, CodriverError, MissingExtra, MissingFile

from .datasets import Outcome
from .drive_inputs import CLOUD_TIMES, LIVE_ENTRIES, Inputs, data_folder, drive_items, with_classes, with_documents
from .drive_live import LiveDrive, Unwatched, Watch
from .drive_outcomes import Figure, PolicyRun, Summary, summarise
from .drive_replay import Pair, Replayed, cloud_timing, drive_pair, pairs
from .drive_result import DriveResult, Signal, live_notes, replay_notes
from .drive_settings import DriveSettings, policy, window
from .replay_router import (
    FoldRouter,
    accuracy,
    by_category,
    by_chance,
    by_oracle,
    cross_fit,
    cross_fit_learned,
    escalated,
)
from .rows import Report, Row, machine

_RESAMPLES = 1000


# ---------------------------------------------------------------- live


def live(settings: DriveSettings, watch: Watch | None = None, inputs: Inputs | None = None) -> DriveResult:
    """Drive live. A drive cut short by Ctrl-C, or by a process that died, raises :class:`CutShort` with what there is.

    Errors: :class:`MissingFile` (models, questions), and those of ``LiveDrive.run``.
    """
    inputs = inputs or Inputs.find()
    items = drive_items(settings.count, settings.seed, inputs.questions)
    if settings.documents:
        items = with_documents(items, inputs.questions, settings.seed)
    if settings.classes:
        items = with_classes(items)
    drive = LiveDrive(settings, inputs, items, watch)
    result = DriveResult("live", settings, {name: window(name, settings) for name in settings.traces}, drive.runs)
    try:
        asyncio.run(drive.run())
    except (KeyboardInterrupt, CodriverError) as error:
        if not any(run.fates for run in drive.runs):
            raise
        result.notes.extend(live_notes(settings, drive.runs))
        raise CutShort(replace(result, partial=True), error) from error
    result.notes.extend(live_notes(settings, drive.runs))
    return result


class CutShort(Exception):
    """A drive that did not come to its end: ``result`` is what there is of it, ``cause`` why."""

    def __init__(self, result: DriveResult, cause: BaseException) -> None:
        super().__init__("the drive was cut short")
        self.result = result
        self.cause = cause


# ---------------------------------------------------------------- replayed


def replay(
    settings: DriveSettings, most: int | None = None, watch: Watch | None = None, times: Path | None = None
) -> DriveResult:
    """Replay recorded outcomes, ``most`` per pair of models (None: all). ``times``: the taskdistill wheel, by default
    the store's. Errors: :class:`MissingFile`, :class:`MissingExtra`, :class:`BadConfigValue` for what was not recorded.
    """
    for title in settings.policies:
        if not policy(title).replays:
            raise BadConfigValue(
                f"'{title}' cannot be replayed: no recording tells what becomes of it. Drive it live.", param="policy"
            )
    if settings.classes:
        raise BadConfigValue("Privacy classes cannot be replayed: drive live, without --replay.", param="classes")
    if settings.documents:
        raise BadConfigValue("Documents cannot be replayed: drive live, without --replay.", param="documents")
    watch = watch or Unwatched()
    watch.said("reading recorded outcomes and call times")
    timing = cloud_timing(times or Store().path(Catalogue.load().entry(CLOUD_TIMES)))
    recorded = [pair.part(most or len(pair.outcomes), settings.seed) for pair in pairs(data_folder())]
    windows = {name: window(name, settings) for name in settings.traces}
    result = DriveResult("replay", settings, windows, [], notes=replay_notes(settings))
    routed: list[tuple[Pair, list[FoldRouter]]] = []
    for pair in recorded:
        watch.said(f"fitting the router on {len(pair.outcomes)} outcomes ({pair.models}), five folds")
        routed.append((pair, _routers(pair, watch, result.notes)))
        result.notes.append(f"{pair.name}: {pair.models}; {len(pair.outcomes)} requests.")
    for name in settings.traces:
        given = Replayed(windows[name], timing, settings)
        for pair, routers in routed:
            driven = [drive_pair_told(policy, pair, routers, given, watch) for policy in settings.policies]
            _add_cases(result, driven, (pair, escalated(pair.outcomes, routers, given.call_budget)))
    return result


def _routers(pair: Pair, watch: Watch, notes: list[str]) -> list[FoldRouter]:
    """By the quality model; where its parts are missing, by the words of a request alone, and the notes say so."""
    try:
        from .outcome_sets import cached_embeddings

        return cross_fit_learned(pair.outcomes, cached_embeddings(watch.said))
    except (ImportError, MissingExtra, MissingFile) as error:
        notes.append(f"{pair.name}: the router knew words only, without sentence embeddings. {error}")
        return cross_fit(pair.outcomes)


def drive_pair_told(policy: str, pair: Pair, routers: Sequence[FoldRouter], given: Replayed, watch: Watch) -> PolicyRun:
    watch.said(f"{policy}: {len(pair.outcomes)} requests of {pair.name} in virtual time")
    run = drive_pair(policy, pair, routers, given)
    watch.ended(summarise(run))
    return run


def _add_cases(result: DriveResult, driven: Sequence[PolicyRun], routed: tuple[Pair, list[bool]]) -> None:
    """A case for the pair, and one for each of its sets where it has several. ``routed``: with who is sent away."""
    pair, chosen = routed
    sources = sorted({outcome.source for outcome in pair.outcomes})
    cases = [(pair.name, sources)]
    if len(sources) > 1:
        cases += [(source, [source]) for source in sources]
    for name, members in cases:
        case = f"{driven[0].trace}/replay/{name}"
        part = [
            (outcome, call) for outcome, call in zip(pair.outcomes, chosen, strict=True) if outcome.source in members
        ]
        strong = {outcome.id: outcome.strong_ok for outcome, _ in part}
        cuts = [_cut(run, case, members) for run in driven]
        over_link = next((_right(cut) for cut in cuts if cut.policy == "cloud-only"), 0)
        result.runs.extend(cuts)
        result.signals.extend(_through_link(cut, strong, over_link) for cut in cuts)
        result.signals.extend(_yardsticks(case, part))


def _cut(run: PolicyRun, case: str, members: Sequence[str]) -> PolicyRun:
    fates = [fate for fate in run.fates if fate.source in members]
    return PolicyRun(policy=run.policy, trace=case, fates=fates, planned=len(fates))


def _right(run: PolicyRun) -> int:
    return sum(fate.right for fate in run.fates)


def _through_link(run: PolicyRun, strong: dict[str, bool], over_link: int) -> Signal:
    """``over_link``: how many the strong model got right over the same link; 0 when that was not driven."""
    calls = sum(fate.cloud_called for fate in run.fates) / max(1, len(run.fates))
    verdicts = [(fate.right, strong[fate.item]) for fate in run.fates]
    relative = _right(run) / over_link if over_link else math.nan
    return Signal(run.policy, run.trace, calls, strong_share(verdicts), through_link=True, over_link_share=relative)


def _yardsticks(case: str, part: Sequence[tuple[Outcome, bool]]) -> list[Signal]:
    outcomes = [outcome for outcome, _ in part]
    chosen = [call for _, call in part]
    count = sum(chosen)
    found = []
    for name, cloud in (
        ("codriver, link always up", chosen),
        ("category mean", by_category(outcomes, count)),
        ("random at equal rate", by_chance(outcomes, count)),
        ("oracle", by_oracle(outcomes, count)),
    ):
        right = accuracy(outcomes, cloud)
        figure = strong_share([(r, o.strong_ok) for r, o in zip(right, outcomes, strict=True)])
        found.append(Signal(name, case, count / max(1, len(outcomes)), figure, through_link=False))
    return found


def strong_share(verdicts: Sequence[tuple[bool, bool]], seed: int = 0) -> Figure:
    """Accuracy as a share of the strong model's, from (right, strong right) per request; paired bootstrap (Efron 1979).

    The four kinds of pair are counted, so that a resample is a draw of four numbers.
    """
    n = len(verdicts)
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    counts = [verdicts.count(kind) for kind in kinds]

    def ratio(some: Sequence[int]) -> float:
        return (some[0] + some[1]) / max(1, some[0] + some[2])

    chance = random.Random(seed)
    drawn = sorted(ratio(_multinomial(chance, n, counts)) for _ in range(_RESAMPLES))
    return Figure(ratio(counts), drawn[int(0.025 * _RESAMPLES)], drawn[int(0.975 * _RESAMPLES)], n)


def _multinomial(chance: random.Random, n: int, counts: Sequence[int]) -> list[int]:
    """``n`` draws among kinds with these counts, by conditional binomials in their normal approximation."""
    left, weight = n, float(sum(counts))
    drawn = []
    for count in counts:
        p = min(1.0, count / weight) if weight > 0 else 0.0
        got = round(chance.gauss(left * p, (left * p * (1 - p)) ** 0.5))
        got = min(left, max(0, got))
        drawn.append(got)
        left -= got
        weight -= count
    return drawn


# ---------------------------------------------------------------- rows


def report_rows(result: DriveResult) -> Report:
    """``system``: the policy; ``case``: the trace, and in a replay the set."""
    cut = "partial drive; " if result.partial else ""
    rows = [row for one in result.summaries() for row in _rows(one, cut + _window_note(result, one.trace))]
    for signal in result.signals:
        note = "through the recorded link" if signal.through_link else "as if the link were always up"
        figure = signal.strong_share
        rows.append(
            Row(
                signal.name, signal.case, "strong_share", figure.value, "share", figure.n, figure.low, figure.high, note
            )
        )
        if signal.through_link and not math.isnan(signal.over_link_share):
            told = "against the strong model over the same link"
            rows.append(
                Row(
                    signal.name,
                    signal.case,
                    "strong_share_over_link",
                    signal.over_link_share,
                    "share",
                    figure.n,
                    note=told,
                )
            )
        if not signal.through_link:
            rows.append(Row(signal.name, signal.case, "cloud_calls", signal.calls, "share", figure.n, note=note))
    return Report("drive", machine(), result.started, rows)


def _window_note(result: DriveResult, case: str) -> str:
    part = result.windows.get(case)
    if part is None:
        return "recorded outcomes in virtual time"
    more = ("; with privacy classes" * result.settings.classes) + ("; with documents" * result.settings.documents)
    return part.told() + more


def _rows(one: Summary, note: str) -> list[Row]:
    figures = {
        "answered_in_time": (one.answered_in_time, "share"),
        "accuracy": (one.accuracy, "share"),
        "cloud_calls": (one.cloud_calls, "share"),
        "ttft_p50_ms": (one.ttft_p50_ms, "ms"),
        "ttft_p95_ms": (one.ttft_p95_ms, "ms"),
        "ttft_p99_ms": (one.ttft_p99_ms, "ms"),
        "cost_usd": (one.cost_usd, "USD/request"),
        **{f"accuracy_{kind}": (figure, "share") for kind, figure in one.kinds.items()},
    }
    rows = [
        Row(one.policy, one.trace, metric, f.value, unit, f.n, f.low, f.high, note)
        for metric, (f, unit) in figures.items()
        if f.n
    ]
    counts = {"by_vehicle": one.by_vehicle, "by_cloud": one.by_cloud, "mixed": one.mixed, "failovers": one.failovers}
    counts["leaks"] = one.leaks
    rows += [Row(one.policy, one.trace, name, float(n), "requests", one.n, note=note) for name, n in counts.items()]
    if one.bytes_up:
        moved = {"bytes_up": one.bytes_up, "bytes_down": one.bytes_down}
        rows += [Row(one.policy, one.trace, name, n, "bytes/request", one.n, note=note) for name, n in moved.items()]
    return rows


def run(quick: bool = False) -> Report:
    """``codriver bench drive``. Quick: ten seconds and two policies; else two minutes of both driving traces.

    Fetches what is missing. Errors: those of ``catalogue.pull`` and of :func:`live`.
    """
    for name in LIVE_ENTRIES:
        asyncio.run(pull(Catalogue.load().entry(name), Store()))
    settings = (
        DriveSettings(seconds=10.0, requests_per_minute=30.0, policies=("cloud with fallback", "codriver"))
        if quick
        else DriveSettings(traces=("TMobile-UMTS-driving", "ATT-LTE-driving-2016"), seconds=120.0)
    )
    try:
        return report_rows(live(settings))
    except CutShort as short:
        # A bench gives whole figures or none.
        raise short.cause from None
