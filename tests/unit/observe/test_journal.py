"""The journal: what it keeps of the link, and its bounds."""

from __future__ import annotations

import json
import math

from codriver.core.clock import ManualClock
from codriver.observe.journal import LOOKS, Journal


async def looks(journal: Journal) -> list[tuple[float, str]]:
    events = [json.loads(event) for event in journal.recent()]
    return [(event["at_s"], event["state"]) for event in events]


async def test_the_link_is_kept_when_it_changes_and_now_and_then() -> None:
    clock = ManualClock(100.0)
    journal = Journal(clock)
    for _ in range(9):
        journal.link("up", 0.05, math.nan)
        await clock.advance(0.5)
    journal.link("down", 0.05, math.nan)
    assert await looks(journal) == [(100.0, "up"), (102.0, "up"), (104.0, "up"), (104.5, "down")]
    first = json.loads(journal.recent()[0])
    assert (first["rtt_ms"], "bps" in first) == (50.0, False)


async def test_looks_at_the_link_are_bounded() -> None:
    clock = ManualClock()
    journal = Journal(clock)
    for _ in range(LOOKS + 20):
        journal.link("up", 0.05, 1e6)
        await clock.advance(2.0)
    assert len(journal.recent()) == LOOKS


async def test_a_watcher_hears_what_happens_after_it_came_and_nothing_after_it_left() -> None:
    clock = ManualClock()
    journal = Journal(clock)
    journal.link("up", 0.05, 1e6)
    watcher = journal.watch(lambda: None)
    journal.link("degraded", 0.9, 1e5)
    assert json.loads(await watcher.next() or b"")["state"] == "degraded"
    journal.leave(watcher)
    journal.link("down", 0.9, 1e5)
    assert journal.watchers == 0
