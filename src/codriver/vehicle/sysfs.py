"""What Linux tells of a computer's heat, power and battery, in files that each hold one number.

Temperatures in thousandths of a degree (``class/thermal/thermal_zone*/temp``, the kernel's "Generic Thermal Sysfs
driver How To"), power in millionths of a watt (``power1_cap`` of hwmon, ``constraint_0_power_limit_uw`` of powercap),
a charge in per cent (ABI/testing/sysfs-class-power). The rule kept: a number that no computer can have is none.
"""

from __future__ import annotations

import math
from pathlib import Path

from codriver.core.errors import MissingFile

ROOT = Path("/sys")
_LIKELY_C = (-40.0, 150.0)  # sensors that are not connected tell nonsense
_LIKELY_W = (0.0, 10_000.0)


def hottest_c(root: Path = ROOT) -> float:
    """Of all thermal zones; NaN where none tells a likely temperature."""
    found = [_number(zone) / 1000 for zone in root.glob("class/thermal/thermal_zone*/temp")]
    return max((one for one in found if _LIKELY_C[0] < one < _LIKELY_C[1]), default=math.nan)


def charge(root: Path = ROOT) -> float:
    """Of a battery that is being emptied, the emptiest, 0 to 1; NaN where there is none."""
    charges = []
    for supply in root.glob("class/power_supply/*"):
        if _text(supply / "type") == "Battery" and _text(supply / "status") == "Discharging":
            charges.append(_number(supply / "capacity") / 100)
    return min((one for one in charges if 0 <= one <= 1), default=math.nan)


def temperature_c(file: Path) -> float:
    """Errors: :class:`MissingFile` naming the file and what it tells instead."""
    return _needed(file, "temperature in thousandths of a degree", 1e3, _LIKELY_C)


def power_w(file: Path) -> float:
    """Errors: :class:`MissingFile` naming the file and what it tells instead."""
    return _needed(file, "power in millionths of a watt", 1e6, _LIKELY_W)


def _needed(file: Path, what: str, by: float, likely: tuple[float, float]) -> float:
    try:
        text = file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise MissingFile(f"The file {file} cannot be read, which should tell a {what}: {error.strerror}.") from error
    try:
        value = float(text) / by
    except ValueError:
        value = math.nan
    if not likely[0] <= value <= likely[1]:
        raise MissingFile(f"The file {file} tells no {what} that a computer can have: '{text[:40]}'.")
    return value


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
