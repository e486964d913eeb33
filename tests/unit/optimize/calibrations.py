"""A machine that was measured and calibrated: round figures, so that what is predicted from them can be seen."""

from __future__ import annotations

from codriver.optimize.targets.host import HostFigures, Spread
from codriver.optimize.targets.predict import METRICS, Calibration, Fitted

TRUTH = Fitted(2e-5, 3e-4, 5e6)


def spread(value: float, unit: str = "Gop/s") -> Spread:
    return Spread(value, 0.9 * value, 1.1 * value, 9, unit)


def figures(machine: str = "a machine") -> HostFigures:
    kinds = {"F32": 20.0, "F16": 40.0, "Q8_0": 100.0, "Q4_0": 150.0, "Q4_1": 50.0, "Q6_K": 120.0}
    gbps = {
        name: spread(value, "GB/s") for name, value in (("read", 30.0), ("product_Q8_0", 24.0), ("product_F16", 20.0))
    }
    return HostFigures(
        machine, "2026-01-01T00:00:00", 0.1, 2, 2, 2.5, 16.0, ("avx2",), {}, gbps,
        {kind: spread(rate / 2) for kind, rate in kinds.items()}, {kind: spread(rate) for kind, rate in kinds.items()},
    )  # fmt: skip


def calibration(machine: str = "a machine", error: float = 0.1) -> Calibration:
    """``error``: the share by which it was wrong at most on what was left out."""
    errors = {metric: {"a": -error, "b": 0.7 * error} for metric in METRICS}
    return Calibration(machine, "2026-01-01T00:00:00", 2, 0.1, TRUTH, (), errors)
