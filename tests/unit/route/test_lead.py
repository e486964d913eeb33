"""The vehicle's first sentence, the cloud's rest: where it is cut, who goes on, and who when they fail."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.core.deadline import Deadline
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, ResponseFormat
from codriver.core.plan import Attempt, AttemptPlan
from codriver.core.virtual import LoopClock, run_virtual
from codriver.route.config import RouteConfig
from codriver.route.decide import Decider
from codriver.route.hybrid import HybridEngine
from codriver.route.lead import Lead, sentence_end
from tests.unit.route.drive import Got, ask, lineup_of, through_plan, watch
from tests.unit.route.faulty import EVERY, Fault, Faulty

WORDS = ("The", " route", " is", " clear.", " It", " takes", " 3.5", " hours.", " Drive", " safely.")
TEXT = "".join(WORDS)
FIRST = "The route is clear."


def plan(**more: Any) -> AttemptPlan:
    lead = Attempt("vehicle", "vehicle", "leads", start="at_once", until="first_sentence", **more)
    return AttemptPlan((lead, Attempt("cloud", "cloud", "goes on", first_token_s=3.0)), deadline_s=30.0)


def engines(cloud_fault: Fault | None = None, vehicle_fault: Fault | None = None, **more: Any) -> tuple[Faulty, Faulty]:
    vehicle = Faulty("vehicle", words=WORDS, ttft_s=0.1, fault=vehicle_fault or Fault())
    return vehicle, Faulty("cloud", "cloud", words=WORDS, ttft_s=1.0, fault=cloud_fault or Fault(), **more)


def test_the_vehicle_begins_and_the_cloud_goes_on() -> None:
    vehicle, cloud = engines()
    got = through_plan(plan(), ask(), vehicle, cloud)
    assert got.text == TEXT
    assert got.outcomes() == [("vehicle", "led"), ("cloud", "answered")]
    assert got.records[0].ttft_ms == pytest.approx(100)
    assert cloud.requests[0].continue_from == FIRST
    assert got.finishes == ["stop"]
    assert got.extension["engine"] == "cloud"
    assert got.extension["failovers"] == [
        {"from": "vehicle", "to": "cloud", "policy": "hand_over", "error": "first_sentence", "at_chars": len(FIRST)}
    ]
    assert not got.still_open
    assert {chunk.id for chunk in got.chunks} == {"vehicle"}


def test_a_cloud_that_cannot_prefill_is_asked_to_go_on() -> None:
    vehicle, cloud = engines(capabilities=EVERY - {"prefill"})
    got = through_plan(plan(), ask(), vehicle, cloud)
    assert cloud.requests[0].messages[-2].content == FIRST
    assert got.text == TEXT  # the double says all again, and that is taken off


@pytest.mark.parametrize("fault", [Fault("refuse"), Fault("die"), Fault("stall"), Fault("die", after=6)])
def test_where_the_cloud_fails_the_vehicle_finishes(fault: Fault) -> None:
    vehicle, cloud = engines(fault)
    got = through_plan(plan(), ask(), vehicle, cloud)
    assert got.text == TEXT
    assert [engine for engine, _ in got.outcomes()] == ["vehicle", "cloud", "vehicle"]
    assert got.outcomes()[-1][1] == "answered"
    assert not got.still_open


def test_a_vehicle_that_fails_leaves_all_to_the_cloud() -> None:
    vehicle, cloud = engines(vehicle_fault=Fault("die"))
    got = through_plan(plan(), ask(), vehicle, cloud)
    assert got.text == TEXT
    assert got.outcomes() == [("vehicle", "engine_died"), ("cloud", "answered")]


def test_a_vehicle_that_dies_in_its_sentence_is_followed() -> None:
    vehicle, cloud = engines(vehicle_fault=Fault("die", after=2))
    got = through_plan(plan(), ask(), vehicle, cloud)
    assert got.text == TEXT
    assert got.outcomes() == [("vehicle", "engine_died"), ("cloud", "answered")]


def test_an_answer_of_one_sentence_is_still_the_clouds() -> None:
    vehicle, cloud = engines()
    vehicle.words = WORDS[:4]
    got = through_plan(plan(), ask(), vehicle, cloud)
    assert got.text == TEXT
    assert got.finishes == ["stop"]


def test_a_vehicle_that_says_nothing_is_no_beginning() -> None:
    vehicle, cloud = engines()
    vehicle.words = ()
    got = through_plan(plan(), ask(), vehicle, cloud)
    assert got.text == TEXT
    assert got.extension["failovers"][0]["at_chars"] == 0


def test_a_limit_of_tokens_that_the_sentence_uses_up_ends_the_answer() -> None:
    vehicle, cloud = engines()
    got = through_plan(plan(), ask(max_tokens=4), vehicle, cloud)
    assert (got.text, got.finishes, cloud.calls) == (FIRST, ["length"], 0)


def test_with_nobody_to_go_on_the_client_is_told() -> None:
    vehicle, cloud = engines(Fault("refuse"))
    vehicle_once = through_plan(plan(total_s=0.2), ask(), vehicle, cloud)
    assert vehicle_once.error is not None
    assert not vehicle_once.finishes
    assert FIRST.startswith(vehicle_once.text)


# ---------------------------------------------------------------- when


def decided(request: ChatRequest, lead: bool = True, **paces: float) -> list[tuple[str, str]]:
    lineup = lineup_of(*engines())
    for name, ttft_s in {"vehicle": 0.1, "cloud": 0.9, **paces}.items():
        lineup.paces[name].ttft_s = ttft_s
    made = Decider(lineup, RouteConfig(policy="cloud-first", lead_sentence=lead)).plan(request)
    return [(attempt.engine, attempt.until) for attempt in made.attempts]


LED = [("vehicle", "first_sentence"), ("cloud", "end")]
NOT_LED = [("cloud", "end"), ("vehicle", "end")]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_it_leads_where_it_is_quicker_and_asked_to() -> None:
    assert decided(ask()) == LED
    assert decided(ask(), lead=False) == NOT_LED
    assert decided(ask(), vehicle=1.0) == NOT_LED


@pytest.mark.parametrize(
    "members",
    [
        {"stream": False},
        {"tools": [TOOL]},
        {"response_format": ResponseFormat(type="json_object")},
        {"n": 2},
        {"logprobs": True},
        {"stop": ["x"]},
        {"continue_from": "It"},
        {"codriver": {"failover": "declare"}},
        {"codriver": {"failover": "restart"}},
    ],
    ids=str,
)
def test_it_does_not_lead_where_a_seam_would_show(members: dict[str, Any]) -> None:
    assert decided(ask(**members)) == NOT_LED


def test_through_the_router() -> None:
    vehicle, cloud = engines()

    async def main() -> Got:
        lineup = lineup_of(vehicle, cloud)
        lineup.paces["vehicle"].ttft_s, lineup.paces["cloud"].ttft_s = 0.1, 1.0
        hybrid = HybridEngine(lineup, RouteConfig(policy="cloud-first", lead_sentence=True))
        return await watch(hybrid.generate(ask(), Deadline.never(LoopClock())), lineup)

    got = run_virtual(main())
    assert (got.text, got.outcomes()) == (TEXT, [("vehicle", "led"), ("cloud", "answered")])


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("The route is clear. It takes", "The route is clear."),
        ("It takes 3.5 hours to get there. Then", "It takes 3.5 hours to get there."),
        ('He said "turn left here." Then', 'He said "turn left here."'),
        ("A line without a stop\nnext", "A line without a stop"),
        ("Wirklich so weit?! Ja.", "Wirklich so weit?!"),
        ("1. Turn left at the light. 2. Stop", "1. Turn left at the light."),
        ("充电站在前面两公里的地方。然后", "充电站在前面两公里的地方。"),
        ("No end yet", None),
        ("A number ends it: 3.", None),
    ],
)
def test_where_a_sentence_ends(text: str, first: str | None) -> None:
    end = sentence_end(text)
    assert (None if end is None else text[:end]) == first


def chunk(text: str, finish: str | None = None) -> ChatChunk:
    return ChatChunk(
        id="a", created=1, model="m", choices=[ChunkChoice(delta=Delta(content=text), finish_reason=finish)]
    )


@settings(max_examples=300)
@given(st.text(alphabet='ab. !\n"3', max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_any_cut_into_chunks_gives_the_same_sentence(text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    lead, said = Lead(), ""
    for start, end in zip(edges, [*edges[1:], len(text)], strict=True):
        part = lead.take(chunk(text[start:end], "stop" if end == len(text) and start == edges[-1] else None))
        said += part.text() if part is not None else ""
        assert part is None or part.finish_reason is None
        if lead.over:
            break
    whole = sentence_end(text)
    assert said == (text if whole is None else text[:whole])
