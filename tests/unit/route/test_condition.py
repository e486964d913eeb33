"""Heat and an emptying battery: read from a tree as Linux has it, and what the router makes of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from codriver.core.clock import ManualClock
from codriver.route.condition import EVERY_S, NO_SENSORS, Condition, NoSensors, Sysfs
from codriver.route.config import RouteConfig
from codriver.route.decide import Decider
from codriver.route.utility import worth
from tests.unit.route.drive import ask, lineup_of
from tests.unit.route.faulty import Faulty

CONFIG = RouteConfig(warm_c=80, hot_c=100, low_charge=0.2, strain_weight=0.4)


def tree(root: Path, temps: dict[str, str], supplies: dict[str, dict[str, str]] | None = None) -> Path:
    for zone, text in temps.items():
        folder = root / "class/thermal" / f"thermal_zone{zone}"
        folder.mkdir(parents=True)
        (folder / "temp").write_text(text)
    for name, members in (supplies or {}).items():
        folder = root / "class/power_supply" / name
        folder.mkdir(parents=True)
        for member, text in members.items():
            (folder / member).write_text(text + "\n")
    return root


def battery(status: str, capacity: str) -> dict[str, str]:
    return {"type": "Battery", "status": status, "capacity": capacity}


@pytest.mark.parametrize(
    ("celsius", "charge", "strain"),
    [
        (math.nan, math.nan, 0.0),
        (60, 0.9, 0.0),
        (90, math.nan, 0.5),
        (130, 0.9, 1.0),
        (60, 0.1, 0.5),
        (60, 0.0, 1.0),
        (95, 0.1, 0.75),
    ],
)
def test_strain(celsius: float, charge: float, strain: float) -> None:
    assert Condition(celsius, charge).strain(CONFIG) == pytest.approx(strain)


def test_the_hottest_likely_zone_counts(tmp_path: Path) -> None:
    root = tree(tmp_path, {"0": "41000\n", "1": "88500\n", "2": "-274000\n", "3": "255000\n", "4": "x"})
    assert Sysfs(root).read().celsius == 88.5


@pytest.mark.parametrize(
    ("supplies", "charge"),
    [
        ({"BAT0": battery("Discharging", "15")}, 0.15),
        ({"BAT0": battery("Charging", "15")}, math.nan),
        ({"AC": {"type": "Mains", "online": "1"}}, math.nan),
        ({"BAT0": battery("Discharging", "80"), "BAT1": battery("Discharging", "30")}, 0.3),
        ({"BAT0": battery("Discharging", "?")}, math.nan),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}}, math.nan),
    ],
)
def test_the_battery_counts_while_it_is_emptied(
    tmp_path: Path, supplies: dict[str, dict[str, str]], charge: float
) -> None:
    assert Sysfs(tree(tmp_path, {}, supplies)).read().charge == pytest.approx(charge, nan_ok=True)


def test_a_machine_without_sensors_is_well(tmp_path: Path) -> None:
    assert Sysfs(tmp_path).read().strain(CONFIG) == NO_SENSORS.read().strain(CONFIG) == 0.0
    assert str(Condition()) == "unknown"


async def test_it_reads_now_and_then(tmp_path: Path) -> None:
    clock = ManualClock()
    sensors = Sysfs(tree(tmp_path, {"0": "50000"}), clock)
    assert sensors.read().celsius == 50
    (tmp_path / "class/thermal/thermal_zone0/temp").write_text("99000")
    assert sensors.read().celsius == 50
    await clock.advance(EVERY_S)
    assert sensors.read().celsius == 99


class Hot(NoSensors):
    def read(self) -> Condition:
        return Condition(100.0, 0.5)


def test_a_hot_vehicle_is_worth_less_and_a_cloud_is_not() -> None:
    well, hot = (
        lineup_of(Faulty("vehicle"), Faulty("cloud", "cloud")),
        lineup_of(Faulty("vehicle"), Faulty("cloud", "cloud"), sensors=Hot()),
    )
    limits = (30.0, 10, 20)
    for engine, less in (("vehicle", 0.4), ("cloud", 0.0)):
        before, after = (worth(lineup, CONFIG, engine, 0.8, limits).utility for lineup in (well, hot))
        assert before - after == pytest.approx(less)


def test_a_hot_vehicle_drafts_less_and_says_why() -> None:
    engines = (Faulty("vehicle"), Faulty("cloud", "cloud"))
    config = RouteConfig(skip_below=0.25, warm_c=80, hot_c=100, strain_weight=0.7)
    well = Decider(lineup_of(*engines), config).plan(ask())
    hot = Decider(lineup_of(*engines, sensors=Hot()), config).plan(ask())
    assert [attempt.engine for attempt in well.attempts] == ["vehicle", "cloud"]
    assert [attempt.engine for attempt in hot.attempts] == ["cloud", "vehicle"]
    assert "spares the vehicle (100 °C, battery 50%): the vehicle would be right with p=" in hot.explain()


def test_a_hot_vehicle_still_answers_when_it_is_alone() -> None:
    alone = Decider(lineup_of(Faulty("vehicle"), sensors=Hot()), CONFIG).plan(ask())
    assert [attempt.engine for attempt in alone.attempts] == ["vehicle"]
