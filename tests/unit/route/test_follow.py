"""JSON that is given out while it is written: whoever finishes it, what the client has is one valid value."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.core.errors import EngineDied
from codriver.core.messages import ChatRequest, FunctionSpec, JsonSchema, Message, ResponseFormat, Tool
from codriver.core.plan import Attempt, AttemptPlan, Gate
from codriver.engines.json_text import JsonText
from codriver.route.follow import Followed
from tests.unit.engines.gbnf import Gbnf
from tests.unit.route.drive import Got, ask, through_plan
from tests.unit.route.faulty import EVERY, Fault, Faulty

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "km": {"type": "integer", "minimum": 0, "maximum": 400},
        "plugs": {"type": "array", "items": {"enum": ["CCS", "Typ 2"]}, "maxItems": 3},
    },
    "required": ["city", "km", "plugs"],
    "additionalProperties": False,
}
FORM = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=SCHEMA))
ANSWER = '{"city": "Köln \\"Süd\\"", "km": 120, "plugs": ["CCS", "Typ 2"]}'
RESUMES = EVERY | {"json_resume"}


class Finisher(Faulty):
    """Goes on with any part as its grammar allows, at random."""

    def _left(self, request: ChatRequest) -> tuple[str, ...]:
        if not request.continue_from:
            return self.words
        part = JsonText(SCHEMA)
        assert part.add(request.continue_from), "asked to go on from what cannot be gone on with"
        return tuple(Gbnf(part.grammar() or 'root ::= ""').some(random.Random(len(part.text))))


def finisher(name: str, words: Any = ANSWER, **more: Any) -> Finisher:
    return Finisher(name, **{"words": tuple(words), "capabilities": RESUMES, "locality": "vehicle", **more})


def attempt(engine: str, start: Any = "after_failure", **more: Any) -> Attempt:
    locality = "cloud" if engine.startswith("c") else "vehicle"
    return Attempt(engine, locality, "test", start, **{"first_token_s": 2.0, "inter_token_s": 1.0, **more})


def plan_of(*attempts: Attempt) -> AttemptPlan:
    return AttemptPlan(attempts, deadline_s=60.0)


CLOUD_FIRST = plan_of(attempt("c", "at_once"), attempt("v"))


def run(*engines: Faulty, plan: AttemptPlan = CLOUD_FIRST, form: Any = FORM, **members: Any) -> Got:
    return through_plan(plan, ask(**{"response_format": form, **members}), *engines)


def one_valid_answer(got: Got) -> None:
    assert got.error is None
    assert len(got.finishes) == 1
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(got.text)), got.text
    assert got.still_open == {}
    assert got.tasks_left == 0


@pytest.mark.parametrize("kind", ["die", "stall", "no_finish"])
@pytest.mark.parametrize("stream", [True, False])
def test_killed_at_every_character_the_answer_is_valid_and_goes_on_from_there(kind: Any, stream: bool) -> None:
    for after in range(1, len(ANSWER)):
        words = ANSWER[:after] if kind == "no_finish" else ANSWER
        fault = Fault(kind, 0 if kind == "no_finish" else after)
        v = finisher("v")
        got = run(v, finisher("c", words, locality="cloud", fault=fault), stream=stream)
        one_valid_answer(got)
        assert got.text.startswith(ANSWER[:after])
        assert {chunk.id for chunk in got.chunks} == {"c"}
        assert [(f["from"], f["to"], f["at_chars"]) for f in got.extension["failovers"]] == [("c", "v", after)]
        assert v.requests[0].continue_from == ANSWER[:after]


def test_it_reaches_the_client_while_it_is_written() -> None:
    got = run(finisher("v"), finisher("c", locality="cloud"))
    one_valid_answer(got)
    assert len([chunk for chunk in got.chunks if chunk.text()]) == len(ANSWER)
    assert got.text == ANSWER
    assert "failovers" not in got.extension


@pytest.mark.parametrize(
    ("said", "good"),
    [
        (["```json\n", ANSWER, "\n```"], 0),
        (["Here ", "you ", "are"], 0),
        (['{"city": "Ulm", ', '"km": ', '"far"', ', "plugs": []}'], 22),
        (['{"city": "Ulm", ', '"km": 4', "01", ', "plugs": []}'], 23),
        (['{"city": "Ulm", "km": 1', "}"], 23),
        (['{"city": "Ulm", ', '"note": "x", "km": 1, "plugs": []}'], 16),
        (["[", "]"], 0),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_leaves_the_schema_is_left_there(said: list[str], good: int, stream: bool) -> None:
    v = finisher("v")
    got = run(v, finisher("c", said, locality="cloud"), stream=stream)
    one_valid_answer(got)
    assert (v.requests[0].continue_from or "") == "".join(said)[:good]
    assert got.text.startswith("".join(said)[:good])
    assert got.extension["attempts"][0]["outcome"] == "engine_died"


@pytest.mark.parametrize("more", [["\n```", " that is it"], ["}"], []])
def test_a_whole_value_needs_nobody_to_end_it(more: list[str]) -> None:
    v = finisher("v")
    fault = Fault() if more else Fault("die", len(ANSWER))
    got = run(v, finisher("c", [*ANSWER, *more], locality="cloud", fault=fault))
    one_valid_answer(got)
    assert got.text == ANSWER
    assert got.finishes == ["stop"]
    assert v.calls == 0


def test_three_engines_write_one_value() -> None:
    plan = plan_of(attempt("c", "at_once"), attempt("c2"), attempt("v"))
    for first in range(1, 30, 4):
        for second in range(1, 8):
            c = finisher("c", locality="cloud", fault=Fault("die", first))
            c2 = finisher("c2", locality="cloud", fault=Fault("die", second))
            got = run(finisher("v"), c, c2, plan=plan)
            one_valid_answer(got)


def held(got: Got) -> None:
    """The client got nothing before the answer was whole, and all of it from one engine."""
    one_valid_answer(got)
    assert got.text == ANSWER
    assert {chunk.id for chunk in got.chunks} == {"v"}


@pytest.mark.parametrize("lacks", ["json_resume", "prefill"])
def test_it_is_held_while_an_engine_that_cannot_finish_it_could_take_over(lacks: Any) -> None:
    held(run(finisher("v", capabilities=RESUMES - {lacks}), finisher("c", locality="cloud", fault=Fault("die", 9))))
    plan = plan_of(attempt("c", "at_once"), attempt("v"), attempt("w"))
    c = finisher("c", locality="cloud", fault=Fault("die", 9))
    held(run(finisher("v"), finisher("w", capabilities=RESUMES - {lacks}), c, plan=plan))


@pytest.mark.parametrize("policy", ["restart", "declare"])
def test_it_is_held_where_it_shall_not_be_resumed(policy: Any) -> None:
    plan = plan_of(attempt("c", "at_once", on_late_death=policy), attempt("v"))
    held(run(finisher("v"), finisher("c", locality="cloud", fault=Fault("die", 9)), plan=plan))


def test_a_schema_that_cannot_be_followed_is_held() -> None:
    form = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema={"allOf": [SCHEMA]}))
    held(run(finisher("v"), finisher("c", locality="cloud", fault=Fault("die", 9)), form=form))


def test_a_gated_draft_can_finish_what_the_cloud_began() -> None:
    v = finisher("v", logprob=-9.0)
    plan = plan_of(attempt("v", "at_once", gate=Gate(probe_tokens=1)), attempt("c", "after_rejection"))
    got = run(v, finisher("c", locality="cloud", fault=Fault("die", 12)), plan=plan)
    one_valid_answer(got)
    assert got.text.startswith(ANSWER[:12])
    assert v.calls == 2


def test_the_last_engine_streams_and_its_death_is_told() -> None:
    got = run(finisher("v", fault=Fault("die", 9)), plan=plan_of(attempt("v", "at_once")))
    assert isinstance(got.error, EngineDied)
    assert got.text == ANSWER[:9]
    assert not got.finishes


def test_a_token_limit_ends_it_in_the_middle_and_says_so() -> None:
    got = run(finisher("v"), finisher("c", locality="cloud", fault=Fault("die", 9)), max_tokens=12)
    assert got.error is None
    assert got.finishes == ["length"]
    assert got.text.startswith(ANSWER[:9])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_text_of_any_cloud_gives_one_valid_answer(data: st.DataObject) -> None:
    """However it is cut in pieces, and whatever stands in it."""
    text = data.draw(
        st.one_of(st.just(ANSWER), st.text(max_size=8), st.integers(0, 60).map(lambda n: ANSWER[:n] + '", x'))
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
    after = data.draw(st.integers(0, len(pieces)))
    kind = data.draw(st.sampled_from(["none", "die", "stall", "no_finish", "two_finishes", "die_after_finish"]))
    got = run(finisher("v"), finisher("c", pieces, locality="cloud", fault=Fault(kind, after)))
    one_valid_answer(got)


@pytest.mark.parametrize(
    "members",
    [
        {}, {"response_format": ResponseFormat(type="text")}, {"response_format": FORM, "n": 2},
        {"response_format": FORM, "tools": [Tool(function=FunctionSpec(name="f"))]},
        {"response_format": FORM, "continue_from": "{"}, {"response_format": FORM, "prompt": "x"},
        {"response_format": FORM, "messages": [Message(role="assistant", content="{")]},
    ],
)  # fmt: skip
def test_what_is_not_one_json_value_is_not_followed(members: dict[str, Any]) -> None:
    followed = Followed(ChatRequest(**{"messages": [Message(role="user", content="hi")], **members}))
    assert not followed.can_be_finished([])
    assert not followed.is_whole
