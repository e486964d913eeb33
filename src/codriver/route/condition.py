"""How hard the car's computer may be asked to work now: its heat, and its battery where it runs on one.

``strain`` is 0 where all is well and 1 where nothing should be computed here that another can compute. Linux tells
both in sysfs: ``class/thermal/thermal_zone*/temp`` in thousandths of a degree (the kernel's "Generic Thermal Sysfs
driver How To") and ``class/power_supply/*/capacity`` in per cent (ABI/testing/sysfs-class-power). Rule: what cannot be
read counts as all well, and reading is done at most once in ``EVERY_S``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from codriver.core.clock import SYSTEM_CLOCK, Clock

from .config import RouteConfig

EVERY_S = 5.0
# Sensors that are not connected tell nonsense.
_LIKELY_C = (-40.0, 150.0)


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

    def __init__(self, root: Path = Path("/sys"), clock: Clock = SYSTEM_CLOCK) -> None:
        self._root, self._clock = root, clock
        self._found = _WELL
        self._read_at_s = -math.inf

    def read(self) -> Condition:
        """The latest reading, at most ``EVERY_S`` old."""
        now_s = self._clock.monotonic_s()
        if now_s - self._read_at_s >= EVERY_S:
            self._read_at_s = now_s
            self._found = Condition(self._celsius(), self._charge())
        return self._found

    def _celsius(self) -> float:
        zones = self._root.glob("class/thermal/thermal_zone*/temp")
        found = [_number(zone) / 1000 for zone in zones]
        likely = [one for one in found if _LIKELY_C[0] < one < _LIKELY_C[1]]
        return max(likely, default=math.nan)

    def _charge(self) -> float:
        charges = []
        for supply in self._root.glob("class/power_supply/*"):
            if _text(supply / "type") == "Battery" and _text(supply / "status") == "Discharging":
                charges.append(_number(supply / "capacity") / 100)
        return min((one for one in charges if 0 <= one <= 1), default=math.nan)


_WELL = Condition()
NO_SENSORS = NoSensors()


def _share(part: float, whole: float) -> float:
    if math.isnan(part):
        return 0.0
    return min(1.0, max(0.0, part / whole)) if whole > 0 else float(part > 0)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> float:
    try:
        return float(_text(file))
    except ValueError:
        return math.nan
