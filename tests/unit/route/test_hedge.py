"""A slow first attempt is joined by the next: who answers, what is stopped, what it costs. In virtual time."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.core.deadline import Deadline
from codriver.core.engine import Price
from codriver.core.messages import ResponseFormat
from codriver.core.plan import Attempt, AttemptPlan, Gate
from codriver.core.virtual import LoopClock, run_virtual
from codriver.observe.metrics import Metrics
from codriver.route.config import RouteConfig
from codriver.route.decide import Decider
from codriver.route.execute import Run
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Pace
from tests.unit.route.drive import Got, ask, lineup_of, through_plan, through_router, watch
from tests.unit.route.faulty import WORDS, Fault, Faulty

TEXT = "".join(WORDS)
LOCAL = tuple(f"{' ' if i else ''}v{i}" for i in range(12))


def plan(*, hedge_s: float = 1.0, first_token_s: float = 6.0, **more: Any) -> AttemptPlan:
    cloud = Attempt("cloud", "cloud", "first", start="at_once", first_token_s=first_token_s, hedge_s=hedge_s)
    vehicle = Attempt("vehicle", "vehicle", "the safety net", inter_token_s=3.0, total_s=30.0)
    return AttemptPlan((cloud, vehicle), deadline_s=30.0, policy="cloud-first", **more)


def engines(cloud_ttft_s: float = 0.1, fault: Fault | None = None, **more: Any) -> tuple[Faulty, Faulty]:
    cloud = Faulty("cloud", "cloud", ttft_s=cloud_ttft_s, fault=fault or Fault(), **more)
    return cloud, Faulty("vehicle", words=LOCAL, ttft_s=0.3)


def clean(got: Got) -> bool:
    return not got.still_open and got.tasks_left == 0


def test_a_quick_first_attempt_is_left_alone() -> None:
    cloud, vehicle = engines(cloud_ttft_s=0.9)
    got = through_plan(plan(), ask(), cloud, vehicle)
    assert got.text == TEXT
    assert vehicle.calls == 0
    assert got.records[0].ttft_ms == pytest.approx(900)
    assert clean(got)


def test_a_slow_one_loses_to_the_one_that_joins() -> None:
    cloud, vehicle = engines(cloud_ttft_s=5.0)
    got = through_plan(plan(), ask(), cloud, vehicle)
    assert got.text == "".join(LOCAL)
    assert got.outcomes() == [("cloud", "hedge_lost"), ("vehicle", "answered")]
    assert [record.started_ms for record in got.records] == [0.0, 1000.0]
    assert got.records[1].why == "joins cloud, which is slow to begin"
    assert got.records[1].ttft_ms == pytest.approx(300)
    assert got.took_s == pytest.approx(1.3 + 11 * 0.05)
    assert clean(got)


def test_a_slow_one_that_still_comes_first_wins() -> None:
    cloud, vehicle = engines(cloud_ttft_s=1.2)
    got = through_plan(plan(), ask(), cloud, vehicle)
    assert got.text == TEXT
    assert got.outcomes() == [("cloud", "answered"), ("vehicle", "hedge_lost")]
    assert got.records[0].ttft_ms == pytest.approx(1200)
    assert vehicle.open == 0
    assert clean(got)


def test_the_loser_is_stopped_at_once() -> None:
    cloud, vehicle = engines(cloud_ttft_s=5.0)
    vehicle.token_s = 2.0
    seen: list[int] = []

    async def main() -> None:
        lineup = lineup_of(cloud, vehicle)
        run = Run(lineup, RouteConfig(), plan(), ask(), Deadline.never(LoopClock()))
        async for _ in run.chunks():
            seen.append(cloud.open)

    run_virtual(main())
    assert cloud.calls == 1
    # What came with the first token is given out before anybody waits again.
    assert seen[2:] == [0] * (len(seen) - 2)


@pytest.mark.parametrize("kind", ["die", "refuse", "empty"])
def test_a_first_attempt_that_dies_before_its_hedge_is_followed_as_ever(kind: Any) -> None:
    cloud, vehicle = engines(fault=Fault(kind))
    got = through_plan(plan(), ask(), cloud, vehicle)
    assert got.text == "".join(LOCAL)
    assert got.took_s < 1.0
    assert [engine for engine, _ in got.outcomes()] == ["cloud", "vehicle"]
    assert got.records[1].why == "the safety net"
    assert clean(got)


def test_who_dies_in_the_race_leaves_the_other_running() -> None:
    cloud, vehicle = engines(cloud_ttft_s=2.0)
    vehicle.fault = Fault("die")
    got = through_plan(plan(), ask(), cloud, vehicle)
    assert got.text == TEXT
    assert got.outcomes() == [("cloud", "answered"), ("vehicle", "engine_died")]
    assert clean(got)


def test_a_silent_cloud_still_runs_out_of_time_while_the_vehicle_is_slow() -> None:
    cloud, vehicle = engines(fault=Fault("stall"))
    vehicle.ttft_s = 20.0
    got = through_plan(plan(first_token_s=4.0), ask(), cloud, vehicle)
    assert got.text == "".join(LOCAL)
    assert got.outcomes() == [("cloud", "first_token_timeout"), ("vehicle", "answered")]
    assert got.records[0].took_ms == pytest.approx(4000)
    assert clean(got)


def test_when_both_die_the_last_one_says_why() -> None:
    cloud, vehicle = engines(fault=Fault("stall"))
    vehicle.fault = Fault("die")
    got = through_plan(plan(first_token_s=2.0), ask(), cloud, vehicle)
    assert got.error is not None
    assert "cloud: first_token_timeout; vehicle: engine_died" in got.error.message
    assert clean(got)


def test_the_loser_is_the_way_out_when_the_winner_dies_later() -> None:
    cloud, vehicle = engines(cloud_ttft_s=1.2, fault=Fault("die", after=5))
    vehicle.words = WORDS
    got = through_plan(plan(), ask(), cloud, vehicle)
    assert got.text == TEXT
    assert got.outcomes() == [("cloud", "engine_died"), ("vehicle", "hedge_lost"), ("vehicle", "answered")]
    assert got.extension["failovers"][0]["to"] == "vehicle"
    assert clean(got)


def test_a_link_that_goes_down_is_not_waited_for() -> None:
    cloud, vehicle = engines(fault=Fault("stall"))
    got = through_plan(plan(hedge_s=3.0), ask(), cloud, vehicle, schedule=((0.5, "down"),))
    assert got.text == "".join(LOCAL)
    assert got.records[1].started_ms == pytest.approx(500)
    assert clean(got)


@pytest.mark.parametrize("cancel_s", [0.5, 1.1, 1.29, 1.31, 1.6])
def test_a_client_that_leaves_stops_both(cancel_s: float) -> None:
    cloud, vehicle = engines(cloud_ttft_s=5.0)
    got = through_plan(plan(), ask(), cloud, vehicle, cancel_s=cancel_s)
    assert got.cancelled
    assert clean(got)
    assert {record.outcome for record in got.records} <= {"cancelled", "hedge_lost"}


def test_an_answer_that_must_be_whole_is_raced_for_too() -> None:
    cloud, vehicle = engines(cloud_ttft_s=5.0)
    vehicle.words = ('{"a"', ": 1", "}")
    request = ask(stream=False, response_format=ResponseFormat(type="json_object"))
    got = through_plan(plan(), request, cloud, vehicle)
    assert got.text == '{"a": 1}'
    assert got.outcomes()[0] == ("cloud", "hedge_lost")


def test_a_prompt_sent_in_vain_costs_what_the_budget_must_know() -> None:
    cloud, vehicle = engines(cloud_ttft_s=5.0, price=Price(input_usd=1000.0, output_usd=1.0))
    metrics = Metrics()

    async def main() -> Got:
        lineup = lineup_of(cloud, vehicle, metrics=metrics)
        run = Run(lineup, RouteConfig(), plan(), ask(), Deadline.never(LoopClock()))
        return await watch(run.chunks(), lineup)

    assert run_virtual(main()).text == "".join(LOCAL)
    page = metrics.render()[0].decode()
    assert 'codriver_hedges_total{answered_by="vehicle",engine="cloud"} 1.0' in page
    assert f'codriver_cost_usd_total{{engine="cloud"}} {1000 * (len(ask().text()) // 4) / 1e6:g}' in page


def test_a_budget_that_does_not_reach_keeps_the_second_out() -> None:
    cloud, vehicle = engines(cloud_ttft_s=2.0)
    vehicle.price = Price(input_usd=1e6, output_usd=1e6)
    got = through_plan(plan(budget_usd=0.001), ask(), cloud, vehicle)
    assert got.text == TEXT
    assert vehicle.calls == 0


def test_a_local_only_plan_has_no_cloud_to_join() -> None:
    first, second = Faulty("a", ttft_s=5.0), Faulty("b", words=LOCAL)
    local = AttemptPlan(
        (Attempt("a", "vehicle", "x", start="at_once", hedge_s=1.0), Attempt("b", "vehicle", "y")), privacy="local_only"
    )
    got = through_plan(local, ask(), first, second)
    assert got.text == "".join(LOCAL)


# ---------------------------------------------------------------- when


def test_nobody_joins_before_enough_waits_are_known() -> None:
    pace = Pace()
    for _ in range(19):
        pace.waited(1.0)
    assert math.isinf(pace.slow_s(0.95))
    pace.waited(3.0)
    assert pace.slow_s(0.95) == 3.0
    assert pace.slow_s(0.5) == 1.0
    for _ in range(64):
        pace.waited(2.0)
    assert pace.slow_s(0.95) == 2.0


@pytest.mark.parametrize(
    ("policy", "hedge_after", "hedged"),
    [("cloud-first", 0.95, True), ("cloud-first", 0.0, False), ("auto", 0.95, False)],
)
def test_only_a_first_attempt_without_a_gate_is_joined(policy: Any, hedge_after: float, hedged: bool) -> None:
    lineup = lineup_of(*engines())
    for _ in range(20):
        lineup.paces["cloud"].waited(0.7)
    made = Decider(lineup, RouteConfig(policy=policy, hedge_after=hedge_after)).plan(ask())
    assert (made.attempts[0].gate is None) == (policy == "cloud-first")
    assert made.attempts[0].hedge_s == (0.7 if hedged else math.inf)
    assert all(math.isinf(attempt.hedge_s) for attempt in made.attempts[1:])


def test_through_the_router_once_its_pace_is_known() -> None:
    cloud, vehicle = engines(cloud_ttft_s=0.4)

    async def main() -> list[list[tuple[str, str]]]:
        lineup = lineup_of(cloud, vehicle)
        hybrid = HybridEngine(lineup, RouteConfig(policy="cloud-first", hedge_after=0.95))
        for _ in range(20):
            await watch(hybrid.generate(ask(), Deadline.never(LoopClock())), lineup)
        cloud.ttft_s = 4.0
        slow = await watch(hybrid.generate(ask(), Deadline.never(LoopClock())), lineup)
        return [slow.outcomes(), [("waits", str(len(lineup.paces["cloud"]._waits_s)))]]

    outcomes, waits = run_virtual(main())
    assert outcomes == [("cloud", "hedge_lost"), ("vehicle", "answered")]
    assert waits == [("waits", "21")]


def test_a_hedge_in_a_plan_is_a_time() -> None:
    with pytest.raises(ValueError, match="numbers from zero up"):
        plan(hedge_s=-1.0)


def test_the_setting_is_off_by_default() -> None:
    cloud, vehicle = engines(cloud_ttft_s=3.0)
    got = through_router(ask(codriver={"policy": "cloud-first"}), cloud, vehicle)
    assert got.text == TEXT
    assert vehicle.calls == 0


FAULTS = st.builds(
    Fault, st.sampled_from(["none", "stall", "die", "empty", "no_finish", "refuse", "slow"]), st.integers(0, 12)
)


@settings(max_examples=300, deadline=None)
@given(
    FAULTS,
    FAULTS,
    st.floats(0.0, 7.0),
    st.floats(0.0, 7.0),
    st.floats(0.0, 4.0),
    st.none() | st.floats(0.0, 8.0),
    st.lists(st.tuples(st.floats(0.0, 8.0), st.sampled_from(["up", "degraded", "down"])), max_size=4).map(sorted),
    st.booleans(),
)
def test_whatever_happens_one_whole_answer_or_the_truth(
    cloud_fault: Fault, vehicle_fault: Fault, cloud_s: float, vehicle_s: float, hedge_s: float,
    cancel_s: float | None, sky: list[tuple[float, str]], stream: bool,
) -> None:  # fmt: skip
    cloud = Faulty("cloud", "cloud", ttft_s=cloud_s, fault=cloud_fault)
    vehicle = Faulty("vehicle", ttft_s=vehicle_s, fault=vehicle_fault)
    got = through_plan(
        plan(hedge_s=hedge_s), ask(stream=stream), cloud, vehicle, cancel_s=cancel_s, schedule=tuple(sky)
    )
    assert clean(got)
    assert all(record.outcome != "running" for record in got.records)
    if got.cancelled:
        assert TEXT.startswith(got.text)
    elif got.error is None:
        assert got.text == TEXT
        assert got.finishes == ["stop"]
    else:
        assert TEXT.startswith(got.text)
        assert not got.finishes
    assert max(cloud.calls, vehicle.calls) <= 2


def test_gates_are_kept_out_of_races() -> None:
    cloud = Attempt("cloud", "cloud", "first", start="at_once", hedge_s=1.0)
    gated = Attempt("vehicle", "vehicle", "drafts", gate=Gate())
    slow, draft = engines(cloud_ttft_s=3.0)
    got = through_plan(AttemptPlan((cloud, gated)), ask(), slow, draft)
    assert (got.text, draft.calls) == (TEXT, 0)


def test_times_that_do_not_add_up_exactly_are_no_endless_loop() -> None:
    async def main() -> Got:
        await asyncio.sleep(1e6 + 0.1)
        lineup = lineup_of(*engines(cloud_ttft_s=5.0))
        run = Run(lineup, RouteConfig(), plan(hedge_s=0.7000000001), ask(), Deadline.never(LoopClock()))
        return await watch(run.chunks(), lineup)

    assert run_virtual(main()).text == "".join(LOCAL)
