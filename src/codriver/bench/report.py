"""A drive as one HTML page: figures, plots and explanations, with nothing fetched from anywhere.

It is written whole or not at all, and can be read in light and in dark.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from codriver.core.errors import DiskFull, SetupError

from . import charts
from .drive_outcomes import Fate, Figure, PolicyRun, Summary, summarise
from .drive_result import DriveResult, Signal, policy_sentences
from .rows import machine

_COLUMNS: tuple[tuple[str, str], ...] = (
    ("answered in time", "Share of requests whose answer was whole before its deadline, on the asking side's clock."),
    ("accuracy", "Right and in time, as a share of the requests that can be wrong. Small talk cannot and is left out."),
    ("cloud calls", "Share of requests for which the cloud was tried, whether its answer was used or not."),
    ("first token p50 / p95", "Time until the first word, median and 95th percentile, of requests that got one."),
    ("cost per 1,000", "Per 1,000 requests at the assumed price, with every cloud attempt counted."),
    ("vehicle / cloud / mixed", "Requests answered in time by each; mixed: one began and another finished."),
    ("failovers", "Answers that one engine began and another had to take over."),
    ("what went wrong", "Requests not answered in time, by what became of them."),
)


def write(result: DriveResult, file: Path) -> None:
    """Errors: :class:`DiskFull`, :class:`SetupError` when the place cannot be written."""
    temporary = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page(result), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        _remove(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"No room left for the report {file}. Free some space or name another --report.") from error
        raise SetupError(f"The report {file} cannot be written: {error.strerror}. Name another --report.") from error


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        # The report has failed already and that is what is told; a stray part file does no harm.
        return


def page(result: DriveResult) -> str:
    """The whole page."""
    template = Template(files("codriver.bench").joinpath("data/report.html").read_text("utf-8"))
    sections = "".join(_section(result, case) for case in result.cases())
    partial = "<p class='partial'>This drive was cut short: the figures are of the part that was driven.</p>"
    return template.substitute(
        title=escape(f"Codriver drive, {result.mode}, {', '.join(result.windows)}"),
        started=escape(result.started),
        machine=escape(machine()),
        lead=_lead(result),
        partial=partial if result.partial else "",
        sections=sections,
        columns="".join(f"<dt>{escape(name)}</dt><dd>{escape(told)}</dd>" for name, told in _COLUMNS),
        policies="".join(f"<dt>{escape(n)}</dt><dd>{escape(t)}</dd>" for n, t in policy_sentences().items()),
        notes="".join(f"<li>{escape(note)}</li>" for note in result.notes),
    )


def _lead(result: DriveResult) -> str:
    told = link_sentences(result)
    if result.mode == "live":
        told.append(
            f"{result.settings.count} requests per policy at {result.settings.requests_per_minute:g} a minute, the "
            f"same at the same times for each (seed {result.settings.seed})."
        )
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in told)


def link_sentences(result: DriveResult) -> list[str]:
    """Which part of which trace was the link."""
    if result.mode == "live":
        return [f"Link: {window.told()}." for window in result.windows.values()]
    return [
        f"Link: all of {window.trace.name}, again and again, from second {window.start_s:g} on: "
        f"{sum(end - start for start, end in window.trace.outages()):.0f} s of {window.trace.duration_s:g} are outages "
        "of a second or more."
        for window in result.windows.values()
    ]


def _section(result: DriveResult, case: str) -> str:
    runs = [run for run in result.runs if run.trace == case]
    summaries = [summarise(run) for run in runs]
    parts = [f"<h2>{escape(case)}</h2>", table(summaries)]
    signals = [signal for signal in result.signals if signal.case == case]
    if signals:
        parts += ["<h3>What the router's choice is worth</h3>", _signals(signals)]
    window = result.windows.get(case)
    if result.mode == "live" and window is not None:
        parts.append("<h3>The drive, request by request</h3>")
        for run in runs:
            parts += [f"<h4>{escape(run.policy)}</h4>", charts.timeline(run, window)]
        parts.append(
            "<p class='small'>Grey area: the link's capacity; shaded: no service for a second or more; strip: what the "
            "vehicle believed (green up, yellow degraded, red down). A mark stands where a request was asked, its line "
            "ends where the answer did. Point at a mark to read what became of it.</p>"
        )
    parts += ["<h3>Time to the first word</h3>", charts.ttft_curves(runs)]
    parts += ["<h3>Quality against cost</h3>", charts.quality_cost(summaries)]
    parts += ["<h3>Where requests were answered</h3>", charts.places(summaries)]
    parts += ["<h3>Accuracy by kind of request</h3>", _kinds(summaries)]
    if result.mode == "live":
        parts.append(_requests(runs))
    return f"<section>{''.join(parts)}</section>"


# ---------------------------------------------------------------- tables


def percent(figure: Figure) -> str:
    """``83.3 % (74–90)``, or a dash."""
    if figure.n == 0 or math.isnan(figure.value):
        return "–"
    places = 1 if figure.n >= 1000 else 0
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.{places}f}–{100 * figure.high:.{places}f})"


def milliseconds(figure: Figure) -> str:
    if figure.n == 0 or math.isnan(figure.value):
        return "–"
    return f"{figure.value / 1e3:.2f} s" if figure.value >= 1000 else f"{figure.value:.0f} ms"


def cells(one: Summary) -> list[str]:
    """The table's row for a policy, as plain text."""
    wrong = ", ".join(f"{count} {code.replace('_', ' ')}" for code, count in sorted(one.failures.items()))
    return [
        one.policy,
        str(one.n) if one.n == one.planned else f"{one.n} of {one.planned}",
        percent(one.answered_in_time),
        percent(one.accuracy),
        percent(one.cloud_calls),
        f"{milliseconds(one.ttft_p50_ms)} / {milliseconds(one.ttft_p95_ms)}",
        f"${1e3 * one.cost_usd.value:.4f}" if one.n else "–",
        f"{one.by_vehicle} / {one.by_cloud} / {one.mixed}",
        str(one.failovers),
        wrong or "nothing",
    ]


def headings() -> list[str]:
    return ["policy", "n", *(name for name, _ in _COLUMNS)]


def table(summaries: Sequence[Summary]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in headings())
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells(one)) + "</tr>" for one in summaries)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _kinds(summaries: Sequence[Summary]) -> str:
    kinds = sorted({kind for one in summaries for kind in one.kinds})
    counts = {kind: max((one.kinds[kind].n for one in summaries if kind in one.kinds), default=0) for kind in kinds}
    head = "<th>policy</th>" + "".join(f"<th>{escape(kind)} (n={counts[kind]})</th>" for kind in kinds)
    rows = []
    for one in summaries:
        values = "".join(f"<td>{percent(one.kinds[kind]) if kind in one.kinds else '–'}</td>" for kind in kinds)
        rows.append(f"<tr><td>{escape(one.policy)}</td>{values}</tr>")
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _signals(signals: Sequence[Signal]) -> str:
    points = [(s.name, s.calls, s.strong_share.value, s.strong_share.low, s.strong_share.high) for s in signals]
    rows = "".join(
        f"<tr><td>{escape(s.name)}</td><td>{s.calls:.1%}</td><td>{percent(s.strong_share)}</td>"
        f"<td>{'through the recorded link' if s.through_link else 'as if the link were always up'}</td>"
        f"<td>{'–' if math.isnan(s.over_link_share) else f'{s.over_link_share:.1%}'}</td></tr>"
        for s in signals
    )
    head = "<th>who chooses</th><th>strong model's calls</th><th>share of its accuracy</th><th>link</th>"
    head += "<th>against the strong model over this link</th>"
    return (
        f"{charts.shares(points)}<div class='wide'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        "<p class='small'>Dashed: 95 % of the strong model's accuracy; the aim is to reach it with under half of "
        "its calls. Brackets: 95 % bootstrap "
        "interval. The router's threshold was set on other requests than those it is judged on.</p>"
    )


def _requests(runs: Sequence[PolicyRun]) -> str:
    """Every request with its fate under each policy, folded away."""
    by_item: dict[str, dict[str, Fate]] = {}
    for run in runs:
        for fate in run.fates:
            by_item.setdefault(f"{fate.at_s:06.1f} {fate.item}", {})[run.policy] = fate
    head = "<th>asked at</th><th>item</th>" + "".join(f"<th>{escape(run.policy)}</th>" for run in runs)
    rows = []
    for key in sorted(by_item):
        fates = by_item[key]
        one = next(iter(fates.values()))
        told = "".join(f"<td>{_fate(fates.get(run.policy))}</td>" for run in runs)
        rows.append(f"<tr><td>{one.at_s:.1f} s</td><td>{escape(one.item)}</td>{told}</tr>")
    return (
        "<details><summary>Every request</summary><div class='wide'><table class='dense'><thead><tr>"
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _fate(fate: Fate | None) -> str:
    if fate is None:
        return "–"
    verdict = {True: "right", False: "wrong", None: "answered"}[fate.correct] if fate.in_time else fate.outcome
    kind = charts.fate_class(fate)
    return f"<span class='dot {kind}'></span>{escape(fate.where)}, {fate.total_ms / 1e3:.2f} s, {escape(verdict)}"
