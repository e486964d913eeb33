"""What a drive looks like while it lasts: one line per policy on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from codriver.bench.drive_outcomes import PolicyRun, Summary, summarise
from codriver.bench.drive_result import DriveResult, Signal
from codriver.bench.report import cells, headings, link_sentences, percent

_LINK_STYLE = {"up": "green", "degraded": "yellow", "down": "red", "": "dim"}
_EVERY_S = 10.0


class Screen:
    """Progress on a terminal. Use it as a context manager around the drive."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._doing = ""
        self._runs: list[tuple[PolicyRun, float]] = []
        self._at_s = 0.0
        self._live = Live(console=console, refresh_per_second=5, get_renderable=self._render)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._doing = ""
        self._live.stop()

    def said(self, sentence: str) -> None:
        self._doing = sentence

    def began(self, run: PolicyRun, seconds: float) -> None:
        self._doing = ""
        self._runs.append((run, seconds))

    def moved(self, run: PolicyRun, at_s: float) -> None:
        self._at_s = at_s

    def ended(self, summary: Summary) -> None:
        self._at_s = 0.0

    def _render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for name in (
            "policy",
            "drive",
            "",
            "link",
            "believed",
            "asked",
            "in time",
            "right",
            "vehicle",
            "cloud",
            "mixed",
        ):
            table.add_column(name, no_wrap=True)
        for number, (run, seconds) in enumerate(self._runs):
            at_s = self._at_s if number == len(self._runs) - 1 and not run.complete else seconds
            table.add_row(*self._row(run, at_s, seconds))
        return Group(table, Text(self._doing, style="dim")) if self._doing else table

    @staticmethod
    def _row(run: PolicyRun, at_s: float, seconds: float) -> list[RenderableType]:
        one = summarise(run)
        now = run.link[-1] if run.link else None
        link = (
            Text("no service", style="red")
            if now and not now.up
            else Text(f"{now.capacity_kbps / 1e3:.1f} Mbit/s" if now else "")
        )
        believed = now.believed if now else ""
        return [
            run.policy,
            ProgressBar(total=seconds, completed=min(at_s, seconds), width=20),
            f"{min(at_s, seconds):3.0f} s",
            link,
            Text(believed or "–", style=_LINK_STYLE.get(believed, "")),
            f"{one.n}/{run.planned}",
            f"{one.answered_in_time.value:.0%}" if one.n else "",
            f"{one.accuracy.value:.0%}" if one.accuracy.n else "",
            str(one.by_vehicle),
            str(one.by_cloud),
            str(one.mixed),
        ]


class Lines:
    """Progress as plain lines: for a log, a pipe, CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def said(self, sentence: str) -> None:
        self._print(sentence)

    def began(self, run: PolicyRun, seconds: float) -> None:
        self._next_s = _EVERY_S
        self._print(f"{run.policy}: {run.planned} requests in {seconds:g} s of {run.trace}")

    def moved(self, run: PolicyRun, at_s: float) -> None:
        if at_s >= self._next_s:
            self._next_s += _EVERY_S
            now = run.link[-1]
            link = f"{now.capacity_kbps / 1e3:.1f} Mbit/s" if now.up else "no service"
            in_time = sum(fate.in_time for fate in run.fates)
            believed = f" (believed {now.believed})" if now.believed else ""
            self._print(f"{run.policy}: {at_s:.0f} s, link {link}{believed}, {in_time} of {len(run.fates)} in time")

    def ended(self, summary: Summary) -> None:
        self._print(
            f"{summary.policy}: in time {percent(summary.answered_in_time)}, right {percent(summary.accuracy)}, "
            f"cloud called {percent(summary.cloud_calls)}"
        )

    def _print(self, sentence: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {sentence}", markup=False, highlight=False, soft_wrap=True)


def print_result(result: DriveResult, console: Console) -> None:
    """The table at the end, one per trace or set."""
    if result.partial:
        console.print("This drive was cut short: the figures are of the part that was driven.", style="yellow")
    for sentence in link_sentences(result):
        console.print(sentence, highlight=False, soft_wrap=True)
    summaries = result.summaries()
    for case in result.cases():
        table = Table(title=case, title_justify="left")
        for name in headings():
            table.add_column(name)
        for one in summaries:
            if one.trace == case:
                table.add_row(*(Text(cell) for cell in cells(one)))
        # A terminal wraps to its own width; a pipe gets whole rows.
        (console if console.is_terminal else Console(width=220)).print(table)
        _print_signals([signal for signal in result.signals if signal.case == case], console)
    for note in result.notes:
        console.print(f"· {note}", markup=False, highlight=False, soft_wrap=True)


def _print_signals(signals: list[Signal], console: Console) -> None:
    if not signals:
        return
    table = Table(title="share of the strong model's accuracy", title_justify="left")
    for name in ("who chooses", "strong model's calls", "share of its accuracy (95 %)", "link", "share over this link"):
        table.add_column(name)
    for one in signals:
        over_link = "–" if math.isnan(one.over_link_share) else f"{one.over_link_share:.1%}"
        link = "recorded" if one.through_link else "always up"
        table.add_row(one.name, f"{one.calls:.1%}", percent(one.strong_share), link, over_link)
    (console if console.is_terminal else Console(width=220)).print(table)
