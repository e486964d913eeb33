"""The report: one page that fetches nothing, can be parsed, and says when a drive was cut short."""

from __future__ import annotations

import errno
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from codriver.bench.drive import report_rows
from codriver.bench.drive_outcomes import Figure
from codriver.bench.drive_result import DriveResult, Signal, live_notes
from codriver.bench.drive_settings import DriveSettings
from codriver.bench.report import page, write
from codriver.core.errors import DiskFull, SetupError

from .drive_parts import live_result, run_of

_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Fails on tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_fetches_nothing() -> None:
    text = page(live_result())
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    assert parser.seen.count("svg") == 5
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "q&lt;1&gt;" in text and "q<1>" not in text
    assert "a &lt; b" in text
    assert "cut short" not in text


def test_partial_drive_says_so_on_the_page_and_in_the_rows() -> None:
    assert "cut short" in page(live_result(partial=True))
    assert all(row.note.startswith("partial drive") for row in report_rows(live_result(partial=True)).rows)


def test_a_drive_without_answers_can_be_shown() -> None:
    result = live_result()
    empty = DriveResult("live", result.settings, result.windows, [run_of("codriver", [])])
    assert "codriver" in page(empty)
    assert all(row.n == 0 for row in report_rows(empty).rows)


def test_replay_shows_what_the_choice_is_worth() -> None:
    case = "ideal/replay/toy"
    signals = [Signal("codriver", case, 0.4, Figure(0.96, 0.95, 0.97, 100), True, 0.98)]
    result = DriveResult(
        "replay", DriveSettings(), {}, [run_of("codriver", live_result().runs[1].fates, case)], signals
    )
    assert "40.0%" in page(result) and "98.0%" in page(result)
    metrics = {row.metric for row in report_rows(result).rows}
    assert {"answered_in_time", "accuracy", "cloud_calls", "ttft_p50_ms", "ttft_p95_ms", "strong_share"} <= metrics


def test_notes_name_the_price_and_the_load() -> None:
    result = live_result()
    result.runs[0].busy = {"machine": 0.5, "cloud": 0.25}
    told = " ".join(live_notes(result.settings, result.runs))
    assert "$0.15 per million" in told
    assert "cloud 25%" in told


def test_report_that_cannot_be_written_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"report .*page.html cannot be written"):
        write(live_result(), tmp_path / "file" / "page.html")

    def full(self: Path, text: str, encoding: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull, match=r"No room left for the report"):
        write(live_result(), tmp_path / "page.html")
    assert not list(tmp_path.glob("page*"))
