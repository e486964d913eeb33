"""When does a box get too hot, what can it do for long, and what does the vehicle do about it?

One thermal node: power heats a capacity, which cools through a resistance into the air (the first-order RC circuit that
compact thermal models are made of; Skadron et al. 2003, HotSpot; one time constant per Brooks and Martonosi 2001).
From the throttling temperature on, power is held at what the resistance carries away there. Power follows load
linearly, and throughput follows power above idle: only clocks are lowered, no voltages, so that it errs low.

The rule kept: resistance and capacity belong to a box's cooling and are never guessed; they come from the profile, or
are fitted to temperatures that were read (:func:`fit_node`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from codriver.core.config import build
from codriver.core.errors import BadConfigValue

from .target import Step, Target

# The mildest first. A vehicle that can read neither temperature nor power stays in the first.
_USUAL = (
    Step("normal", margin_c=-1.0, power_share=0.0),
    Step("warm", margin_c=10.0, power_share=0.75, threads_share=0.75, cadence=2.0),
    Step("hot", margin_c=5.0, power_share=0.5, artifact="smaller", threads_share=0.5, cadence=4.0),
    Step("critical", margin_c=1.0, power_share=0.2, artifact="none", threads_share=0.0, cadence=0.0),
)


@dataclass(frozen=True)
class Node:
    """``ambient_c``: of the air that it cools into."""

    resistance_k_per_w: float
    capacity_j_per_k: float
    throttle_c: float
    idle_w: float
    ambient_c: float

    @property
    def constant_s(self) -> float:
        """In this time 63 % of a step of power have shown."""
        return self.resistance_k_per_w * self.capacity_j_per_k

    def steady_c(self, power_w: float) -> float:
        """Where the temperature goes under a power that stays, if nothing throttles."""
        return self.ambient_c + power_w * self.resistance_k_per_w

    def temperature_c(self, power_w: float, seconds: float, start_c: float | None = None) -> float:
        """After ``seconds`` under a power, from ``start_c`` (what idling leads to, when not given); no throttling."""
        start = self.steady_c(self.idle_w) if start_c is None else start_c
        steady = self.steady_c(power_w)
        return steady + (start - steady) * math.exp(-seconds / self.constant_s)

    @property
    def sustained_w(self) -> float:
        """The power that holds it at the throttling temperature."""
        return max(0.0, (self.throttle_c - self.ambient_c) / self.resistance_k_per_w)

    def seconds_to_throttle(self, power_w: float, start_c: float | None = None) -> float:
        """Infinite for a power that it can take for good; 0 for a start beyond the throttling temperature."""
        start = self.steady_c(self.idle_w) if start_c is None else start_c
        if start >= self.throttle_c:
            return 0.0
        steady = self.steady_c(power_w)
        if steady <= self.throttle_c:
            return math.inf
        return self.constant_s * math.log((steady - start) / (steady - self.throttle_c))

    def sustained_share(self, power_w: float) -> float:
        """The share of its throughput that a load of ``power_w`` keeps for good."""
        above = power_w - self.idle_w
        if above <= 0:
            return 1.0
        return min(1.0, max(0.0, (self.sustained_w - self.idle_w) / above))


@dataclass(frozen=True)
class State:
    """What a vehicle knows of its computer now; ``None`` for what it cannot read. ``power_w``: what it may take."""

    temperature_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Action:
    """What is done: which artifact answers, on how many threads, and every how many periods periodic work is done."""

    name: str
    artifact: Literal["full", "smaller", "none"]
    threads: int
    cadence: float


def load_w(target: Target, load: float) -> float:
    """Power at a load between 0 and 1. Errors: :class:`BadConfigValue` naming the figure that the profile lacks."""
    idle = target.need("power.idle_w")
    return idle + (target.need("power.budget_w") - idle) * min(1.0, max(0.0, load))


def node_of(target: Target, ambient_c: float) -> Node:
    """Errors: :class:`BadConfigValue` naming the figure that the profile lacks, and why."""
    return Node(
        target.need("power.resistance_k_per_w"),
        target.need("power.capacity_j_per_k"),
        target.need("power.throttle_c"),
        target.need("power.idle_w"),
        ambient_c,
    )


def fit_node(seconds: Sequence[float], celsius: Sequence[float], power_w: float, node: Node) -> Node:
    """``node`` with resistance and capacity that fit temperatures read under a power that stayed.

    Least squares over time constants on a logarithmic grid, the steady temperature solved for each. Errors:
    :class:`BadConfigValue` for fewer than four readings, or ones that do not rise.
    """
    times, read = np.asarray(seconds, float), np.asarray(celsius, float)
    if len(times) < 4 or np.ptp(times) <= 0:
        raise BadConfigValue(f"A thermal model needs four temperatures at least; {len(times)} were read.")
    best, found = math.inf, (0.0, 0.0)
    for constant in np.geomspace(np.ptp(times) / 20, np.ptp(times) * 20, 200):
        risen = 1 - np.exp(-(times - times[0]) / constant)
        rise = float(risen @ (read - read[0]) / (risen @ risen))
        lost = float(((read[0] + rise * risen - read) ** 2).sum())
        if lost < best:
            best, found = lost, (rise, float(constant))
    rise, constant = found
    steady = read[0] + rise
    if rise <= 0 or steady <= node.ambient_c or power_w <= 0:
        raise BadConfigValue("A thermal model cannot be fitted: the temperature does not rise under the load.")
    resistance = (steady - node.ambient_c) / power_w
    return dataclasses.replace(node, resistance_k_per_w=resistance, capacity_j_per_k=constant / resistance)


def steps_of(target: Target) -> tuple[Step, ...]:
    """The profile's table of actions, or the usual one. Errors: those of ``core.config.build``, naming the key."""
    if not target.actions.steps:
        return _USUAL
    found = []
    for number, row in enumerate(target.actions.steps):
        called = f"actions.steps[{number}]"
        if not isinstance(row, dict):
            raise BadConfigValue(f"'{called}' is {row!r}; allowed: a table.", param=called)
        step: Step = build(Step, row, called)
        if step.artifact not in ("full", "smaller", "none"):
            raise BadConfigValue(
                f"'{called}.artifact' is {step.artifact!r}; allowed: full | smaller | none.", param=f"{called}.artifact"
            )
        found.append(step)
    return tuple(found)


def action_for(target: Target, state: State, threads: int) -> Action:
    """The hardest row that holds. What is not known, of the state or of the target, makes no row hold."""
    throttle, budget = target.power.throttle_c, target.power.budget_w
    margin = throttle - state.temperature_c if throttle and state.temperature_c is not None else math.inf
    share = state.power_w / budget if budget and state.power_w is not None else math.inf
    steps = steps_of(target)
    chosen = steps[0]
    for step in steps[1:]:
        if margin <= step.margin_c or share <= step.power_share:
            chosen = step
    left = max(1, int(threads * chosen.threads_share)) if chosen.threads_share else 0
    return Action(chosen.name, chosen.artifact, left, chosen.cadence)  # type: ignore[arg-type]
