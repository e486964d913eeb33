"""Random plans, faults, link schedules and clients: what must hold whatever happens."""

from __future__ import annotations

import asyncio
import random
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codriver.core.deadline import Deadline
from codriver.core.messages import StreamOptions
from codriver.core.plan import Attempt, AttemptPlan, Gate
from codriver.core.virtual import LoopClock, run_virtual
from codriver.route.hybrid import HybridEngine
from tests.unit.route.drive import Got, ask, collect, lineup_of, through_plan, through_router, watch
from tests.unit.route.faulty import WORDS, Fault, Faulty, Weather

NAMES = ("v", "w", "c", "d")
LOCALITY = {"v": "vehicle", "w": "vehicle", "c": "cloud", "d": "cloud"}
TEXT = "".join(WORDS)
KINDS = (
    "none", "stall", "die", "empty", "no_finish", "refuse", "reject", "busy", "slow", "die_after_finish",
    "stall_after_finish", "two_finishes",
)  # fmt: skip

faults = st.builds(Fault, st.sampled_from(KINDS), st.integers(0, len(WORDS)))
gates = st.none() | st.builds(Gate, st.sampled_from([0.0, 0.5, 0.9]), st.integers(1, 14))
states = st.sampled_from(["up", "degraded", "down"])
schedules = st.lists(st.tuples(st.floats(0.01, 2.0), states), max_size=4).map(
    lambda steps: tuple(zip(accumulate(step for step, _ in steps), [state for _, state in steps], strict=True))
)


@st.composite
def plans(draw: Any) -> AttemptPlan:
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, 4))]
    local = draw(st.booleans())
    if local:
        names = [name for name in names if LOCALITY[name] == "vehicle"] or ["v"]
    attempts = [
        Attempt(
            name,
            LOCALITY[name],  # type: ignore[arg-type]
            "random",
            "at_once" if index == 0 else draw(st.sampled_from(["after_failure", "after_rejection"])),
            first_token_s=draw(st.sampled_from([0.05, 1.0, 3.0, float("inf")])),
            inter_token_s=draw(st.sampled_from([0.01, 0.4, 2.0])),
            total_s=draw(st.sampled_from([0.3, 2.0, float("inf")])),
            gate=draw(gates),
            on_late_death=draw(st.sampled_from(["resume", "restart", "declare"])),
        )
        for index, name in enumerate(names)
    ]
    deadline_s = draw(st.sampled_from([0.2, 1.0, 5.0]))
    return AttemptPlan(tuple(attempts), deadline_s, privacy="local_only" if local else "any")


@st.composite
def engines(draw: Any) -> list[Faulty]:
    return [
        Faulty(
            name,
            LOCALITY[name],  # type: ignore[arg-type]
            fault=draw(faults),
            token_s=draw(st.sampled_from([0.0, 0.02, 0.3])),
            ttft_s=draw(st.sampled_from([0.0, 0.1, 0.8])),
            logprob=draw(st.sampled_from([-0.01, -1.0, -9.0])),
        )
        for name in NAMES
    ]


requests = st.builds(
    ask,
    st.booleans(),
    stream_options=st.none() | st.just(StreamOptions(include_usage=True)),
    max_tokens=st.none() | st.integers(1, 14),
    logprobs=st.none() | st.booleans(),
)
SETTINGS = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def check(got: Got, limit: int | None, fleet: list[Faulty]) -> None:
    assert got.still_open == {}
    assert got.tasks_left == 0
    assert len(got.finishes) <= 1
    expected = "".join(WORDS[:limit])
    assert expected.startswith(got.text)
    if got.cancelled:
        return
    if got.error is None:
        assert got.text == expected
        assert got.answer.complete
        ends = [index for index, chunk in enumerate(got.chunks) if chunk.finish_reason]
        assert all(chunk.usage and not chunk.choices for chunk in got.chunks[ends[0] + 1 :])
        assert sum(bool(chunk.usage) for chunk in got.chunks) <= 1
        assert got.extension["attempts"]
    else:
        assert not got.finishes


@SETTINGS
@given(plans(), requests, engines(), schedules, states)
def test_any_plan_ends_in_one_whole_answer_or_an_error(
    plan: Any, request: Any, fleet: Any, schedule: Any, state: Any
) -> None:
    link = Weather(state)
    got = through_plan(plan, request, *fleet, schedule=schedule, link=link)
    check(got, request.max_tokens, fleet)
    assert got.took_s <= plan.deadline_s + 0.3
    if plan.privacy == "local_only":
        assert not any(engine.calls for engine in fleet if engine.locality == "cloud")
    assert link.listeners == []


@SETTINGS
@given(plans(), requests, engines(), schedules, st.floats(0.0, 2.0))
def test_a_client_that_leaves_leaves_nothing_running(
    plan: Any, request: Any, fleet: Any, schedule: Any, leave_s: float
) -> None:
    got = through_plan(plan, request, *fleet, schedule=schedule, cancel_s=leave_s)
    check(got, request.max_tokens, fleet)
    assert got.took_s <= leave_s + 0.3


@SETTINGS
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "policy": st.sampled_from(["auto", "vehicle-only", "cloud-only", "cloud-first", "vehicle-first"]),
            "privacy": st.sampled_from(["any", "local_only"]),
            "failover": st.sampled_from(["resume", "restart", "declare"]),
            "deadline_ms": st.sampled_from([1, 300, 4000, 8000]),
            "first_token_ms": st.sampled_from([10, 1000]),
            "engine": st.sampled_from(NAMES),
            "session": st.just("s"),
        },
    ),
    engines(),
    schedules,
    states,
)
def test_the_router_keeps_its_promises(options: Any, fleet: Any, schedule: Any, state: Any) -> None:
    got = through_router(ask(codriver=options), *fleet, schedule=schedule, link=Weather(state))
    check(got, None, fleet)
    assert got.took_s <= options.get("deadline_ms", 30_000) / 1000 + 0.3
    called = {engine.name for engine in fleet if engine.calls}
    if options.get("privacy") == "local_only" or (options.get("policy") == "vehicle-only" and "engine" not in options):
        assert not called & {"c", "d"}
    if "engine" in options:
        assert called <= {options["engine"]}
    if state == "down" and not schedule:
        assert not called & {"c", "d"}


@pytest.mark.parametrize("leave_s", [0.0, 0.05, 0.1, 0.15, 0.3, 0.5, 0.6])
def test_leaving_stops_a_held_draft_and_its_takeover(leave_s: float) -> None:
    v, c = Faulty("v", logprob=-3.0, token_s=0.2), Faulty("c", "cloud", ttft_s=5.0)
    got = through_router(ask(codriver={"policy": "vehicle-first"}), v, c, cancel_s=1.6 + leave_s)
    assert got.cancelled
    assert (v.calls, c.calls) == (1, 1)
    assert got.still_open == {}
    assert got.tasks_left == 0
    assert got.took_s == pytest.approx(1.6 + leave_s, abs=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_a_rush_on_a_bad_day_leaves_no_engine_shut_out(seed: int) -> None:
    """Many clients at once, some leaving, engines failing, the link flapping; afterwards everything is whole again."""
    chance = random.Random(seed)

    async def main() -> None:
        link = Weather()
        fleet = [Faulty(name, LOCALITY[name]) for name in NAMES]  # type: ignore[arg-type]
        lineup = lineup_of(*fleet, link=link)
        hybrid = HybridEngine(lineup)
        policies = ["auto", "cloud-first", "vehicle-first", "cloud-only"]

        async def client() -> None:
            await asyncio.sleep(chance.uniform(0, 60))
            leave_s = chance.choice([None, None, chance.uniform(0, 2)])
            stream = hybrid.generate(ask(codriver={"policy": chance.choice(policies)}), Deadline.never(LoopClock()))
            got = Got()
            task = asyncio.ensure_future(collect(stream, got))
            await asyncio.wait([task], timeout=leave_s)
            task.cancel()
            await asyncio.wait([task])
            assert TEXT.startswith(got.text)
            assert got.text == TEXT or not got.finishes

        async def trouble() -> None:
            for _ in range(120):
                await asyncio.sleep(0.5)
                link.become(chance.choice(["up", "up", "degraded", "down"]))
                chance.choice(fleet).fault = Fault(chance.choice(KINDS), chance.randrange(12))  # type: ignore[arg-type]

        await asyncio.gather(trouble(), *(client() for _ in range(150)))
        assert [engine.open for engine in fleet] == [0] * len(fleet)
        for engine in fleet:
            engine.fault = Fault()
        link.become("up")
        await asyncio.sleep(31)
        for name in NAMES:
            got = await watch(hybrid.generate(ask(codriver={"engine": name}), Deadline.never(LoopClock())), lineup)
            assert got.text == TEXT
            assert lineup.breakers[name].state == "closed"
        assert link.listeners == []

    run_virtual(main())
