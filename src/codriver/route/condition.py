"""How hard the car's computer may be asked to work now: its heat, and its battery where it runs on one.

``strain`` is 0 where all is well and 1 where nothing should be computed here that another can compute. Both are read by
``vehicle/sysfs.py``. Rule: what cannot be read counts as all well, and reading is done at most once in ``EVERY_S``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.vehicle.sysfs import ROOT, charge, hottest_c

from .config import RouteConfig

EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Condition:
    """``celsius``: of the hottest part; ``charge``: of a battery that is being emptied, 0 to 1; NaN: not known."""

    celsius: float = math.nan
    charge: float = math.nan

    def strain(self, config: RouteConfig) -> float:
        """0 to 1: the worse of heat, between ``warm_c`` and ``hot_c``, and of a charge below ``low_charge``."""
        heat = _share(self.celsius - config.warm_c, config.hot_c - config.warm_c)
        empty = _share(config.low_charge - self.charge, config.low_charge)
        return max(heat, empty)

    def __str__(self) -> str:
        told = []
        if not math.isnan(self.celsius):
            told.append(f"{self.celsius:.0f} °C")
        if not math.isnan(self.charge):
            told.append(f"battery {self.charge:.0%}")
        return ", ".join(told) or "unknown"


class NoSensors:
    """Where nobody measures, all is well."""

    def read(self) -> Condition:
        return _WELL


class Sysfs(NoSensors):
    """What Linux tells under ``root``."""

    def __init__(self, root: Path = ROOT, clock: Clock = SYSTEM_CLOCK) -> None:
        self._root, self._clock = root, clock
        self._found = _WELL
        self._read_at_s = -math.inf

    def read(self) -> Condition:
        """The latest reading, at most ``EVERY_S`` old."""
        now_s = self._clock.monotonic_s()
        if now_s - self._read_at_s >= EVERY_S:
            self._read_at_s = now_s
            self._found = Condition(hottest_c(self._root), charge(self._root))
        return self._found


_WELL = Condition()
NO_SENSORS = NoSensors()


def _share(part: float, whole: float) -> float:
    if math.isnan(part):
        return 0.0
    return min(1.0, max(0.0, part / whole)) if whole > 0 else float(part > 0)
