"""What every bench gives: rows of one shape, printed as a table and written as JSON.

The JSON is ``{"bench", "machine", "started", "rows": [{"system", "case", "metric", "value", "unit", "n", "low", "high",
"note"}]}``; our own rows have ``system: "codriver"``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from codriver.core.machine import machine

__all__ = ["Report", "Row", "machine"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``n``: how many observations are behind it; ``low`` and ``high``: its spread, where it has one."""

    system: str
    case: str
    metric: str
    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """``machine`` in words; ``started`` as ISO 8601 with its zone."""

    bench: str
    machine: str
    started: str
    rows: list[Row]

    @property
    def failed(self) -> list[str]:
        """What the bench judges and did not hold; most only measure."""
        return []

    def table(self) -> str:
        """The rows as aligned text, with the machine above."""
        head = ("system", "case", "metric", "value", "unit", "low", "high", "n", "note")
        cells = [head] + [
            (r.system, r.case, r.metric, _number(r.value), r.unit, _number(r.low), _number(r.high), str(r.n), r.note)
            for r in self.rows
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([f"{self.bench}, {self.started}, {self.machine}", *lines])

    def print_table(self) -> None:
        print(self.table())

    def write_json(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
