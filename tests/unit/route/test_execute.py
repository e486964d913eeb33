"""The executor under every fault: one complete answer or an error, never a cut stream that looks complete."""

from __future__ import annotations

import asyncio
import math
from itertools import product
from typing import Any

import msgspec
import pytest

from codriver.core.deadline import Deadline
from codriver.core.engine import Price
from codriver.core.errors import (
    CodriverError,
    DeadlineExceeded,
    EngineDied,
    FirstTokenTimeout,
    InterTokenTimeout,
    LinkDown,
    NoEngineLeft,
    PromptTooLong,
    UnsupportedParameter,
    UpstreamRejected,
)
from codriver.core.messages import (
    ChatRequest,
    Delta,
    FunctionSpec,
    JsonSchema,
    Message,
    ResponseFormat,
    StreamOptions,
    Tool,
    parse_chat,
)
from codriver.core.plan import Attempt, AttemptPlan, Gate, PlanError
from codriver.core.virtual import LoopClock, run_virtual
from codriver.route.config import BreakerConfig, RouteConfig
from codriver.route.execute import Run
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.quality import Quality
from tests.unit.route.drive import Got, ask, through_plan, through_router
from tests.unit.route.faulty import EVERY, WORDS, Fault, Faulty, Weather

TEXT = "".join(WORDS)
BEFORE = [Fault("stall"), Fault("die"), Fault("empty"), Fault("refuse"), Fault("reject"), Fault("busy")]
LATE = [Fault("stall", 5), Fault("die", 5), Fault("no_finish"), Fault("slow")]
HARMLESS = [Fault("none"), Fault("die_after_finish"), Fault("stall_after_finish"), Fault("two_finishes")]


def complete(got: Got) -> None:
    assert got.error is None
    assert got.answer.complete
    assert len(got.finishes) == 1
    closed(got)


def closed(got: Got) -> None:
    assert got.still_open == {}
    assert got.tasks_left == 0


def plan_of(*attempts: Attempt, **more: Any) -> AttemptPlan:
    return AttemptPlan(attempts, **{"deadline_s": 20.0, **more})


def attempt(engine: str, locality: Any = "vehicle", start: Any = "after_failure", **more: Any) -> Attempt:
    limits = {"first_token_s": 2.0, "inter_token_s": 1.0, **more}
    return Attempt(engine, locality, "test", start, **limits)


CLOUD_FIRST = (attempt("c", "cloud", "at_once"), attempt("v"))


# ---------------------------------------------------------------- every policy, fault and link


@pytest.mark.parametrize("policy", ["auto", "vehicle-only", "cloud-only", "cloud-first", "vehicle-first"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("state", ["up", "degraded", "down"])
def test_every_policy_with_every_fault_gives_one_whole_answer_or_an_error(
    policy: str, stream: bool, state: Any
) -> None:
    for broken, fault in product(("v", "c"), [*BEFORE, *LATE, *HARMLESS]):
        v = Faulty("v", fault=fault if broken == "v" else Fault())
        c = Faulty("c", "cloud", fault=fault if broken == "c" else Fault())
        got = through_router(ask(stream, {"policy": policy}), v, c, link=Weather(state))
        closed(got)
        assert got.took_s <= 30.3
        if got.error is None:
            complete(got)
            assert got.text == TEXT, (broken, fault)
        else:
            assert not got.finishes, (broken, fault)
            alone = policy in ("vehicle-only", "cloud-only") or state == "down"
            assert alone, f"the other engine could have answered: {broken} {fault} {got.error}"
        if state == "down":
            assert c.calls == 0
        if policy == "vehicle-only":
            assert c.calls == 0


@pytest.mark.parametrize("fault", BEFORE)
def test_a_death_before_the_first_token_is_invisible(fault: Fault) -> None:
    got = through_plan(plan_of(*CLOUD_FIRST), ask(), Faulty("v"), Faulty("c", "cloud", fault=fault))
    complete(got)
    assert got.text == TEXT
    assert {chunk.id for chunk in got.chunks} == {"v"}
    assert "failovers" not in got.extension
    assert got.chunks[0].choices[0].delta.role == "assistant"


@pytest.mark.parametrize("after", range(1, len(WORDS) + 1))
@pytest.mark.parametrize("kind", ["die", "stall"])
def test_killed_at_every_token_the_answer_goes_on_from_exactly_there(after: int, kind: Any) -> None:
    got = through_plan(plan_of(*CLOUD_FIRST), ask(), Faulty("v"), Faulty("c", "cloud", fault=Fault(kind, after)))
    complete(got)
    assert got.text == TEXT
    assert {chunk.id for chunk in got.chunks} == {"c"}
    assert [c.choices[0].delta.role for c in got.chunks if c.choices].count("assistant") == 1
    (failover,) = got.extension["failovers"]
    assert (failover["from"], failover["to"], failover["policy"]) == ("c", "v", "resume")
    assert failover["at_chars"] == len("".join(WORDS[:after]))


def test_three_engines_die_one_after_the_other_and_the_fourth_ends_the_answer() -> None:
    engines = [Faulty(f"e{i}", fault=Fault("die", 2 + i)) for i in range(3)]
    # Each goes on for a few words more before it dies: its own index counts from where it began.
    got = through_plan(
        plan_of(attempt("e0", start="at_once"), attempt("e1"), attempt("e2"), attempt("e3")),
        ask(),
        *engines,
        Faulty("e3"),
    )
    complete(got)
    assert got.text == TEXT
    assert [f["from"] for f in got.extension["failovers"]] == ["e0", "e1", "e2"]


def test_failovers_name_the_engine_that_really_went_on() -> None:
    c2 = Faulty("c2", "cloud", state="ready")
    link = Weather()
    got = through_plan(
        plan_of(attempt("c", "cloud", "at_once"), attempt("c2", "cloud"), attempt("v")),
        ask(), Faulty("v"), Faulty("c", "cloud", fault=Fault("stall", 4)), c2, link=link, schedule=((0.4, "down"),),
    )  # fmt: skip
    complete(got)
    assert c2.calls == 0
    assert [(f["from"], f["to"], f["error"]) for f in got.extension["failovers"]] == [("c", "v", "link_down")]


@pytest.mark.parametrize("fault", [Fault("die", 5), Fault("stall", 5), Fault("no_finish")])
def test_restart_marks_the_point_and_gives_the_whole_answer_anew(fault: Fault) -> None:
    plan = plan_of(attempt("c", "cloud", "at_once", on_late_death="restart"), attempt("v"))
    other = ("fresh", " start", " here")
    got = through_plan(plan, ask(), Faulty("v", words=other), Faulty("c", "cloud", fault=fault))
    complete(got)
    assert got.text == "".join(other)
    marks = [c.codriver for c in got.chunks if c.codriver and c.codriver.get("restart")]
    given = len("".join(WORDS[:5])) if fault.after else len(TEXT)
    assert marks == [{"restart": True, "discard_chars": given}]


@pytest.mark.parametrize("fault", [Fault("die", 5), Fault("stall", 5), Fault("no_finish")])
def test_declare_ends_with_the_error_and_no_finish_reason(fault: Fault) -> None:
    plan = plan_of(attempt("c", "cloud", "at_once", on_late_death="declare"), attempt("v"))
    v = Faulty("v")
    got = through_plan(plan, ask(), v, Faulty("c", "cloud", fault=fault))
    assert isinstance(got.error, (EngineDied, InterTokenTimeout))
    assert TEXT.startswith(got.text)
    assert got.text
    assert not got.finishes
    assert v.calls == 0
    closed(got)


@pytest.mark.parametrize("policy", ["declare", "restart"])
def test_a_client_that_does_not_stream_never_learns_of_a_late_death(policy: Any) -> None:
    plan = plan_of(attempt("c", "cloud", "at_once", on_late_death=policy), attempt("v"))
    got = through_plan(plan, ask(stream=False), Faulty("v"), Faulty("c", "cloud", fault=Fault("die", 5)))
    complete(got)
    assert got.text == TEXT
    assert not any(chunk.codriver and chunk.codriver.get("restart") for chunk in got.chunks)


@pytest.mark.parametrize("fault", HARMLESS)
def test_what_goes_wrong_after_the_finish_reason_does_not_matter(fault: Fault) -> None:
    v = Faulty("v")
    got = through_plan(plan_of(*CLOUD_FIRST), ask(), v, Faulty("c", "cloud", fault=fault))
    complete(got)
    assert got.text == TEXT
    assert v.calls == 0
    assert got.took_s < 2.0


def test_usage_comes_once_and_last_and_counts_the_whole_of_a_spliced_answer() -> None:
    request = ask(stream_options=StreamOptions(include_usage=True))
    for fault in (Fault(), Fault("die", 5)):
        got = through_plan(plan_of(*CLOUD_FIRST), request, Faulty("v"), Faulty("c", "cloud", fault=fault))
        complete(got)
        assert [bool(chunk.usage) for chunk in got.chunks] == [False] * (len(got.chunks) - 1) + [True]
        assert got.answer.usage.completion_tokens == len(WORDS)
        assert got.chunks[-2].finish_reason == "stop"


def test_a_token_limit_counts_over_both_engines() -> None:
    got = through_plan(
        plan_of(*CLOUD_FIRST), ask(max_completion_tokens=8), Faulty("v"), Faulty("c", "cloud", fault=Fault("die", 5))
    )
    complete(got)
    assert got.text == "".join(WORDS[:8])
    assert got.finishes == ["length"]


def test_an_answer_cut_after_its_last_allowed_token_is_ended_without_another_word() -> None:
    got = through_plan(
        plan_of(*CLOUD_FIRST), ask(max_tokens=5), Faulty("v"), Faulty("c", "cloud", fault=Fault("die", 5))
    )
    complete(got)
    assert got.text == "".join(WORDS[:5])
    assert got.finishes == ["length"]


# ---------------------------------------------------------------- engines that cannot go on from a part


class Chatty(Faulty):
    """Without prefill: asked to go on, it repeats ``again`` characters of the part first."""

    again = 0

    def _left(self, request: Any) -> tuple[str, ...]:
        if len(request.messages) < 3:
            return self.words
        part = request.messages[-2].content
        rest = self.text[len(part) - self.again :]
        return tuple(rest[i : i + 3] for i in range(0, len(rest), 3))


@pytest.mark.parametrize("again", [0, 3, 6, 9, 13, 1000])
def test_what_an_engine_without_prefill_repeats_is_taken_off(again: int) -> None:
    v = Chatty("v", capabilities=EVERY - {"prefill"})
    v.again = min(again, len("".join(WORDS[:5])))
    got = through_plan(plan_of(*CLOUD_FIRST), ask(), v, Faulty("c", "cloud", fault=Fault("die", 5)))
    complete(got)
    assert got.text == TEXT
    assert v.requests[0].messages[-2] == Message(role="assistant", content="".join(WORDS[:5]))


# ---------------------------------------------------------------- whole answers

JSON_WORDS = ('{"a"', ": ", "1", "}")
TOOLS = [Tool(function=FunctionSpec(name="f"))]
SCHEMA = ResponseFormat(
    type="json_schema",
    json_schema=JsonSchema(schema={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
)


@pytest.mark.parametrize("after", range(len(JSON_WORDS) + 1))
def test_json_is_never_spliced(after: int) -> None:
    c = Faulty("c", "cloud", words=('{"b"', ": ", "2", "}"), fault=Fault("die", after))
    got = through_plan(plan_of(*CLOUD_FIRST), ask(response_format=SCHEMA), Faulty("v", words=JSON_WORDS), c)
    complete(got)
    assert got.text == "".join(JSON_WORDS)
    assert {chunk.id for chunk in got.chunks} == {"v"}


def test_json_from_the_last_engine_streams_and_is_not_resumed() -> None:
    plan = plan_of(attempt("v", start="at_once"))
    got = through_plan(plan, ask(response_format=SCHEMA), Faulty("v", words=JSON_WORDS, fault=Fault("die", 2)))
    assert isinstance(got.error, EngineDied)
    assert not got.finishes


def test_a_tool_call_is_never_spliced() -> None:
    c = Faulty("c", "cloud", tool=True, words=JSON_WORDS, fault=Fault("die", 3))
    got = through_plan(plan_of(*CLOUD_FIRST), ask(tools=TOOLS), Faulty("v", tool=True, words=JSON_WORDS), c)
    complete(got)
    call = got.answer.completion().choices[0].message.tool_calls[0]
    assert call.function.arguments == "".join(JSON_WORDS)
    assert got.finishes == ["tool_calls"]


def test_a_tool_call_that_was_begun_for_the_client_is_not_finished_by_a_drafter() -> None:
    v = Faulty("v", tool=True, words=JSON_WORDS, logprob=-9.0)
    plan = plan_of(
        attempt("v", start="at_once", gate=Gate(schema=True, probe_tokens=1)),
        attempt("c", "cloud", "after_rejection"),
    )
    got = through_plan(
        plan, ask(tools=TOOLS), v, Faulty("c", "cloud", tool=True, words=JSON_WORDS, fault=Fault("die", 3))
    )
    complete(got)
    assert got.answer.completion().choices[0].message.tool_calls[0].function.arguments == "".join(JSON_WORDS)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tool", [True, False], ids=["tool call", "JSON"])
@pytest.mark.parametrize("said", [0, 1, 2, 3])
def test_half_of_it_with_the_end_of_a_whole_one_is_replaced(stream: bool, tool: bool, said: int) -> None:
    wants: dict[str, Any] = {"tools": TOOLS} if tool else {"response_format": SCHEMA}
    c = Faulty("c", "cloud", tool=tool, words=JSON_WORDS[:said])
    got = through_plan(plan_of(*CLOUD_FIRST), ask(stream, **wants), Faulty("v", tool=tool, words=JSON_WORDS), c)
    complete(got)
    message = got.answer.completion().choices[0].message
    assert (message.tool_calls[0].function.arguments if tool else message.content) == "".join(JSON_WORDS)
    assert [record.outcome for record in got.records] == ["engine_died", "answered"]


@pytest.mark.parametrize(
    ("wants", "what"),
    [
        ({"tools": TOOLS}, "The engine 'v' ended its answer in the middle of a tool call."),
        ({"response_format": SCHEMA}, "The engine 'v' ended its answer before its JSON was complete."),
    ],
)
def test_half_of_it_from_the_last_engine_gets_no_end(wants: dict[str, Any], what: str) -> None:
    plan = plan_of(attempt("v", start="at_once"))
    got = through_plan(plan, ask(**wants), Faulty("v", tool="tools" in wants, words=JSON_WORDS[:2]))
    assert isinstance(got.error, EngineDied)
    assert got.error.message == what
    assert not got.finishes


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_without_a_word_is_replaced_while_another_engine_is_left(stream: bool) -> None:
    got = through_plan(plan_of(*CLOUD_FIRST), ask(stream), Faulty("v"), Faulty("c", "cloud", words=()))
    complete(got)
    assert got.text == TEXT
    assert [record.outcome for record in got.records] == ["engine_died", "answered"]


def test_an_answer_without_a_word_from_the_last_engine_is_an_answer() -> None:
    got = through_plan(plan_of(attempt("v", start="at_once")), ask(), Faulty("v", words=()))
    complete(got)
    assert not got.text


# ---------------------------------------------------------------- time


def test_the_first_token_limit_fires_although_nothing_ever_comes() -> None:
    plan = plan_of(attempt("c", "cloud", "at_once", first_token_s=2.0))
    got = through_plan(plan, ask(), Faulty("c", "cloud", fault=Fault("stall")))
    assert isinstance(got.error, FirstTokenTimeout)
    assert got.took_s == pytest.approx(2.0, abs=0.01)
    closed(got)


def test_the_inter_token_limit_counts_from_the_last_token() -> None:
    plan = plan_of(attempt("c", "cloud", "at_once", inter_token_s=1.5))
    got = through_plan(plan, ask(), Faulty("c", "cloud", fault=Fault("stall", 3)))
    assert isinstance(got.error, InterTokenTimeout)
    assert got.took_s == pytest.approx(0.1 + 2 * 0.05 + 1.5, abs=0.01)


def test_the_deadline_rules_all_other_limits() -> None:
    plan = plan_of(attempt("c", "cloud", "at_once"), attempt("v"), deadline_s=1.25)
    for fault in (Fault("stall"), Fault("stall", 3), Fault("slow")):
        got = through_plan(plan, ask(), Faulty("v", fault=fault), Faulty("c", "cloud", fault=fault))
        assert isinstance(got.error, DeadlineExceeded)
        assert got.took_s == pytest.approx(1.25, abs=0.01)
        closed(got)


def test_an_attempt_that_starts_late_leaves_the_next_one_its_time() -> None:
    plan = plan_of(
        attempt("c", "cloud", "at_once", total_s=3.0), attempt("c2", "cloud", total_s=3.0), attempt("v"), deadline_s=5.0
    )
    stall = Fault("stall")
    got = through_plan(plan, ask(), Faulty("v"), Faulty("c", "cloud", fault=stall), Faulty("c2", "cloud", fault=stall))
    complete(got)
    assert got.text == TEXT
    assert got.took_s == pytest.approx(3.0 + 0.1 + 11 * 0.05, abs=0.02)


def test_a_slow_client_is_not_the_engines_fault() -> None:
    plan = plan_of(attempt("v", start="at_once", inter_token_s=0.5), deadline_s=60.0)
    got = through_plan(plan, ask(), Faulty("v"), pause_s=2.0)
    complete(got)
    assert got.text == TEXT


def test_an_engine_that_hangs_while_it_is_stopped_does_not_hold_up_the_answer() -> None:
    for after in (0, 3):
        c = Faulty("c", "cloud", fault=Fault("hang_on_close", after))
        got = through_plan(plan_of(*CLOUD_FIRST), ask(), Faulty("v"), c)
        complete(got)
        assert got.text == TEXT
        assert got.took_s < 4.0


def test_a_whole_answer_from_a_single_engine_has_no_first_token_limit_but_the_deadline() -> None:
    v = Faulty("v", token_s=1.0)
    got = through_router(ask(stream=False), v, config=RouteConfig(first_token_s=2.0, deadline_s=30.0))
    complete(got)
    assert v.requests[0].stream is False
    v = Faulty("v", ttft_s=10.0)
    complete(through_router(ask(), v, config=RouteConfig(first_token_s=2.0)))
    limited = through_router(ask(stream=False, codriver={"first_token_ms": 500}), Faulty("v", ttft_s=10.0))
    assert isinstance(limited.error, FirstTokenTimeout)


# ---------------------------------------------------------------- the link


def test_a_stalled_answer_is_left_soon_after_the_link_went_down() -> None:
    link = Weather()
    got = through_plan(
        plan_of(*CLOUD_FIRST), ask(), Faulty("v"), Faulty("c", "cloud", fault=Fault("stall", 4)),
        link=link, schedule=((0.4, "down"),),
    )  # fmt: skip
    complete(got)
    assert got.text == TEXT
    # 0.4 s + the grace of 0.7 s + what the vehicle needs for the rest
    assert got.took_s == pytest.approx(0.4 + 0.7 + 0.1 + 7 * 0.05, abs=0.02)
    assert got.records[0].outcome == "link_down"
    assert link.listeners == []


def test_the_link_going_down_between_two_waits_counts_too() -> None:
    c = Faulty("c", "cloud", fault=Fault("stall", 2))
    plan = plan_of(attempt("c", "cloud", "at_once", inter_token_s=9.0), attempt("v"))
    got = through_plan(plan, ask(), Faulty("v"), c, link=Weather(), schedule=((1.5, "down"),), pause_s=1.0)
    complete(got)
    assert got.records[0].outcome == "link_down"
    assert got.records[1].started_ms < 4500


def test_a_link_that_comes_back_in_time_costs_nothing() -> None:
    plan = plan_of(attempt("c", "cloud", "at_once", first_token_s=5.0), attempt("v"))
    got = through_plan(
        plan, ask(), Faulty("v"), Faulty("c", "cloud", ttft_s=2.0), link=Weather(),
        schedule=((0.5, "down"), (1.1, "degraded")),
    )  # fmt: skip
    complete(got)
    assert got.outcomes() == [("c", "answered")]


def test_a_draft_is_the_answer_when_the_link_is_down_by_then() -> None:
    c = Faulty("c", "cloud")
    v = Faulty("v", logprob=-9.0)
    got = through_router(ask(codriver={"policy": "vehicle-first"}), v, c, link=Weather(), schedule=((0.2, "down"),))
    complete(got)
    assert got.text == TEXT
    assert (c.calls, v.calls) == (0, 1)


def test_what_the_server_says_is_not_taken_for_the_links_fault() -> None:
    got = through_plan(
        plan_of(attempt("c", "cloud", "at_once"), policy="cloud-only"), ask(),
        Faulty("c", "cloud", ttft_s=0.2, fault=Fault("reject")), link=Weather(), schedule=((0.1, "down"),),
    )  # fmt: skip
    assert got.error.code == "upstream_rejected"


def test_where_only_the_cloud_may_answer_it_is_asked_once_the_link_is_back() -> None:
    c = Faulty("c", "cloud")
    plan = plan_of(attempt("c", "cloud", "at_once"), policy="cloud-only")
    got = through_plan(plan, ask(), c, link=Weather("down"), schedule=((5.0, "degraded"),))
    complete(got)
    assert 5.0 <= got.extension["attempts"][0]["started_ms"] / 1e3 <= 5.1


def test_where_only_the_cloud_may_answer_a_link_that_stays_down_is_told() -> None:
    c = Faulty("c", "cloud")
    plan = plan_of(attempt("c", "cloud", "at_once"), policy="cloud-only")
    got = through_plan(plan, ask(), c, link=Weather("down"))
    assert got.error.message == "The link to the cloud was down until the deadline; the cloud was not tried."
    assert (c.calls, got.took_s) == (0, pytest.approx(20.0, abs=0.1))


# ---------------------------------------------------------------- drafts and gates

DRAFT = (
    attempt("v", start="at_once", gate=Gate(min_confidence=0.55, probe_tokens=4)),
    attempt("c", "cloud", "after_rejection", total_s=19.75),
)
BETTER = tuple(f"{' ' if i else ''}b{i}" for i in range(12))


def test_a_good_draft_streams_after_its_probe_tokens() -> None:
    c = Faulty("c", "cloud")
    got = through_plan(plan_of(*DRAFT), ask(), Faulty("v"), c)
    complete(got)
    assert c.calls == 0
    assert got.extension["confidence"] > 0.9
    assert not any(choice.logprobs for chunk in got.chunks for choice in chunk.choices)


def test_a_weak_draft_is_left_while_it_is_being_written() -> None:
    v = Faulty("v", logprob=-2.0, token_s=0.8)
    c = Faulty("c", "cloud", words=BETTER)
    got = through_plan(plan_of(*DRAFT), ask(), v, c)
    complete(got)
    assert got.text == "".join(BETTER)
    assert got.took_s == pytest.approx(0.1 + 3 * 0.8 + 0.1 + 11 * 0.05, abs=0.05)
    assert got.outcomes() == [("v", "rejected"), ("c", "answered")]


@pytest.mark.parametrize("fault", [*BEFORE, Fault("hang_on_close")])
def test_the_held_draft_is_the_answer_when_the_cloud_then_fails(fault: Fault) -> None:
    request = ask(stream_options=StreamOptions(include_usage=True))
    got = through_plan(plan_of(*DRAFT), request, Faulty("v", logprob=-2.0), Faulty("c", "cloud", fault=fault))
    complete(got)
    assert got.text == TEXT
    assert got.extension["engine"] == "v"
    assert got.answer.usage.completion_tokens == len(WORDS)
    assert "best there was" in got.records[0].why
    assert got.records[0].outcome == "answered"


@pytest.mark.parametrize("first_token_s", [2.0, math.inf])
def test_the_held_draft_comes_in_time_when_the_cloud_stalls_to_the_end(first_token_s: float) -> None:
    plan = plan_of(
        DRAFT[0], attempt("c", "cloud", "after_rejection", first_token_s=first_token_s, total_s=4.75), deadline_s=5.0
    )
    got = through_plan(plan, ask(), Faulty("v", logprob=-2.0), Faulty("c", "cloud", fault=Fault("stall")))
    complete(got)
    assert got.text == TEXT
    assert got.took_s <= 5.0


def test_the_routers_own_plan_leaves_time_to_hand_over_the_draft() -> None:
    got = through_router(
        ask(codriver={"policy": "vehicle-first", "deadline_ms": 4000, "first_token_ms": 60_000}),
        Faulty("v", logprob=-2.0),
        Faulty("c", "cloud", fault=Fault("stall")),
    )
    complete(got)
    assert got.took_s <= 4.0


@pytest.mark.parametrize("after", range(1, len(BETTER) + 1))
def test_the_drafter_finishes_what_the_cloud_began(after: int) -> None:
    v = Faulty("v", words=BETTER, logprob=-2.0)
    got = through_plan(plan_of(*DRAFT), ask(), v, Faulty("c", "cloud", words=BETTER, fault=Fault("die", after)))
    complete(got)
    assert got.text == "".join(BETTER)
    assert v.calls == 2


def test_a_drafter_that_dies_again_is_not_asked_a_third_time() -> None:
    v = Faulty("v", logprob=-2.0, fault=Fault("die", 5))
    got = through_plan(plan_of(*DRAFT), ask(), v, Faulty("c", "cloud", fault=Fault("die", 3)))
    assert isinstance(got.error, EngineDied)
    assert v.calls == 2
    assert not got.finishes
    closed(got)


def test_of_two_rejected_drafts_the_better_is_kept() -> None:
    gate = Gate(min_confidence=0.9, probe_tokens=2)
    for low, high in ((-2.0, -0.5), (-0.5, -2.0)):
        plan = plan_of(
            attempt("v", start="at_once", gate=gate),
            attempt("w", start="after_rejection", gate=gate),
            attempt("c", "cloud", "after_rejection"),
        )
        v, w = Faulty("v", logprob=low), Faulty("w", logprob=high)
        got = through_plan(plan, ask(), v, w, Faulty("c", "cloud", fault=Fault("refuse")))
        complete(got)
        assert got.extension["engine"] == ("w" if high > low else "v")


def test_a_safety_net_does_not_replace_a_draft_that_is_there() -> None:
    w = Faulty("w")
    plan = plan_of(*DRAFT, attempt("w"))
    got = through_plan(plan, ask(), Faulty("v", logprob=-2.0), w, Faulty("c", "cloud", fault=Fault("refuse")))
    complete(got)
    assert got.extension["engine"] == "v"
    assert w.calls == 0


def test_a_draft_against_the_schema_is_replaced_and_a_fitting_one_is_not() -> None:
    gate = Gate(min_confidence=0.0, probe_tokens=2, schema=True)
    plan = plan_of(attempt("v", start="at_once", gate=gate), attempt("c", "cloud", "after_rejection"))
    c = Faulty("c", "cloud", words=JSON_WORDS)
    bad = through_plan(plan, ask(response_format=SCHEMA), Faulty("v", words=('{"a"', ': "x"}')), c)
    complete(bad)
    assert bad.text == '{"a": 1}'
    assert bad.extension["engine"] == "c"
    good = through_plan(plan, ask(response_format=SCHEMA), Faulty("v", words=JSON_WORDS), c)
    assert good.extension["engine"] == "v"


# ---------------------------------------------------------------- what is asked of engines


def test_members_nobody_here_knows_survive_the_change_to_a_stream() -> None:
    request = parse_chat(b'{"messages":[{"role":"user","content":"hi","x":1}],"min_p":0.1,"max_tokens":7}')
    c = Faulty("c", "cloud")
    complete(through_plan(plan_of(*CLOUD_FIRST), request, Faulty("v"), c))
    sent = msgspec.json.decode(c.requests[0].raw)
    assert sent["min_p"] == 0.1
    assert sent["messages"][0]["x"] == 1
    assert sent["stream"] is True
    assert c.requests[0].stream is True


def test_an_outer_routers_part_is_told_to_an_engine_without_prefill() -> None:
    v = Chatty("v", capabilities=EVERY - {"prefill"})
    got = through_plan(plan_of(attempt("v", start="at_once")), ask(continue_from="w0 w1"), v)
    complete(got)
    assert v.requests[0].continue_from is None
    assert v.requests[0].messages[-2].content == "w0 w1"


def test_n_choices_are_finished_when_all_of_them_are() -> None:
    class Two(Faulty):
        async def _answer(self, request: Any) -> Any:
            for index in (0, 1):
                for word in ("a", "b"):
                    chunk = self._word(word, request)
                    chunk.choices[0].index = index
                    yield chunk
                if index == self.fault.after - 1:
                    raise EngineDied("died between two choices", engine=self.name)
                end = self._chunk(Delta(), "stop")
                end.choices[0].index = index
                yield end

    got = through_plan(plan_of(*CLOUD_FIRST), ask(n=2), Two("v"), Two("c", "cloud", fault=Fault("die", 2)))
    assert got.error is None
    done = got.answer.completion()
    assert [(c.index, c.message.content, c.finish_reason) for c in done.choices] == [
        (0, "ab", "stop"),
        (1, "ab", "stop"),
    ]
    assert {chunk.id for chunk in got.chunks} == {"v"}


# ---------------------------------------------------------------- money, privacy, verdicts


def test_what_a_dead_engine_wrote_is_paid_and_the_rest_of_the_budget_counts() -> None:
    price = Price(input_usd=0.0, output_usd=1e6)  # a dollar a token
    dear = [Faulty("c", "cloud", price=price, fault=Fault("die", 5)), Faulty("c2", "cloud", price=price)]
    plan = plan_of(attempt("c", "cloud", "at_once"), attempt("c2", "cloud"), attempt("v"), budget_usd=14.0)
    got = through_plan(plan, ask(max_tokens=12), Faulty("v"), *dear)
    complete(got)
    assert dear[1].calls == 0
    assert got.text == TEXT
    assert [r.outcome for r in got.records] == ["engine_died", "skipped:no_engine_left", "answered"]


def test_a_budget_caps_an_answer_without_a_limit() -> None:
    price = Price(output_usd=1e6)
    plan = plan_of(attempt("c", "cloud", "at_once"), budget_usd=4.5)
    got = through_plan(plan, ask(), Faulty("c", "cloud", price=price))
    complete(got)
    assert got.text == "".join(WORDS[:4])
    assert got.finishes == ["length"]


def test_a_plan_that_lies_about_where_an_engine_is_is_not_run() -> None:
    plan = plan_of(attempt("c", "vehicle", "at_once"), privacy="local_only")
    with pytest.raises(PlanError, match="must not reach c"):
        through_plan(plan, ask(), Faulty("c", "cloud"))


def test_the_verdict_names_every_engine_and_keeps_the_callers_own_mistake() -> None:
    plan = plan_of(*CLOUD_FIRST)
    got = through_plan(plan, ask(), Faulty("v", fault=Fault("refuse")), Faulty("c", "cloud", fault=Fault("die")))
    assert isinstance(got.error, NoEngineLeft)
    assert got.error.message == "No engine could answer (c: engine_died; v: engine_unavailable)."

    class TooLong(Faulty):
        def _refuse(self) -> None:
            raise PromptTooLong("too long", param="messages")

    got = through_plan(plan, ask(), TooLong("v"), TooLong("c", "cloud"))
    assert isinstance(got.error, PromptTooLong)
    got = through_plan(plan, ask(), TooLong("v"), Faulty("c", "cloud", fault=Fault("refuse")))
    assert isinstance(got.error, NoEngineLeft)


def test_a_request_that_everybody_refuses_is_the_callers_mistake() -> None:
    class Picky(Faulty):
        def _refuse(self) -> None:
            raise UnsupportedParameter("n must be 1", param="n")

    rejecting = Faulty("c", "cloud", fault=Fault("reject"))
    for plan in (plan_of(*CLOUD_FIRST), plan_of(attempt("v", start="at_once"), attempt("c", "cloud"))):
        got = through_plan(plan, ask(), Picky("v"), rejecting)
        assert isinstance(got.error, UnsupportedParameter)
        assert (got.error.message, got.error.param, got.error.status) == ("n must be 1", "n", 400)
    got = through_plan(plan_of(*CLOUD_FIRST), ask(), Faulty("v", fault=Fault("reject")), rejecting)
    assert isinstance(got.error, UpstreamRejected)
    assert got.error.message == "rejected"


def test_a_cut_answer_tells_why_it_was_cut_and_not_why_nobody_went_on() -> None:
    plan = plan_of(attempt("v", start="at_once"), attempt("c", "cloud"))
    got = through_plan(plan, ask(), Faulty("v", fault=Fault("die", 3)), Faulty("c", "cloud"), link=Weather("down"))
    assert isinstance(got.error, EngineDied)
    assert not isinstance(got.error, LinkDown)


def test_the_error_tree_is_all_a_client_meets() -> None:
    got = through_router(ask(codriver={"engine": "nobody"}), Faulty("v"))
    assert isinstance(got.error, CodriverError)
    assert got.error.message == "There is no engine 'nobody'. Known: v."


def test_it_is_over_at_once_when_the_deadline_has_passed() -> None:
    v = Faulty("v")
    got = through_router(ask(codriver={"deadline_ms": -5}), v)
    assert isinstance(got.error, DeadlineExceeded)
    assert v.calls == 0


def test_attempts_that_all_ran_out_of_their_time_are_told_as_the_deadline() -> None:
    plan = plan_of(attempt("c", "cloud", "at_once", total_s=0.001), attempt("v", total_s=0.001))
    got = through_plan(plan, ask(), Faulty("v"), Faulty("c", "cloud", fault=Fault("stall")))
    assert isinstance(got.error, DeadlineExceeded)
    assert got.error.message == "The deadline passed before an engine could answer."


def test_in_a_tunnel_a_vehicle_that_was_paused_answers_all_the_same() -> None:
    paused = Faulty("v", fault=Fault("die"))

    async def main() -> str:
        lineup = Lineup({"v": paused, "c": Faulty("c", "cloud")}, Weather("down"), clock=LoopClock())
        hybrid = HybridEngine(lineup)
        for _ in range(3):
            with pytest.raises(EngineDied):
                await anext(hybrid.generate(ask(), Deadline.after(20, LoopClock())))
        assert lineup.breakers["v"].state == "open"
        paused.fault = Fault("none")
        chunks = [chunk async for chunk in hybrid.generate(ask(), Deadline.after(20, LoopClock()))]
        assert lineup.breakers["v"].state == "closed"
        return "".join(chunk.text() for chunk in chunks)

    assert run_virtual(main()) == TEXT


def test_a_defect_before_the_first_wait_does_not_leave_the_engine_paused_for_good() -> None:
    class Broken(Quality):
        def features(self, request: ChatRequest) -> Any:
            raise RuntimeError("a defect")

    async def main() -> None:
        config = BreakerConfig(failures=1, open_s=1.0)
        lineup = Lineup({"v": Faulty("v")}, clock=LoopClock(), quality=Broken(), breaker_config=config)
        lineup.breakers["v"].failed(EngineDied("died"))
        await asyncio.sleep(2.0)
        plan = plan_of(attempt("v", start="at_once", gate=Gate()))
        run = Run(lineup, RouteConfig(), plan, ask(), Deadline.never(LoopClock()))
        with pytest.raises(RuntimeError, match="a defect"):
            await anext(run.chunks())
        assert run.records[0].outcome == "cancelled"
        assert lineup.breakers["v"].allows()

    run_virtual(main())


@pytest.mark.parametrize("stream", [True, False])
def test_a_held_draft_is_not_given_up_for_an_answer_without_a_word(stream: bool) -> None:
    got = through_plan(plan_of(*DRAFT), ask(stream), Faulty("v", logprob=-2.0), Faulty("c", "cloud", words=()))
    complete(got)
    assert got.text == TEXT
