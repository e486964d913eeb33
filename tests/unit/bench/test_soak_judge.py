"""What a soak is judged by: each line has to fail when it is fed what it is there to find."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from codriver.bench.fault_answers import TEXT
from codriver.bench.fault_verdict import Heard
from codriver.bench.rows import Row
from codriver.bench.soak_judge import Ending, Judged, Soak, broken_history, judged, no_leak
from codriver.bench.soak_load import Tally
from codriver.bench.soak_processes import Look
from codriver.bench.soak_report import SoakReport, rows
from codriver.bench.soak_requests import Ask
from codriver.bench.soak_slope import Slope, slope
from codriver.bench.soak_troubles import Troubles
from codriver.bench.soak_upstream import Finding

HOUR_S = 3600


def series(mb_per_hour: float, noise_mb: float = 0.2, steps: int = 720) -> list[tuple[float, float]]:
    draw = random.Random(7)
    every_s = HOUR_S / steps
    return [(n * every_s, 80 + mb_per_hour * n / steps + draw.gauss(0, noise_mb)) for n in range(steps)]


# ---------------------------------------------------------------- the slope


@pytest.mark.parametrize("truth", [0.0, 5.0, -3.0, 40.0])
def test_the_slope_is_found_and_lies_in_its_interval(truth: float) -> None:
    found = slope(series(truth)).times(HOUR_S)
    assert found.value == pytest.approx(truth, abs=0.3)
    assert found.low <= truth <= found.high
    assert found.high - found.low < 0.5


def test_peaks_do_not_move_the_slope() -> None:
    bare = series(5.0)
    peaks = [(at, mb + 60 * (n % 10 == 0)) for n, (at, mb) in enumerate(bare)]
    assert slope(peaks).times(HOUR_S).value == pytest.approx(5.0, abs=0.4)


def test_a_line_without_noise_is_its_own_interval() -> None:
    assert slope([(float(n), 2.0 * n) for n in range(20)]) == Slope(2.0, 2.0, 2.0, 20)
    assert slope([(float(n), 7.0) for n in range(20)]) == Slope(0.0, 0.0, 0.0, 20)


def test_of_a_few_points_there_is_no_slope() -> None:
    found = slope([(float(n), 1.0) for n in range(7)])
    assert not found.is_known
    assert not no_leak(found, 1.0).holds


# ---------------------------------------------------------------- a good run, and what spoils it


def tally(**kinds: int) -> Tally:
    found = Tally(seconds=60.0, asked=sum(kinds.values()) or 100)
    found.kinds.update(kinds or {"whole": 100})
    return found


LOOK = Look(0.0, 80.0, 15, 4, 1.0, 7, 0)
ENDING = Ending(1.0, "up", {"cloud": "closed", "vehicle": "closed"}, "ok", 0, 0, 1.25, 1.25)


def soak(mb_per_hour: float = 0.0) -> Soak:
    looks = [replace(LOOK, at_s=at, rss_mb=mb) for at, mb in series(mb_per_hour)]
    return Soak(LOOK, LOOK, looks, tally(), tally(), ENDING, warm_s=0.0)


def failing(run: Soak) -> list[str]:
    return [line.name for line in judged(run) if not line.holds]


def test_a_good_run_holds_in_every_line() -> None:
    assert failing(soak()) == []


def test_a_leak_is_found() -> None:
    run = soak(mb_per_hour=12.0)
    assert failing(run) == ["memory does not grow"]
    line = judged(run)[0]
    assert "+12." in line.note or "+11.9" in line.note
    assert "ABOVE the bound (4.0 MB an hour)" in line.note


def test_growth_below_the_bound_is_none() -> None:
    line = no_leak(Slope(2.0, 1.5, 2.5, 60), 1.0)
    assert (line.holds, line.note) == (
        True,
        "+2.00 MB an hour, 95 % from +1.50 to +2.50; below the bound (4.0 MB an hour)",
    )


def test_a_short_run_has_a_wider_bound() -> None:
    assert no_leak(Slope(30.0, 20.0, 40.0, 60), 0.04).holds
    assert not no_leak(Slope(60.0, 20.0, 90.0, 60), 0.04).holds


@pytest.mark.parametrize(
    ("spoilt", "name"),
    [
        ({"after": replace(LOOK, files=20)}, "files are back"),
        ({"after": replace(LOOK, sockets=40)}, "sockets are back"),
        ({"after": replace(LOOK, tasks=10)}, "tasks are back"),
        ({"soaked": tally(whole=99, hang=1)}, "no request was stuck"),
        ({"soaked": tally(whole=99, lie=1)}, "no answer was a lie"),
        ({"ending": replace(ENDING, recovered_s=math.inf)}, "the cloud answers again"),
        ({"ending": replace(ENDING, link_state="degraded")}, "the link is up"),
        ({"ending": replace(ENDING, breakers={"cloud": "open"})}, "breakers are closed"),
        ({"ending": replace(ENDING, breakers={})}, "breakers are closed"),
        ({"ending": replace(ENDING, health="HTTP 503")}, "the vehicle is ready"),
        ({"ending": replace(ENDING, in_flight=1)}, "nothing is in flight"),
        ({"ending": replace(ENDING, upstream_working=2)}, "the upstream's work has stopped"),
        ({"ending": replace(ENDING, upstream_working=-1)}, "the upstream's work has stopped"),
        ({"ending": replace(ENDING, spent_usd=1.24)}, "the day's costs are right"),
        ({"ending": replace(ENDING, spent_usd=0.0, told_usd=0.0)}, "the day's costs are right"),
        ({"findings": [Finding("the cloud was shown a local_only text")]}, "nothing private reached the cloud"),
        ({"findings": [Finding("the turns of a session are out of order", "s", 3, [2, 1])]}, "sessions hold"),
    ],
)
def test_each_line_fails_for_what_it_is_there_for(spoilt: dict[str, object], name: str) -> None:
    run = soak()
    for member, value in spoilt.items():
        setattr(run, member, value)
    run.other_turns = {"s": {1, 2}}
    assert failing(run) == [name]


@pytest.mark.parametrize(("errors", "late", "holds"), [(0, 0, True), (1, 0, False), (0, 1, True), (0, 2, False)])
def test_errors_where_the_vehicle_could_answer(errors: int, late: int, holds: bool) -> None:
    run = soak()
    run.soaked.unsheltered, run.soaked.late = errors, late
    assert (failing(run) == []) is holds


def test_a_lie_before_the_faults_fails_twice() -> None:
    run = soak()
    run.calm = tally(whole=99, lie=1)
    assert failing(run) == ["no answer was a lie", "without faults all is well"]


def test_a_day_that_turned_is_not_judged() -> None:
    run = soak()
    run.ending = replace(ENDING, spent_usd=math.nan)
    assert failing(run) == []


@pytest.mark.parametrize(
    ("seen", "whole", "other", "why"),
    [
        ([1, 2, 3], [1, 2, 3], set(), ""),
        ([2, 3], [1, 2, 3], set(), ""),
        ([], [1, 2, 3], set(), ""),
        ([1, 2, 3], [1, 3], {2}, ""),
        ([1, 3], [1, 3], {2}, ""),
        ([1, 3], [1, 2, 3], set(), "turn 4 of 's' has forgotten turn 2"),
        ([1, 2], [1, 2, 3], set(), "turn 4 of 's' has forgotten turn 3"),
        ([1, 9], [1], set(), "turn 4 of 's' remembers turn 9, which had no answer"),
    ],
)
def test_histories(seen: list[int], whole: list[int], other: set[int], why: str) -> None:
    assert broken_history(Finding("", "s", 4, seen), whole, other) == why


# ---------------------------------------------------------------- the tally


def heard(status: int, body: bytes, ended: str = "clean") -> Heard:
    return Heard(status, "application/json", body, "not" if ended == "not" else "clean", 12.0)


_RIGHT = '{"choices":[{"message":{"content":"TEXT"},"finish_reason":"stop"}],"codriver":{"engine":"cloud"}}'
RIGHT = _RIGHT.replace("TEXT", TEXT).encode()


def test_each_answer_is_booked_as_what_it_is() -> None:
    found = Tally()
    ask = Ask("/v1/chat/completions", b"", sheltered=True)
    found.take(ask, heard(200, RIGHT))
    found.take(ask, heard(200, RIGHT.replace(b"w3 ", b"")))
    found.take(ask, heard(503, b'{"error": {"message": "busy"}}'))
    found.take(ask, heard(0, b"", "not"))
    found.take(replace(ask, manner="leaves"), heard(0, b"", "not"))
    found.take(replace(ask, manner="bad", statuses=(400,)), heard(400, b""))
    found.take(replace(ask, manner="bad", statuses=(400,)), heard(500, b""))
    assert dict(found.kinds) == {"whole": 1, "lie": 2, "told": 1, "hang": 1, "left": 1, "refused": 1}
    assert found.engines == {"cloud": 1}
    found.take(ask, heard(504, b'{"error": {"message": "late"}}'))
    found.take(replace(ask, sheltered=False), heard(503, b"{}"))
    assert (found.unsheltered, found.late) == (1, 1)
    assert found.whole_ms == [12.0]
    assert "a bad request was answered with 500, not (400,)" in found.examples["lie"][1]


# ---------------------------------------------------------------- the report


def test_the_report_fails_by_its_judged_rows(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [Judged("the link is up", True, "up"), Judged("nothing is in flight", False, "3 requests")]
    troubles = Troubles.__new__(Troubles)
    troubles.counts = {"flapping link": 2}  # type: ignore[assignment]
    report = SoakReport("soak", "machine", "now", [*rows(soak(), troubles), *(line.row() for line in lines)])
    assert report.failed == ["nothing is in flight"]
    report.print_table()
    told = capsys.readouterr().out
    assert "ok    the link is up: up\nFAIL  nothing is in flight: 3 requests" in told
    assert Row("codriver", "with faults", "troubles", 2.0, "", 2, note="flapping link") in report.rows
    assert {"rss_slope", "p99_ms", "cpu_share", "rss_mb"} <= {row.metric for row in report.rows}
