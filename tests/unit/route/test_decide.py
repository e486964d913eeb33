"""Plans: who is asked, in which order, within which times, and why others are not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from codriver.core.engine import Price
from codriver.core.errors import (
    CodriverError,
    EngineDied,
    LinkDown,
    NoEngineLeft,
    UnknownModel,
    UnsupportedModality,
    UnsupportedParameter,
)
from codriver.core.messages import ChatRequest, FunctionSpec, Message, ResponseFormat, Tool
from codriver.core.plan import AttemptPlan
from codriver.core.virtual import run_virtual
from codriver.route.config import RouteConfig
from codriver.route.decide import Decider
from codriver.route.lineup import Lineup, Pace
from codriver.route.quality import Features, Quality
from tests.unit.route.drive import ask, lineup_of
from tests.unit.route.faulty import EVERY, Faulty, Weather


class Known(Quality):
    """A quality whose prior the test sets."""

    def __init__(self, prior: float) -> None:
        super().__init__()
        self._prior = prior

    def prior(self, engine: str, features: Features) -> float:
        return self._prior


def plan(
    *engines: Faulty, prior: float = 0.5, state: Any = "up", config: RouteConfig | None = None, **options: Any
) -> AttemptPlan:
    """The plan for a request with ``options``; its other members under ``request``."""
    members = options.pop("request", {})

    async def main() -> AttemptPlan:
        lineup = lineup_of(*(engines or both()), link=Weather(state), quality=Known(prior))
        return Decider(lineup, config).plan(ask(codriver=options or None, **members))

    return run_virtual(main())


def both() -> tuple[Faulty, ...]:
    return Faulty("v"), Faulty("c", "cloud")


def order(made: AttemptPlan) -> list[str]:
    return [attempt.engine for attempt in made.attempts]


@pytest.mark.parametrize(
    ("options", "state", "prior", "names"),
    [
        ({}, "up", 0.5, ["v", "c"]),
        ({}, "up", 0.95, ["v", "c"]),
        ({}, "up", 0.1, ["c", "v"]),
        ({}, "degraded", 0.1, ["c", "v"]),
        ({}, "down", 0.1, ["v"]),
        ({"policy": "cloud-first"}, "up", 0.95, ["c", "v"]),
        ({"policy": "cloud-first"}, "down", 0.5, ["v"]),
        ({"policy": "vehicle-first"}, "up", 0.01, ["v", "c"]),
        ({"policy": "vehicle-only"}, "up", 0.01, ["v"]),
        ({"policy": "cloud-only"}, "up", 0.99, ["c"]),
        ({"policy": "cloud-only"}, "down", 0.99, ["c"]),
        ({"privacy": "local_only"}, "up", 0.01, ["v"]),
        ({"privacy": "local_only", "policy": "cloud-first"}, "up", 0.01, ["v"]),
        ({"engine": "c"}, "up", 0.5, ["c"]),
        ({"engine": "v"}, "down", 0.5, ["v"]),
    ],
)
def test_order(options: dict[str, Any], state: Any, prior: float, names: list[str]) -> None:
    made = plan(prior=prior, state=state, **options)
    assert order(made) == names
    assert made.attempts[0].start == "at_once"
    assert made.link == state
    assert made.privacy == options.get("privacy", "any")


def test_a_draft_is_gated_unless_the_vehicle_is_sure() -> None:
    made = plan(prior=0.5)
    assert made.attempts[0].gate is not None
    assert made.attempts[0].gate.min_confidence == RouteConfig().min_confidence
    assert made.attempts[1].start == "after_rejection"
    assert plan(prior=0.95).attempts[0].gate is None
    assert plan(prior=0.95, policy="vehicle-first").attempts[0].gate is not None


def test_a_schema_is_checked_even_on_a_sure_draft() -> None:
    wants = {"response_format": ResponseFormat(type="json_object")}
    gate = plan(prior=0.95, request=wants).attempts[0].gate
    assert gate is not None
    assert (gate.schema, gate.min_confidence) == (True, 0.0)


def test_the_vehicle_keeps_the_time_it_needs() -> None:
    reserve_s = Pace().needed_s(None)
    made = plan(policy="cloud-first", deadline_ms=10_000)
    assert made.attempts[0].total_s == pytest.approx(10 - reserve_s)
    assert made.attempts[1].total_s == 10
    made = plan(policy="cloud-first", deadline_ms=3000)
    assert order(made) == ["v"]
    assert "leaves the cloud 0.0 s" in made.attempts[0].why
    made = plan(policy="vehicle-first", deadline_ms=10_000)
    assert made.attempts[1].total_s < 10


def test_a_quick_vehicle_keeps_time_to_be_turned_to() -> None:
    async def main() -> AttemptPlan:
        lineup = lineup_of(*both(), link=Weather("up"), quality=Known(0.5))
        lineup.paces["v"] = Pace(0.001, 0.0001, 10)
        return Decider(lineup).plan(ask(codriver={"policy": "cloud-first", "deadline_ms": 4000}))

    assert run_virtual(main()).attempts[0].total_s == pytest.approx(3.9)


def test_a_usual_pace_is_learnt() -> None:
    pace = Pace()
    for _ in range(60):
        pace.record(0.1, 0.1 + 0.01 * 19, 20)
    assert pace.ttft_s == pytest.approx(0.1, abs=0.01)
    assert pace.token_s == pytest.approx(0.01, abs=0.001)
    assert pace.needed_s(None) == pytest.approx(1.5 * (0.1 + 40 * 0.01), abs=0.06)
    assert pace.needed_s(10) == pytest.approx(1.5 * (0.1 + 10 * 0.01), abs=0.06)


def test_limits_come_from_the_request_before_the_configuration() -> None:
    config = RouteConfig(deadline_s=20.0, first_token_s=5.0, inter_token_s=2.0, failover="declare", budget_usd=0.5)
    first = plan(config=config, policy="cloud-first").attempts[0]
    assert (first.first_token_s, first.inter_token_s, first.on_late_death) == (5.0, 2.0, "declare")
    made = plan(
        config=config, policy="cloud-first", deadline_ms=9000, first_token_ms=700, inter_token_ms=300,
        failover="restart", budget_usd=0.1,
    )  # fmt: skip
    first = made.attempts[0]
    assert (first.first_token_s, first.inter_token_s, first.on_late_death) == (0.7, 0.3, "restart")
    assert (made.deadline_s, made.budget_usd) == (9.0, 0.1)
    assert plan(config=config).budget_usd == 0.5
    assert plan().budget_usd == math.inf


def test_nonsense_from_a_client_makes_a_plan_that_is_over_at_once() -> None:
    made = plan(deadline_ms=-1, first_token_ms=-7, budget_usd=-3)
    assert (made.deadline_s, made.budget_usd) == (0.0, 0.0)
    assert all(attempt.first_token_s == 0 for attempt in made.attempts)


def test_an_outer_deadline_rules() -> None:
    async def main() -> float:
        return Decider(lineup_of(*both())).plan(ask(codriver={"deadline_ms": 9000}), 2.5).deadline_s

    assert run_virtual(main()) == 2.5


def test_the_last_engine_of_the_vehicle_may_take_all_its_time() -> None:
    assert plan(policy="cloud-first").attempts[-1].first_token_s == 30
    assert plan(policy="cloud-first", first_token_ms=800).attempts[-1].first_token_s == 0.8
    assert plan(policy="cloud-only").attempts[-1].first_token_s == 6


def test_engines_that_cannot_take_the_request_are_left_out() -> None:
    tools = {"tools": [Tool(function=FunctionSpec(name="f"))]}
    v = Faulty("v", capabilities=EVERY - {"tools"})
    assert order(plan(v, Faulty("c", "cloud"), request=tools)) == ["c"]
    with pytest.raises(UnsupportedParameter, match="'v' does not support 'tools'"):
        plan(v, request=tools)
    assert order(plan(Faulty("v", state="down"), Faulty("w"), Faulty("c", "cloud"))) == ["w", "c"]


def test_adapters_keep_a_request_off_engines_that_have_none() -> None:
    v = Faulty("v", capabilities=EVERY | {"lora"})
    assert order(plan(v, Faulty("c", "cloud"), lora=[{"name": "x"}])) == ["v"]


def test_an_embedder_is_not_asked_to_chat() -> None:
    embedder = Faulty("e", capabilities=frozenset({"embeddings"}))
    assert order(plan(Faulty("v"), embedder, Faulty("c", "cloud"))) == ["v", "c"]
    with pytest.raises(UnsupportedModality, match="The model 'e' does not write text"):
        plan(embedder, engine="e")


def test_an_open_breaker_takes_its_engine_out() -> None:
    async def main() -> list[str]:
        lineup = lineup_of(*both())
        for _ in range(3):
            lineup.breakers["c"].failed(EngineDied("x"))
        return order(Decider(lineup).plan(ask(codriver={"policy": "cloud-first"})))

    assert run_virtual(main()) == ["v"]


def with_cloud_paused(**options: Any) -> AttemptPlan:
    async def main() -> AttemptPlan:
        lineup = lineup_of(*both(), Faulty("e", capabilities=frozenset({"embeddings"})))
        for _ in range(3):
            lineup.breakers["c"].failed(EngineDied("x"))
        return Decider(lineup).plan(ask(codriver=options or None))

    return run_virtual(main())


def test_a_plan_says_that_the_cloud_is_paused() -> None:
    assert "v (the cloud is paused after failures)" in with_cloud_paused().explain()
    assert "v (link down)" in plan(state="down").explain()
    loading = plan(Faulty("v"), Faulty("c", "cloud", state="loading"))
    assert "v (the cloud is still loading)" in loading.explain()


def test_where_only_the_cloud_may_answer_its_refusal_is_told() -> None:
    with pytest.raises(NoEngineLeft, match="The engine 'c' keeps failing and is given a pause"):
        with_cloud_paused(policy="cloud-only")


def with_vehicle_paused(state: Any = "up", vehicle: Faulty | None = None, **options: Any) -> AttemptPlan:
    async def main() -> AttemptPlan:
        lineup = lineup_of(vehicle or Faulty("v"), Faulty("c", "cloud"), link=Weather(state))
        for _ in range(3):
            lineup.breakers["v"].failed(EngineDied("x"))
        return Decider(lineup).plan(ask(codriver=options or None))

    return run_virtual(main())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["c", "v"]),
        ({"policy": "cloud-first"}, ["c", "v"]),
        ({"policy": "vehicle-only"}, ["v"]),
        ({"privacy": "local_only"}, ["v"]),
        ({"engine": "v"}, ["v"]),
        ({"state": "down"}, ["v"]),
    ],
)
def test_a_paused_vehicle_is_still_the_last_resort(options: dict[str, Any], expected: list[str]) -> None:
    made = with_vehicle_paused(**options)
    assert order(made) == expected
    assert made.attempts[-1].despite_pause
    assert made.attempts[-1].why == "paused after failures, but nobody else is left"
    assert made.attempts[0].start == "at_once"


def test_a_vehicle_that_is_down_is_no_resort() -> None:
    with pytest.raises(NoEngineLeft, match="The engine 'v' keeps failing and is given a pause"):
        with_vehicle_paused(state="down", vehicle=Faulty("v", state="down"))
    assert order(with_vehicle_paused(policy="cloud-only")) == ["c"]


# ---------------------------------------------------------------- long prompts

WORDS_3000 = {"messages": [Message(role="user", content="station " * 1500 + "road " * 1500)]}


def small_and_big(vehicle_tokens: int = 2048, cloud_tokens: int = 4096) -> tuple[Faulty, ...]:
    return Faulty("v", context_tokens=vehicle_tokens), Faulty("c", "cloud", context_tokens=cloud_tokens)


@pytest.mark.parametrize("policy", ["auto", "cloud-first"])
def test_a_prompt_that_only_the_cloud_can_read_goes_there_with_patience(policy: Any) -> None:
    made = plan(*small_and_big(), prior=0.95, policy=policy, deadline_ms=20_000, request=WORDS_3000)
    assert order(made) == ["c", "v"]
    assert (made.attempts[0].first_token_s, made.attempts[0].total_s) == (20, 20)
    assert made.attempts[1].first_token_s == 20


def test_a_prompt_that_only_the_cloud_can_read_says_why() -> None:
    made = plan(*small_and_big(), request=WORDS_3000)
    assert "c (the prompt is likely too long for the vehicle)" in made.explain()


def test_the_order_that_the_client_asked_for_stays_and_the_cloud_is_patient() -> None:
    made = plan(*small_and_big(), policy="vehicle-first", request=WORDS_3000)
    assert order(made) == ["v", "c"]
    assert made.attempts[1].first_token_s == made.attempts[1].total_s > 20


def test_the_clients_own_limit_is_kept_for_a_long_prompt_too() -> None:
    made = plan(*small_and_big(), policy="cloud-first", first_token_ms=700, request=WORDS_3000)
    assert made.attempts[0].first_token_s == 0.7


def test_a_prompt_that_nobody_can_read_is_planned_as_any_other() -> None:
    made = plan(*small_and_big(1300, 1300), policy="cloud-first", request=WORDS_3000)
    assert (order(made), made.attempts[0].first_token_s) == (["c", "v"], 6)
    assert made.attempts[0].total_s < 30


def test_of_two_engines_on_board_the_one_with_room_is_first() -> None:
    made = plan(Faulty("v", context_tokens=2048), Faulty("w", context_tokens=8192), request=WORDS_3000)
    assert order(made) == ["w", "v"]
    assert [attempt.first_token_s for attempt in made.attempts] == [30, 30]


def test_scripts_without_spaces_count_a_token_a_character() -> None:
    wanted = {"messages": [Message(role="user", content="\u8def" * 2500)]}
    assert order(plan(*small_and_big(), request=wanted)) == ["c", "v"]


@pytest.mark.parametrize(
    ("engines", "state", "options", "error", "sentence"),
    [
        ((Faulty("c", "cloud"),), "down", {}, LinkDown, "The link to the cloud is down; the cloud was not tried."),
        (
            (Faulty("v"),),
            "up",
            {"policy": "cloud-only"},
            NoEngineLeft,
            "No engine is set up that may take this request.",
        ),
        (
            (Faulty("v"), Faulty("e", capabilities=frozenset({"embeddings"}))),
            "up",
            {"policy": "cloud-only"},
            NoEngineLeft,
            "No engine is set up that may take this request.",
        ),
        (both(), "up", {"engine": "c", "lora": [{"name": "x"}]}, UnsupportedParameter, "not support 'codriver.lora'"),
        ((Faulty("c", "cloud"),), "up", {"privacy": "local_only"}, NoEngineLeft, "No engine is set up"),
        ((Faulty("v"),), "up", {"engine": "x"}, UnknownModel, "There is no engine 'x'. Known: v."),
        (both(), "up", {"engine": "c", "privacy": "local_only"}, NoEngineLeft, "'c' is not in the vehicle"),
        (both(), "down", {"engine": "c"}, LinkDown, "was not tried"),
        ((Faulty("v", state="down"),), "up", {}, NoEngineLeft, "The engine 'v' is down: no reason given."),
    ],
)
def test_refusals_say_why(
    engines: Any, state: Any, options: dict[str, Any], error: type[CodriverError], sentence: str
) -> None:
    with pytest.raises(error) as caught:
        plan(*engines, state=state, **options)
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("pace", "deadline_ms", "kept_back_s"),
    [
        (Pace(ttft_s=0.2, token_s=0.01, tokens=10.0), 4000, 0.6),
        (Pace(ttft_s=0.01, token_s=0.001, tokens=10.0), 4000, 0.25),
        (Pace(ttft_s=2.0, token_s=0.1, tokens=100.0), 4000, 1.0),
    ],
)
def test_a_takeover_leaves_the_vehicle_time_to_finish_it(pace: Pace, deadline_ms: float, kept_back_s: float) -> None:
    async def main() -> AttemptPlan:
        lineup = lineup_of(*both(), quality=Known(0.5))
        lineup.paces["v"] = pace
        return Decider(lineup).plan(ask(codriver={"deadline_ms": deadline_ms}, max_tokens=100))

    draft, takeover = run_virtual(main()).attempts
    assert draft.total_s == 4.0
    assert takeover.total_s == pytest.approx(4.0 - kept_back_s)


def test_a_plan_explains_itself() -> None:
    made = plan(prior=0.5)
    assert made.explain() == (
        "link up, policy auto: v (drafts with prior p=0.50); then c (takes over from a weak draft)"
    )
    assert "asked to be first" in plan(policy="cloud-first").explain()


def test_prices_do_not_change_the_order() -> None:
    dear = Faulty("c", "cloud", price=Price(1.0, 2.0))
    assert order(plan(Faulty("v"), dear, prior=0.1)) == ["c", "v"]


def test_a_router_that_does_not_look_plans_for_the_cloud_while_the_link_is_down() -> None:
    lineup = Lineup({}, link=Weather("down"))
    assert lineup.without_link().breakers is lineup.breakers
    made = plan(state="down", prior=0.1, config=RouteConfig(link_aware=False))
    assert order(made) == ["c", "v"]
    assert made.link == "up"


# ---------------------------------------------------------------- what was read of the request


class Read(Known):
    """A quality that has read the request: the probability of a good answer per engine."""

    def __init__(self, **good: float) -> None:
        super().__init__(0.5)
        self._good = good

    def expected(self, engine: str, request: ChatRequest) -> float | None:
        return self._good.get(engine)


def read_plan(*engines: Faulty, config: RouteConfig | None = None, **good: float) -> AttemptPlan:
    async def main() -> AttemptPlan:
        return Decider(lineup_of(*engines, quality=Read(**good)), config).plan(ask())

    return run_virtual(main())


def test_a_small_specialist_goes_before_a_large_generalist() -> None:
    clouds = (Faulty("large", "cloud", price=Price(30.0, 60.0)), Faulty("small", "cloud"))
    assert order(read_plan(Faulty("v"), *clouds, v=0.1, large=0.7, small=0.9)) == ["small", "large", "v"]
    assert order(read_plan(Faulty("v"), *clouds, v=0.1, large=0.9, small=0.4)) == ["large", "small", "v"]


def test_the_specialist_on_board_goes_first_too() -> None:
    found = read_plan(Faulty("chat"), Faulty("climate"), Faulty("c", "cloud"), chat=0.3, climate=0.9, c=0.8)
    assert order(found) == ["climate", "c", "chat"]


def test_a_price_turns_a_tie_into_an_order() -> None:
    dear, cheap = Faulty("dear", "cloud", price=Price(900.0, 900.0)), Faulty("cheap", "cloud")
    assert order(read_plan(Faulty("v"), dear, cheap, v=0.1, dear=0.8, cheap=0.8))[0] == "cheap"


def test_the_cloud_is_not_asked_first_for_what_it_cannot_do_either() -> None:
    assert order(read_plan(*both(), v=0.1, c=0.6)) == ["c", "v"]
    assert order(read_plan(*both(), v=0.1, c=0.05)) == ["v", "c"]


def test_a_draft_that_its_gate_can_judge_is_worth_making() -> None:
    found = read_plan(*both(), v=0.4, c=0.9)
    assert order(found) == ["v", "c"]
    assert found.attempts[0].gate is not None


def test_a_blind_draft_is_weighed_against_the_cloud() -> None:
    blind = Faulty("v", capabilities=EVERY - {"logprobs"})
    assert order(read_plan(blind, Faulty("c", "cloud"), v=0.6, c=0.8)) == ["c", "v"]
    assert order(read_plan(blind, Faulty("c", "cloud"), v=0.6, c=0.65)) == ["v", "c"]
    eager = RouteConfig(least_gain=0.01)
    found = read_plan(blind, Faulty("c", "cloud"), config=eager, v=0.6, c=0.65)
    assert found.attempts[0].why == "is worth 0.05 more: right with p=0.65, the vehicle with p=0.60"


def test_an_engine_of_which_nothing_was_read_keeps_the_old_rule() -> None:
    assert order(read_plan(*both(), v=0.1)) == ["v", "c"]
