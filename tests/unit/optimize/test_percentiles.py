"""LoadGen's own rule: its reference values, and against the binomial distribution by simulation."""

from __future__ import annotations

import random

import pytest

from codriver.optimize.reports.percentiles import least_below, median, percentile, runs_needed


def test_the_counts_are_loadgens() -> None:
    """As LoadGen itself gives them: 64 runs for p90 and 662 for p99 of a single stream, 459 below with none above."""
    assert (runs_needed(0.9), runs_needed(0.99)) == (64, 662)
    assert least_below(0, 0.99) == 459
    assert runs_needed(0.999) == 6636


def test_too_few_runs_give_no_percentile_but_say_how_many_do() -> None:
    found = percentile([1.0] * 63, 0.9)
    assert (found.value, found.n, found.needed) == (None, 63, 64)
    assert percentile([float(at) for at in range(64)], 0.9).value == 62.0


def test_the_estimate_is_above_the_true_percentile_as_often_as_it_says() -> None:
    dice = random.Random(5)
    below = sum(percentile([dice.random() for _ in range(200)], 0.9).value < 0.9 for _ in range(300))  # type: ignore[operator]
    assert below <= 9, "1 % of 300 are 3; nine would be a chance of a thousandth"


def test_a_median_has_an_interval_from_six_runs_on() -> None:
    five = median([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (five.value, five.low, five.high, five.n) == (3.0, None, None, 5)
    six = median([6.0, 5.0, 1.0, 3.0, 2.0, 4.0])
    assert (six.value, six.low, six.high) == (3.5, 1.0, 6.0)
    dice = random.Random(7)
    covers = 0
    for _ in range(400):
        found = median([dice.random() for _ in range(25)])
        assert found.low is not None and found.high is not None
        covers += found.low <= 0.5 <= found.high
    assert covers >= 370, "95 % of 400 are 380"
    with pytest.raises(ValueError, match="needs a value"):
        median([])
