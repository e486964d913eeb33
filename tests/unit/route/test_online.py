"""What driving teaches: it converges, follows, and cannot be driven wild."""

from __future__ import annotations

import math
import random

import pytest

from codriver.route.online import GATED, LEAST_VARIANCE, MOST, Shift


def logistic(score: float) -> float:
    return 1 / (1 + math.exp(-score))


@pytest.mark.parametrize("true_shift", [-1.2, 0.0, 0.8])
def test_it_converges_to_how_the_engine_really_is(true_shift: float) -> None:
    chance, shift = random.Random(4), Shift()
    for _ in range(3000):
        score = chance.gauss(0.3, 1.0)
        shift.learn(logistic(score), float(chance.random() < logistic(score + true_shift)))
    assert shift.mean == pytest.approx(true_shift, abs=0.3)
    assert LEAST_VARIANCE <= shift.variance < 0.02


@pytest.mark.parametrize("verdict", [0.0, 1.0])
def test_no_run_of_one_verdict_drives_it_past_its_bound(verdict: float) -> None:
    shift = Shift()
    for _ in range(10_000):
        shift.learn(0.5, verdict)
        assert abs(shift.mean) <= MOST
    assert shift.applied(0.5) == pytest.approx(logistic(shift.mean))


def test_noise_leaves_it_near_nothing() -> None:
    chance, shift, furthest = random.Random(5), Shift(), 0.0
    for number in range(5000):
        shift.learn(0.5, float(chance.random() < 0.5))
        furthest = max(furthest, abs(shift.mean)) if number > 100 else 0.0
    assert furthest < 0.6
    assert abs(shift.mean) < 0.3


def test_it_follows_an_engine_that_changes() -> None:
    shift = Shift()
    for _ in range(2000):
        shift.learn(0.5, 0.0)
    assert shift.mean < -1.5
    for _ in range(1000):
        shift.learn(0.5, 1.0)
    assert shift.mean > 0.0


def test_a_gate_counts_less_than_a_user() -> None:
    gate, user = Shift(), Shift()
    gate.learn(0.5, 0.0, GATED)
    user.learn(0.5, 0.0)
    assert user.mean < gate.mean < 0.0


@pytest.mark.parametrize("probability", [0.0, 1.0, 1e-300])
def test_certainties_and_wild_input_stay_finite(probability: float) -> None:
    shift = Shift()
    shift.learn(probability, 7.0, 50.0)
    shift.learn(probability, -7.0, -1.0)
    assert math.isfinite(shift.mean) and abs(shift.mean) <= MOST
    assert 0.0 < shift.applied(probability) < 1.0 or shift.mean == 0.0
