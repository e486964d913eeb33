"""Periodic work that is done less often, or not at all."""

from __future__ import annotations

import pytest

from codriver.core.cadence import Cadence


@pytest.mark.parametrize(
    ("factor", "period_s", "done"), [(1.0, 2.0, 12), (2.0, 4.0, 6), (4.0, 8.0, 3), (1.5, 3.0, 8), (0.0, 2.0, 0)]
)
def test_every_so_many_of_its_periods(factor: float, period_s: float, done: int) -> None:
    cadence = Cadence(factor)
    assert cadence.stretched_s(2.0) == period_s
    assert sum(cadence.due() for _ in range(12)) == done
