"""A day's budget: counted over requests and restarts, and over at midnight."""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path

import pytest

from codriver.core.clock import ManualClock
from codriver.core.deadline import Deadline
from codriver.core.engine import Price
from codriver.core.errors import NoEngineLeft
from codriver.core.virtual import run_virtual
from codriver.route.config import RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.spending import NO_SPENDING, DaySpending, NoSpending
from tests.unit.route.drive import ask
from tests.unit.route.faulty import WORDS, Faulty

DAY_S = 86400.0


class Calendar(ManualClock):
    wall = 1_800_000_000.0 // DAY_S * DAY_S + 3600

    def wall_s(self) -> float:
        return self.wall


def test_nobody_counts() -> None:
    NO_SPENDING.spend(5.0)
    assert NO_SPENDING.left_usd() == math.inf


def test_a_day_ends_and_a_restart_does_not_end_it(tmp_path: Path) -> None:
    clock, file = Calendar(), tmp_path / "deep" / "spent.json"
    first = DaySpending(1.0, file, clock)
    first.spend(0.25)
    first.spend(0.5)
    again = DaySpending(1.0, file, clock)
    assert again.left_usd() == pytest.approx(0.25)
    again.spend(2.0)
    assert again.left_usd() == 0.0
    clock.wall += DAY_S
    assert again.left_usd() == 1.0
    assert DaySpending(1.0, file, clock).left_usd() == 1.0


def test_a_record_that_cannot_be_read_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "spent.json"
    file.write_bytes(b"{half")
    assert DaySpending(1.0, file, Calendar()).left_usd() == 1.0
    assert "it begins anew" in caplog.text


def test_a_disk_that_takes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    caplog.set_level(logging.WARNING)
    one = DaySpending(1.0, tmp_path / "file" / "spent.json", Calendar())
    one.spend(0.75)
    assert one.left_usd() == 0.25
    assert "cannot be written down" in caplog.text


def drive(spending: NoSpending, policy: str, requests: int) -> list[str]:
    """Who answered each request, or the error's code."""

    async def main() -> list[str]:
        cloud = Faulty("c", "cloud", price=Price(output_usd=1e6 / len(WORDS)))  # an answer costs one dollar
        lineup = Lineup({"v": Faulty("v"), "c": cloud}, spending=spending, clock=_LoopClock())
        hybrid = HybridEngine(lineup, RouteConfig(policy=policy, link_aware=False))  # type: ignore[arg-type]
        found = []
        for _ in range(requests):
            try:
                told = [chunk async for chunk in hybrid.generate(ask(max_tokens=len(WORDS)), Deadline.after(20))]
                found.append(str(told[-1].codriver["engine"]))  # type: ignore[index]
            except NoEngineLeft as error:
                found.append(error.message)
        return found

    return run_virtual(main())


class _LoopClock(ManualClock):
    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


def test_when_the_money_is_gone_the_vehicle_answers() -> None:
    assert drive(DaySpending(2.5, None, Calendar()), "cloud-first", 4) == ["c", "c", "v", "v"]


def test_where_only_the_cloud_may_answer_it_is_told() -> None:
    assert drive(DaySpending(1.0, None, Calendar()), "cloud-only", 2) == [
        "c",
        "The budget does not allow the engine 'c'.",
    ]
