"""Link traces: the shipped figures, the derivation, outages, windows and the capacity curve."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from codriver.bench import traces
from codriver.core.errors import BadConfigValue, MissingFile, UnknownEntry

RECORDED = ("ATT-LTE-driving-2016", "TMobile-LTE-short", "TMobile-UMTS-driving", "Verizon-LTE-short")
MAHIMAHI = Path(__file__).resolve().parents[4] / "shared" / "data" / "traces"


def test_names_lists_recorded_and_generated() -> None:
    assert traces.names() == (*RECORDED, "ideal", "tunnel")


@pytest.mark.parametrize("name", RECORDED)
def test_shipped_figures_are_what_the_derivation_gives(name: str) -> None:
    if not MAHIMAHI.is_dir():
        pytest.skip("the mahimahi traces are not beside this checkout (../shared/data/traces)")
    derived = traces.from_mahimahi(MAHIMAHI / f"{name}.down", MAHIMAHI / f"{name}.up")
    assert derived == traces.load(name)


@pytest.mark.parametrize("name", traces.names())
def test_every_trace_survives_its_json(name: str) -> None:
    trace = traces.load(name)
    assert trace.duration_s >= 60
    assert trace.mean_kbps("down") > 0 and trace.mean_kbps("up") > 0
    if name in RECORDED:
        assert traces.from_json(traces.to_json(trace)) == trace
        assert "NSDI 2013" in trace.source


def test_the_umts_drive_goes_through_long_silences() -> None:
    trace = traces.load("TMobile-UMTS-driving")
    assert trace.duration_s == pytest.approx(928.4)
    outages = trace.outages()
    assert len(outages) == 26
    assert max(end - start for start, end in outages) == pytest.approx(14.2)
    for start_s, end_s in outages:
        part = trace.window(start_s, end_s - start_s)
        assert all(not (down and up) for down, up in zip(part.down_bytes, part.up_bytes, strict=True))
        assert part.outages(100) == [(0.0, part.duration_s)]
        assert part.duration_s == pytest.approx(end_s - start_s)


def test_the_tunnel_is_dark_when_it_says() -> None:
    trace = traces.tunnel(before_s=2.0, dark_s=3.0, after_s=1.0, kbps=800.0)
    assert trace.outages() == [(2.0, 5.0)]
    assert trace.outages(min_ms=3001) == []
    assert trace.capacity_bytes("down", 1999) == 10_000
    assert trace.capacity_bytes("up", 2000) == 0
    assert trace.capacity_bytes("up", 6000 + 2000) == 0
    assert trace.mean_kbps("down") == pytest.approx(400)


def test_a_silence_in_one_direction_is_an_outage_too() -> None:
    trace = traces.LinkTrace("t", "test", 100, (0,) * 6 + (9,) * 10, (9,) * 5 + (0,) * 5 + (9,) * 6)
    assert trace.outages(1000) == [(0.0, 1.0)]


def test_window_cuts_whole_steps() -> None:
    trace = traces.load("ATT-LTE-driving-2016")
    part = trace.window(10.0, 5.0)
    assert part.down_bytes == trace.down_bytes[100:150]
    assert trace.window(119.0, 60.0).duration_s == pytest.approx(1.0)
    with pytest.raises(BadConfigValue, match="lasts 120 s"):
        trace.window(120.0, 1.0)


@pytest.mark.parametrize("loop", [True, False])
def test_the_curve_and_its_inverse_agree(loop: bool) -> None:
    rng = random.Random(5)
    for _ in range(200):
        steps = [rng.choice([0, 0, 1500, rng.randrange(1, 90_000)]) for _ in range(rng.randrange(1, 40))]
        curve = traces.CapacityCurve(steps, 100, loop)
        for _ in range(20):
            t_ms = rng.uniform(0, len(steps) * (350 if loop else 100))
            passed = curve.bytes_until(t_ms)
            first_ms = curve.time_ms(passed)
            assert first_ms <= t_ms + 1e-6
            assert curve.bytes_until(first_ms) == pytest.approx(passed, abs=1e-3)
            if passed > 1:
                assert curve.bytes_until(max(0.0, first_ms - 0.01)) < passed


def test_the_curve_counts_step_by_step_and_ends_without_loop() -> None:
    curve = traces.CapacityCurve([1000, 0, 500], 100, loop=False)
    assert [curve.bytes_until(t_ms) for t_ms in (0, 50, 100, 150, 200, 300, 900)] == [
        0,
        500,
        1000,
        1000,
        1000,
        1500,
        1500,
    ]
    assert curve.time_ms(1000) == 100
    assert curve.time_ms(1000.5) == pytest.approx(200.1)
    assert curve.time_ms(1501) == math.inf
    assert traces.CapacityCurve([0, 0], 100).time_ms(1) == math.inf


def test_from_mahimahi_counts_packets(tmp_path: Path) -> None:
    (tmp_path / "t.down").write_text("0\n0\n99\n100\n350\n")
    (tmp_path / "t.up").write_text("250\n320\n")
    trace = traces.from_mahimahi(tmp_path / "t.down", tmp_path / "t.up")
    assert trace.down_bytes == (4500, 1500, 0)
    assert trace.up_bytes == (0, 0, 1500)


def test_bad_traces_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UnknownEntry, match=r"no link trace 'mars'\. Known are: ATT"):
        traces.load("mars")
    with pytest.raises(MissingFile, match="mahimahi"):
        traces.from_mahimahi(tmp_path / "t.down", tmp_path / "t.up")
    (tmp_path / "t.down").write_text("0\nfive\n")
    with pytest.raises(BadConfigValue, match="whole millisecond"):
        traces.from_mahimahi(tmp_path / "t.down", tmp_path / "t.down")
    (tmp_path / "t.down").write_text("")
    with pytest.raises(BadConfigValue, match="empty"):
        traces.from_mahimahi(tmp_path / "t.down", tmp_path / "t.down")
    with pytest.raises(BadConfigValue, match="as many steps"):
        traces.LinkTrace("t", "test", 100, (1,), ())
    with pytest.raises(BadConfigValue, match="negative"):
        traces.LinkTrace("t", "test", 100, (1,), (-1,))
