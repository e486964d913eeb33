"""One thermal node against its own differential equation, and what a vehicle does as it gets hot."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import pytest

from codriver.core.errors import BadConfigValue, UnknownConfigKey
from codriver.optimize.targets.actions import Slack, State, action_for, row_for, steps_of
from codriver.optimize.targets.sustain import drift
from codriver.optimize.targets.target import Target, find_target
from codriver.optimize.targets.thermal import Node, fit_node, load_w, node_of

NODE = Node(resistance_k_per_w=4.0, capacity_j_per_k=50.0, throttle_c=80.0, idle_w=3.0, ambient_c=25.0)
OWN = """
[power]
budget_w = 20.0
idle_w = 3.0
throttle_c = 80.0
resistance_k_per_w = 4.0
capacity_j_per_k = 50.0
"""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    return find_target(str(file))


def test_the_temperature_solves_the_heat_equation() -> None:
    power, step_s, celsius, seconds = 20.0, 0.01, NODE.steady_c(NODE.idle_w), 0.0
    reached = None
    while seconds < 600:
        celsius += step_s * (power - (celsius - NODE.ambient_c) / NODE.resistance_k_per_w) / NODE.capacity_j_per_k
        seconds += step_s
        if reached is None and celsius >= NODE.throttle_c:
            reached = seconds
    assert NODE.temperature_c(power, 600) == pytest.approx(celsius, abs=0.05)
    assert reached is not None and NODE.seconds_to_throttle(power) == pytest.approx(reached, abs=0.1)


def test_what_it_can_take_for_good() -> None:
    assert NODE.sustained_w == pytest.approx(55 / 4)
    assert NODE.seconds_to_throttle(NODE.sustained_w - 0.1) == math.inf
    assert NODE.seconds_to_throttle(20.0, start_c=85.0) == 0.0
    assert NODE.sustained_share(20.0) == pytest.approx((55 / 4 - 3) / 17)
    assert NODE.sustained_share(10.0) == 1.0
    hotter = dataclasses.replace(NODE, ambient_c=70.0)
    assert hotter.sustained_share(20.0) == 0.0, "what idling needs is more than such air takes"


def test_resistance_and_capacity_are_found_in_what_was_read() -> None:
    noise = random.Random(3)
    seconds = [5.0 * at for at in range(60)]
    read = [NODE.temperature_c(15.0, at) + noise.gauss(0, 0.3) for at in seconds]
    blank = dataclasses.replace(NODE, resistance_k_per_w=0.0, capacity_j_per_k=0.0)
    found = fit_node(seconds, read, 15.0, blank)
    assert found.resistance_k_per_w == pytest.approx(4.0, rel=0.05)
    assert found.constant_s == pytest.approx(NODE.constant_s, rel=0.15)
    with pytest.raises(BadConfigValue, match="needs four temperatures at least; 2 were read"):
        fit_node(seconds[:2], read[:2], 15.0, blank)
    with pytest.raises(BadConfigValue, match="does not rise under the load"):
        fit_node(seconds, read[::-1], 15.0, blank)


def test_a_profile_gives_the_node_or_says_what_it_lacks(target: Target) -> None:
    assert node_of(target, 25.0) == NODE
    assert load_w(target, 0.5) == pytest.approx(11.5)
    with pytest.raises(
        BadConfigValue, match=r"raspberry-pi-5 has no 'power\.resistance_k_per_w': depends on the cooler"
    ):
        node_of(find_target("raspberry-pi-5"), 25.0)


@pytest.mark.parametrize(
    ("state", "name", "artifact", "threads"),
    [
        (State(), "normal", "full", 4),
        (State(temperature_c=60.0, power_w=20.0), "normal", "full", 4),
        (State(temperature_c=71.0), "warm", "full", 3),
        (State(temperature_c=76.0), "hot", "smaller", 2),
        (State(temperature_c=60.0, power_w=9.0), "hot", "smaller", 2),
        (State(temperature_c=79.5, power_w=20.0), "critical", "none", 0),
        (State(temperature_c=90.0), "critical", "none", 0),
    ],
)
def test_what_is_done_follows_the_state(target: Target, state: State, name: str, artifact: str, threads: int) -> None:
    action = action_for(target, state, 4)
    assert (action.name, action.artifact, action.threads) == (name, artifact, threads)


def test_a_profile_may_have_a_table_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    table = "[[actions.steps]]\nname = 'all'\nmargin_c = -1.0\n"
    table += "[[actions.steps]]\nname = 'less'\nmargin_c = 20.0\ncadence = 3.0\n"
    file.write_text(OWN + table)
    action = action_for(find_target(str(file)), State(temperature_c=61.0), 2)
    assert (action.name, action.threads, action.cadence) == ("less", 2, 3.0)
    file.write_text(OWN + table.replace("cadence", "rhythm"))
    with pytest.raises(UnknownConfigKey, match=r"key 'rhythm' \(actions\.steps\[1\]\)"):
        action_for(find_target(str(file)), State(), 2)
    file.write_text(OWN + table + "artifact = 'tiny'\n")
    with pytest.raises(BadConfigValue, match=r"'actions\.steps\[1\]\.artifact' is 'tiny'; allowed: full \| smaller"):
        action_for(find_target(str(file)), State(), 2)


def test_a_row_is_left_only_once_it_clearly_stopped_holding(target: Target) -> None:
    """Throttling is at 80: warm from 70 on, hot from 75, critical from 79. Up at once, down three degrees later."""
    slack, rows = Slack(3.0, 0.05), []
    at = 0
    for celsius in (60, 70, 69, 67.5, 66.9, 75, 73, 72.5, 71.9, 80, 76.5, 75.9, 60):
        at = row_for(target, State(temperature_c=celsius), at, slack)
        rows.append(at)
    assert rows == [0, 1, 1, 1, 0, 2, 2, 2, 1, 3, 3, 2, 0]
    at = 2
    for watts, row in ((10.0, 2), (10.9, 2), (11.1, 1), (15.9, 1), (16.1, 0)):  # of 20: hot up to a half, warm to 0.75
        at = row_for(target, State(power_w=watts), at, slack)
        assert at == row


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("margin_c=5\n", r"'actions\.steps\[1\]\.name' is ''; allowed: a name of its own"),
        ("name='a'\nmargin_c=5\n", r"'actions\.steps\[1\]\.name' is 'a'; allowed"),
        ("name='b'\nthreads_share=0.0\n", r"threads_share' is 0: an artifact that answers needs threads"),
        ("name='b'\nmargin_c=5\n[[actions.steps]]\nname='c'\nmargin_c=9.5\n",
         r"'actions\.steps\[2\]\.margin_c' is 9\.5, more than the 5 of the row above it"),
        ("name='b'\n[[actions.steps]]\nname='c'\npower_share=0.5\n",
         r"steps\[2\]\.power_share' is 0\.5, more than the 0"),
    ],
)  # fmt: skip
def test_a_table_that_makes_no_sense_is_told(tmp_path: Path, rows: str, told: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"{OWN}[[actions.steps]]\nname='a'\n[[actions.steps]]\n{rows}")
    with pytest.raises(BadConfigValue, match=told):
        steps_of(find_target(str(file)))


def test_a_drift_is_seen_through_noise_and_none_is_not_invented() -> None:
    noise = random.Random(1)
    still = [100 + noise.gauss(0, 2) for _ in range(20)]
    assert not drift(still).clear
    still[7] = 400.0
    assert not drift(still).clear, "one slow run is no drift"
    slower = [100 + run + noise.gauss(0, 2) for run in range(20)]
    found = drift(slower)
    assert found.clear and 12 < found.low < found.percent < found.high < 24
    with pytest.raises(ValueError, match="four"):
        drift([1.0, 2.0, 3.0])
