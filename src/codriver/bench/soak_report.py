"""A soak's figures as rows, and its report: what was judged comes first where a person reads it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .rows import Report, Row
from .soak_judge import Soak
from .soak_load import Tally
from .soak_processes import Look
from .soak_slope import medians
from .soak_troubles import Troubles

_CALM, _SOAKED = "without faults", "with faults"


class SoakReport(Report):
    """The rows are every bench's; only the printed table differs, and that it can fail."""

    __slots__ = ()

    @property
    def failed(self) -> list[str]:
        return [row.metric for row in self.rows if row.case == "judged" and not row.value]

    def table(self) -> str:
        lines = [
            f"{'ok  ' if row.value else 'FAIL'}  {row.metric}: {row.note}" for row in self.rows if row.case == "judged"
        ]
        figures = Report(self.bench, self.machine, self.started, [r for r in self.rows if r.case != "judged"])
        return "\n".join([figures.table(), "", *lines])


def rows(soak: Soak, troubles: Troubles) -> list[Row]:
    """Every figure; judged lines are not among them."""
    under_load = [look for look in soak.looks if look.at_s >= soak.looks[0].at_s + soak.calm.seconds]
    found = [*_load_rows(_CALM, soak.calm), *_load_rows(_SOAKED, soak.soaked)]
    found += _cpu_rows(soak)
    found += [Row("codriver", _SOAKED, "troubles", float(n), "", n, note=name) for name, n in troubles.counts.items()]
    slope = soak.memory()
    note = f"Theil-Sen over {slope.points} block medians of {len(soak.fitted)} looks in {60 * soak.hours():.1f} minutes"
    per_request = slope.value * (1 << 20) * soak.hours() / max(1.0, soak.soaked.asked * _share_fitted(soak))
    found.append(Row("codriver", _SOAKED, "rss_slope", slope.value, "MB/h", slope.points, slope.low, slope.high, note))
    found.append(Row("codriver", _SOAKED, "rss_slope_per_request", per_request, "bytes", slope.points))
    found += _memory_rows(soak)
    for name in ("rss_mb", "files", "sockets", "tasks"):
        found += _state_rows(name, soak, under_load)
    found.append(Row("codriver", _SOAKED, "recovered", soak.ending.recovered_s, "s", 1, note="until the cloud answers"))
    found.append(Row("codriver", _SOAKED, "spent", soak.ending.told_usd, "USD", 1, note="what the cloud charged"))
    return found


def _load_rows(case: str, tally: Tally) -> list[Row]:
    def row(metric: str, value: float, unit: str = "", n: int = tally.asked, note: str = "") -> Row:
        return Row("codriver", case, metric, round(value, 3), unit, n, note=note)

    found = [row("requests_per_s", tally.asked / max(tally.seconds, 1e-9), "1/s")]
    for percent in (50, 99):
        at_ms = _at(tally.whole_ms, percent / 100)
        found.append(row(f"p{percent}_ms", at_ms, "ms", len(tally.whole_ms), "whole answers, to their last byte"))
    found += [row(kind, float(tally.kinds[kind])) for kind in ("whole", "told", "lie", "hang", "left", "refused")]
    found += [row("answered_by", float(n), note=name) for name, n in sorted(tally.engines.items())]
    found += [row("status", float(n), note=str(s)) for s, n in sorted(tally.statuses.items())]
    found += [row("told_why", float(n), note=why) for why, n in tally.told_why.most_common(8)]
    if tally.not_sent:
        found.append(row("not_sent", float(tally.not_sent), note="too many were open"))
    for sort, examples in sorted(tally.examples.items()):
        found += [row("example", 1.0, n=1, note=f"{sort}: {one}") for one in examples]
    return found


def _cpu_rows(soak: Soak) -> list[Row]:
    """The vehicle's CPU in each part, the only figure that another machine could compare."""
    start_s = soak.looks[0].at_s
    parts = (
        (_CALM, soak.calm, [one for one in soak.looks if one.at_s <= start_s + soak.calm.seconds]),
        (_SOAKED, soak.soaked, [one for one in soak.looks if one.at_s > start_s + soak.calm.seconds]),
    )
    found = []
    for case, tally, looks in parts:
        if len(looks) < 2:
            continue
        share = (looks[-1].cpu_s - looks[0].cpu_s) / (looks[-1].at_s - looks[0].at_s)
        each_ms = 1e3 * share / max(1e-9, tally.asked / tally.seconds)
        found.append(Row("codriver", case, "cpu_share", round(share, 4), "cores", len(looks)))
        found.append(Row("codriver", case, "cpu_ms_per_request", round(each_ms, 3), "ms", len(looks)))
    return found


def _state_rows(name: str, soak: Soak, under_load: Sequence[Look]) -> list[Row]:
    values = [float(getattr(look, name)) for look in under_load] or [0.0]
    unit = "MB" if name == "rss_mb" else ""
    return [
        Row("codriver", "before the load", name, float(getattr(soak.before, name)), unit, 1),
        Row(
            "codriver", _SOAKED, name, statistics.median(values), unit, len(values), min(values), max(values),
            "median, lowest and peak",
        ),
        Row("codriver", "after the load", name, float(getattr(soak.after, name)), unit, 1),
    ]  # fmt: skip


def _memory_rows(soak: Soak) -> list[Row]:
    """The curve of the resident memory: what a slope alone does not show."""
    return [
        Row("codriver", "over time", "rss_mb", round(mb, 2), "MB", 1, note=f"minute {at_s / 60:.1f}")
        for at_s, mb in medians([(look.at_s - soak.looks[0].at_s, look.rss_mb) for look in soak.looks], 30)
    ]


def _share_fitted(soak: Soak) -> float:
    return min(1.0, 3600.0 * soak.hours() / max(soak.soaked.seconds, 1e-9))


def _at(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
