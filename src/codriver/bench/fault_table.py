"""The fault catalogue's report as a person reads it: a line per case, the systems beside each other."""

from __future__ import annotations

from .fault_verdict import KINDS
from .rows import Report, Row

_LOUD = {"lie": "LIE", "hang": "HANG"}


class FaultReport(Report):
    """The rows are every bench's; only the printed table differs."""

    __slots__ = ()

    def table(self) -> str:
        """Verdict, milliseconds and upstream calls of each case and system; sums, and then why, where it is bad."""
        by_case: dict[str, dict[str, dict[str, Row]]] = {}
        for row in self.rows:
            by_case.setdefault(row.case, {}).setdefault(row.system, {})[row.metric] = row
        systems = list(dict.fromkeys(row.system for row in self.rows if row.metric != "skipped"))
        cells = [["case", *systems]]
        cells += [
            [case, *(_cell(found.get(system, {})) for system in systems)]
            for case, found in by_case.items()
            if case != "all"
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        sums = [_sum(system, metrics) for system, metrics in by_case.get("all", {}).items()]
        head = f"{self.bench}, {self.started}, {self.machine}"
        return "\n".join(line.rstrip() for line in [head, "", *lines, "", *sums, *self._worst()])

    def _worst(self) -> list[str]:
        bad = [row for row in self.rows if row.metric in _LOUD and row.case != "all" and row.value]
        return [f"{row.system}, {row.case}: {row.metric}, {row.note}" for row in bad]


def _cell(metrics: dict[str, Row]) -> str:
    kind = next((kind for kind in KINDS if kind in metrics and metrics[kind].value), "")
    if not kind:
        return ""
    return f"{_LOUD.get(kind, kind):5} {metrics['time_ms'].value:6,.0f} ms {metrics['upstream_calls'].value:.0f} calls"


def _sum(system: str, metrics: dict[str, Row]) -> str:
    if "skipped" in metrics:
        return f"{system}: left out, {metrics['skipped'].note}"
    return f"{system}: " + ", ".join(f"{metrics[kind].value:.0f} {kind}" for kind in KINDS if kind in metrics)
