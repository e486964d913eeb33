"""Figures from fates: shares with Wilson's interval, quantiles, and what counts as right."""

from __future__ import annotations

import math

import pytest

from codriver.bench.drive_outcomes import mean, quantile, share, summarise

from .drive_parts import fate, run_of


def test_wilson_interval_as_published() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    found = share(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert round(share(0, 20).high, 4) == 0.1611
    assert share(20, 20).high == pytest.approx(1.0)


def test_no_observations_give_no_figure() -> None:
    assert math.isnan(share(0, 0).value)
    assert math.isnan(quantile([], 0.5).value)
    assert mean([]).n == 0


def test_quantile_is_an_observation_within_its_interval() -> None:
    found = quantile(range(101), 0.95)
    assert found.value == 95
    assert found.low < 95 < found.high <= 100


def test_late_or_missing_answers_are_wrong_and_small_talk_is_not_judged() -> None:
    fates = [
        fate("right"),
        fate("late", outcome="late"),
        fate("gone", outcome="link_down", where="nobody", ttft_ms=None, correct=False),
        fate("talk", source="chat", graded=False, correct=None),
    ]
    one = summarise(run_of("codriver", fates))
    assert one.answered_in_time.value == 0.5
    assert (one.accuracy.value, one.accuracy.n) == (pytest.approx(1 / 3), 3)
    assert one.failures == {"late": 1, "link_down": 1}
    assert one.by_vehicle == 2
    assert one.ttft_p50_ms.n == 3


def test_what_had_to_stay_in_the_vehicle_and_did_not_is_a_leak() -> None:
    asked = [{"engine": "cloud", "outcome": "answered"}]
    kept = [{"engine": "cloud", "outcome": "skipped:link_down"}, {"engine": "vehicle", "outcome": "answered"}]
    fates = [
        fate("leaks", privacy="local_only", attempts=asked),
        fate("stays", privacy="local_only", attempts=kept),
        fate("redacted", privacy="redact", attempts=asked),
        fate("free", attempts=asked),
    ]
    assert summarise(run_of("codriver", fates)).leaks == 1


def test_bytes_over_the_link_are_told_per_request() -> None:
    run = run_of("codriver", [fate("a"), fate("b")])
    run.bytes_up, run.bytes_down = 1000, 5000
    found = summarise(run)
    assert (found.bytes_up, found.bytes_down) == (500, 2500)
