"""Recorded outcomes through the real router in virtual time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from codriver.bench import traces
from codriver.bench.datasets import Outcome
from codriver.bench.drive import replay, strong_share
from codriver.bench.drive_inputs import data_folder, for_calibration
from codriver.bench.drive_outcomes import summarise
from codriver.bench.drive_replay import Pair, Replayed, drive_pair, pairs
from codriver.bench.drive_settings import DriveSettings, Window
from codriver.bench.replay_link import VirtualLink
from codriver.bench.replay_router import FOLDS, accuracy, by_category, by_oracle, cross_fit, escalated, fold_of
from codriver.core.errors import BadConfigValue, MissingFile
from codriver.core.virtual import LoopClock, run_virtual
from codriver.engines.replay import EmpiricalTiming
from codriver.route.gain import fit_gain

pytest.importorskip("numpy", reason="fitting a router needs numpy (the extra bench)")
TIMING = EmpiricalTiming(((400.0, 5.0), (600.0, 8.0)))


def outcomes(n: int = 300) -> tuple[Outcome, ...]:
    """The weak model is right on rivers and wrong on sums; the strong one the other way round on a few."""
    chance = random.Random(1)
    found = []
    for i in range(n):
        sums = i % 2 == 0
        words = " ".join(chance.choice(["alpha", "beta", "gamma", "delta", "long", "old"]) for _ in range(6))
        prompt = f"Compute the sum {i} of {words}" if sums else f"Name the river {i} near {words}"
        found.append(Outcome(f"o-{i}", "toy", "sums" if sums else "rivers", prompt, not sums, sums or i % 10 != 1))
    return tuple(found)


def given(trace: traces.LinkTrace) -> Replayed:
    return Replayed(Window(trace, 0.0, trace.duration_s), TIMING, DriveSettings(traces=(trace.name,)))


def test_router_learns_who_gains_from_the_cloud() -> None:
    known = outcomes()
    chosen = escalated(known, cross_fit(known), calls=0.5)
    right = accuracy(known, chosen)
    assert 0.45 < sum(chosen) / len(chosen) < 0.55
    assert sum(right) / len(right) > 0.95


def test_no_request_is_judged_by_what_saw_it() -> None:
    same = [Outcome(f"o-{i}", "toy", "x", "the very same prompt", True, False) for i in range(3)]
    assert len({fold_of(one) for one in same}) == 1
    assert {fold_of(one) for one in outcomes()} == set(range(FOLDS))


def test_yardsticks_call_as_often_as_told() -> None:
    known = outcomes()
    assert sum(by_category(known, 100)) == sum(by_oracle(known, 100)) == 100
    assert all(one.category == "sums" for one, call in zip(known, by_category(known, 100), strict=True) if call)


def test_policies_over_a_steady_link() -> None:
    pair = Pair("toy", "toys", outcomes())
    routers = cross_fit(pair.outcomes)
    found = {
        policy: summarise(drive_pair(policy, pair, routers, given(traces.ideal())))
        for policy in ("vehicle-only", "cloud-only", "cloud with fallback", "codriver")
    }
    assert all(one.answered_in_time.value == 1.0 for one in found.values())
    assert found["vehicle-only"].cloud_calls.value == 0.0
    assert found["cloud-only"].by_cloud == 300
    assert found["codriver"].accuracy.value > found["cloud-only"].accuracy.value > found["vehicle-only"].accuracy.value
    assert found["codriver"].cloud_calls.value < 0.55


def test_an_outage_costs_cloud_only_its_answers_and_nobody_else() -> None:
    pair = Pair("toy", "toys", outcomes())
    routers = cross_fit(pair.outcomes)
    tunnel = traces.tunnel(before_s=60.0, dark_s=40.0, after_s=60.0)
    alone = summarise(drive_pair("cloud-only", pair, routers, given(tunnel)))
    routed = summarise(drive_pair("codriver", pair, routers, given(tunnel)))
    assert alone.answered_in_time.value < 0.9
    assert routed.answered_in_time.value == 1.0


def test_the_link_carries_nothing_in_an_outage() -> None:
    async def arrivals() -> tuple[float, float]:
        link = VirtualLink(traces.tunnel(before_s=2.0, dark_s=5.0, kbps=8000.0), LoopClock(), base_delay_ms=20.0)
        clock = LoopClock()
        await link.carry("up", 1000)
        first_s = clock.monotonic_s()
        await clock.sleep(3.0 - first_s)
        await link.carry("down", 1000)
        return first_s, clock.monotonic_s()

    first_s, second_s = run_virtual(arrivals())
    assert first_s == pytest.approx(0.021, abs=1e-3)
    assert second_s == pytest.approx(7.021, abs=1e-3)


def test_strong_share_and_its_interval() -> None:
    found = strong_share([(True, True)] * 90 + [(False, True)] * 10)
    assert found.value == pytest.approx(0.9)
    assert found.low < 0.9 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.03, rel=0.3)


def test_gain_model_needs_samples() -> None:
    with pytest.raises(BadConfigValue, match="at least 20 samples; there are 1"):
        fit_gain([({0: 1.0}, 1.0)])


def test_gain_model_reads_as_a_prior() -> None:
    samples = [({0: 1.0, 5: float(i % 2)}, float(i % 2)) for i in range(200)]
    model = fit_gain(samples, decay=1e-3)
    assert model.probability({0: 1.0, 5: 0.0}) == pytest.approx(0.5, abs=0.01)
    assert model.probability({0: 1.0, 5: 1.0}) < 0.05


def test_recorded_outcomes_are_asked_for_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODRIVER_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(BadConfigValue, match=r"CODRIVER_DATA is .*nowhere, which is no folder"):
        data_folder()
    monkeypatch.setenv("CODRIVER_DATA", str(tmp_path))
    with pytest.raises(MissingFile, match=r"No mmlu_\*.csv in .*RouteLLM"):
        pairs(data_folder())


def test_calibration_and_drive_share_no_item() -> None:
    part = sum(for_calibration(f"asdiv-{n}") for n in range(3000)) / 3000
    assert 0.3 < part < 0.37


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (DriveSettings(policies=("codriver", "codriver with a first sentence")), "first sentence' cannot be replayed"),
        (DriveSettings(policies=("codriver with everything on",)), "everything on' cannot be replayed"),
        (DriveSettings(classes=True), "Privacy classes cannot be replayed"),
    ],
)
def test_what_no_recording_tells_is_refused(settings: DriveSettings, sentence: str) -> None:
    with pytest.raises(BadConfigValue, match=sentence):
        replay(settings)
