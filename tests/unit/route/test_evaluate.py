"""Area, cost and calibration against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from codriver.route.evaluate import Ranking, area, brier, calibration_error, difference, resamples

GAINS = np.array([1.0, 0.0, 1.0, -1.0, 1.0, 0.0])


def test_a_constant_score_is_chance() -> None:
    assert Ranking(np.zeros(6), GAINS).area() == pytest.approx(0.5)
    assert Ranking(np.zeros(6), GAINS).cost_at(0.8) == pytest.approx(0.8)


def test_area_by_hand() -> None:
    # Two requests, one gains: called first, the curve jumps to 1 over the first half and stays.
    assert Ranking(np.array([2.0, 1.0]), np.array([1.0, 0.0])).area() == pytest.approx(0.75)
    assert Ranking(np.array([1.0, 2.0]), np.array([1.0, 0.0])).area() == pytest.approx(0.25)


def test_the_oracle_recovers_more_than_the_gap() -> None:
    best = Ranking(GAINS, GAINS)
    # After three of six calls all three gains are in: 3 of a gap of 2.
    assert best.cost_at(1.0) == pytest.approx(2 / 6)
    assert best.area() > 1.0


def test_cost_is_taken_between_requests() -> None:
    order = Ranking(np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert order.cost_at(0.5) == pytest.approx(0.5)
    assert order.cost_at(0.95) == pytest.approx(0.95)


def test_without_a_gap_there_is_no_area() -> None:
    assert math.isnan(Ranking(np.array([1.0, 2.0]), np.array([1.0, -1.0])).area())


def test_weights_count_as_repetitions() -> None:
    scores = np.array([3.0, 2.0, 1.0])
    gains = np.array([1.0, 0.0, 1.0])
    weighted = Ranking(scores, gains).area(np.array([2.0, 1.0, 1.0]))
    repeated = Ranking(np.array([3.0, 3.0, 2.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])).area()
    assert weighted == pytest.approx(repeated)


def test_the_interval_holds_the_value_and_the_paired_one_is_narrower() -> None:
    chance = np.random.default_rng(3)
    gains = chance.choice([1.0, 0.0, -1.0], 2000, p=[0.3, 0.6, 0.1])
    good, near = Ranking(gains + chance.normal(0, 2, 2000), gains), None
    near = Ranking(gains + chance.normal(0, 2, 2000), gains)
    weights = resamples(2000, 200)
    alone, paired = area(good, weights), difference(good, near, weights)
    assert alone.low < alone.value < alone.high
    assert paired.low < 0.02 and paired.high - paired.low < 2 * (alone.high - alone.low)
    assert difference(good, good, weights).high == 0.0


def test_calibration_error_and_brier() -> None:
    told, good = np.array([0.8] * 10 + [0.2] * 10), np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 2 + [0.0] * 8)
    assert calibration_error(told, good, bins=2) == pytest.approx(0.0)
    assert brier(told, good) == pytest.approx(0.16)
    assert calibration_error(np.full(10, 0.9), np.array([1.0, 0.0] * 5), bins=1) == pytest.approx(0.4)
