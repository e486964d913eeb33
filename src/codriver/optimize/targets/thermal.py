"""When does a box get too hot, and what can it do for long? What the vehicle does about it is ``actions.py``.

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

import numpy as np

from codriver.core.errors import BadConfigValue

from .target import Target


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
