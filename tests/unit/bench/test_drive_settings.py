"""The window that a drive takes, its arrival times, and settings that make no sense."""

from __future__ import annotations

import pytest

from codriver.bench import traces
from codriver.bench.drive_settings import POLICIES, DriveSettings, arrivals, window, worst_window
from codriver.core.errors import BadConfigValue, UnknownEntry


def test_default_window_holds_real_outages_but_not_mostly() -> None:
    settings = DriveSettings()
    part = window(settings.traces[0], settings)
    dark_s = sum(end - start for start, end in part.outages())
    assert len(part.outages()) >= 2
    assert 0.1 < dark_s / settings.seconds <= 0.3
    assert all(0 <= start < end <= settings.seconds for start, end in part.outages())
    assert "without service" in part.told()


def test_window_does_not_begin_in_an_outage() -> None:
    trace = traces.tunnel(before_s=20.0, dark_s=15.0, after_s=25.0)
    start_s = worst_window(trace, 50.0)
    assert start_s <= 18.0


def test_a_drive_longer_than_its_trace_goes_round() -> None:
    settings = DriveSettings(traces=("tunnel",), seconds=120.0)
    assert [round(start) for start, _ in window("tunnel", settings).outages()] == [20, 80]


def test_arrivals_are_the_same_for_a_seed_and_lie_in_the_window() -> None:
    times_s = arrivals(50, 30.0, seed=3)
    assert arrivals(50, 30.0, seed=3) == times_s
    assert arrivals(50, 30.0, seed=4) != times_s
    assert list(times_s) == sorted(times_s)
    assert times_s[0] >= 0 and times_s[-1] <= 30


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": 0.0}, "more than zero seconds"),
        ({"policies": ("fastest",)}, "no drive policy 'fastest'. Known are: 'vehicle-only'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(BadConfigValue, match=words):
        DriveSettings(**changes)  # type: ignore[arg-type]


def test_unknown_trace_and_start_beyond_its_end() -> None:
    with pytest.raises(UnknownEntry, match="no link trace 'moon'"):
        window("moon", DriveSettings())
    with pytest.raises(BadConfigValue, match=r"lasts 60 s; it cannot begin at 99"):
        window("tunnel", DriveSettings(start_s=99.0))


def test_all_policies_can_be_named_with_hyphens() -> None:
    assert DriveSettings(policies=tuple(p.title.replace(" ", "-") for p in POLICIES)).policies
