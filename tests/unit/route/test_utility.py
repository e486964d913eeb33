"""What asking an engine is worth, term by term."""

from __future__ import annotations

import math

import pytest

from codriver.core.engine import Price
from codriver.core.virtual import run_virtual
from codriver.route.config import RouteConfig
from codriver.route.lineup import Pace
from codriver.route.utility import Worth, expected_excess, worth
from tests.unit.route.drive import lineup_of
from tests.unit.route.faulty import Faulty, Weather


def worth_of(name: str, good: float = 0.7, deadline_s: float = 30.0, state: str = "up", price: float = 0.0) -> Worth:
    async def main() -> Worth:
        engines = (Faulty("v"), Faulty("c", "cloud", price=Price(price, price)))
        lineup = lineup_of(*engines, link=Weather(state))  # type: ignore[arg-type]
        lineup.paces["c"] = Pace(ttft_s=0.5, token_s=0.02, tokens=50)
        return worth(lineup, RouteConfig(), name, good, (deadline_s, 100, None))

    return run_virtual(main())


def test_with_time_and_no_price_it_is_the_quality() -> None:
    found = worth_of("c")
    assert (found.good, found.cost_usd) == (0.7, 0.0)
    assert found.utility == pytest.approx(0.7)


def test_a_price_is_taken_off_by_the_cent() -> None:
    found = worth_of("c", price=200.0)  # dollars a million tokens, for 150 tokens: 3 cents
    assert found.cost_usd == pytest.approx(0.03)
    assert found.utility == pytest.approx(0.7 - 0.05 * 3)


def test_a_short_deadline_makes_a_slow_engine_worth_less() -> None:
    in_time, tight, hopeless = (worth_of("c", deadline_s=s).utility for s in (30.0, 1.5, 0.2))
    assert in_time > tight > hopeless


def test_a_degraded_link_makes_the_cloud_later_and_not_the_vehicle() -> None:
    assert worth_of("c", deadline_s=2.0, state="degraded").late_s > worth_of("c", deadline_s=2.0).late_s
    assert worth_of("v", deadline_s=2.0, state="degraded") == worth_of("v", deadline_s=2.0)


def test_expected_excess() -> None:
    assert expected_excess(5.0, 0.0, 3.0) == 2.0
    assert expected_excess(1.0, 1.0, math.inf) == 0.0
    assert expected_excess(0.0, 1.0, 0.0) == pytest.approx(0.3989, abs=1e-3)
    assert expected_excess(1.0, 0.1, 9.0) == pytest.approx(0.0, abs=1e-9)
