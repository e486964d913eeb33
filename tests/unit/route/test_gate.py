"""Verdicts on drafts: wait, accept, reject; the schema as a second judge that never touches the network."""

from __future__ import annotations

import math
from typing import Any

import pytest

from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    JsonSchema,
    Logprobs,
    ResponseFormat,
    TokenLogprob,
)
from codriver.core.plan import Gate
from codriver.route.gate import GateKeeper, satisfies
from codriver.route.quality import Quality


def piece(text: str, logprob: float | None = None, finish: str | None = None) -> ChatChunk:
    logprobs = None if logprob is None else Logprobs([TokenLogprob(text, logprob)])
    return ChatChunk(choices=[ChunkChoice(delta=Delta(content=text), logprobs=logprobs, finish_reason=finish)])


def asked(schema: dict[str, Any] | None = None, kind: Any = "json_schema") -> ChatRequest:
    return ChatRequest(
        response_format=ResponseFormat(type=kind, json_schema=JsonSchema(schema=schema) if schema is not None else None)
    )


def keeper(gate: Gate, request: ChatRequest | None = None) -> GateKeeper:
    return GateKeeper(gate, Quality(), "v", {}, request or ChatRequest())


def test_it_waits_for_its_probe_tokens_and_then_decides() -> None:
    for logprob, verdict in ((-0.1, "accept"), (-2.0, "reject")):
        judge = keeper(Gate(min_confidence=0.5, probe_tokens=3))
        assert judge.read(piece("a", logprob)) == "wait"
        assert math.isnan(judge.confidence)
        assert judge.read(piece("b", logprob)) == "wait"
        assert judge.read(piece("c", logprob)) == verdict
        assert judge.confidence == pytest.approx(math.exp(logprob))
    assert judge.reason == "low_confidence"


def test_a_short_draft_is_judged_at_its_end() -> None:
    judge = keeper(Gate(min_confidence=0.5, probe_tokens=30))
    assert judge.read(piece("a", -0.1)) == "wait"
    assert judge.read(piece("", None, "stop")) == "accept"


def test_a_schema_can_only_be_judged_at_the_end_but_a_weak_draft_goes_early() -> None:
    gate = Gate(min_confidence=0.5, probe_tokens=1, schema=True)
    judge = keeper(gate, asked({"type": "object"}))
    assert judge.read(piece("{", -0.1)) == "wait"
    assert judge.read(piece("}", -0.1, "stop")) == "accept"
    assert keeper(gate, asked({"type": "object"})).read(piece("{", -5.0)) == "reject"
    judge = keeper(gate, asked({"type": "object"}))
    assert judge.read(piece("[]", -0.1, "stop")) == "reject"
    assert (judge.reason, judge.confidence) == ("schema", 0.0)


def test_a_tool_call_at_the_end_passes() -> None:
    assert keeper(Gate(min_confidence=0.99)).read(piece("", None, "tool_calls")) == "accept"


@pytest.mark.parametrize(
    ("text", "schema", "verdict"),
    [
        ('{"a": 1}', {"type": "object", "required": ["a"]}, True),
        ('{"b": 1}', {"type": "object", "required": ["a"]}, False),
        ('{"a": ', {"type": "object"}, False),
        ("no json", {"type": "object"}, False),
        ("[" * 100_000, {"type": "object"}, False),
        ("\ud800", {}, False),
        ("{}", {"type": "nonsense"}, True),
        ("{}", {"$ref": "#"}, True),
        ("{}", {"$ref": "#/missing"}, True),
        ('{"a": "x"}', {"properties": {"a": {"pattern": "("}}}, True),
        ("{}", {"$ref": "http://127.0.0.1:9/never-fetched.json"}, True),
        ('{"a": {"a": {}}}', {"properties": {"a": {"$ref": "#"}}}, True),
        ("{}", {"$ref": "file:///etc/hosts"}, True),
        ('{"a": "2026-11-27"}', {"properties": {"a": {"pattern": r"^\d{4}-\d\d-\d\d$"}}}, True),
        ('{"a": "27.11.2026"}', {"properties": {"a": {"pattern": r"^\d{4}-\d\d-\d\d$"}}}, False),
        ('{"a": "Anna"}', {"properties": {"a": {"pattern": r"^(?!Bo)"}}}, True),
        ('{"a": "Bo"}', {"properties": {"a": {"pattern": r"^(?!Bo)"}}}, False),
        # Patterns that take a backtracking matcher longer than the world is old.
        (f'{{"a": "{"a" * 5000}b"}}', {"properties": {"a": {"pattern": "^(a+)+$"}}}, False),
        (f'{{"a": "{"a" * 5000}b"}}', {"properties": {"a": {"pattern": r"^(a*)*\1c$"}}}, False),
        ("{}", {"patternProperties": {"(a{1000}){1000}": {}}}, True),
    ],
)
def test_satisfies(text: str, schema: dict[str, Any], verdict: bool) -> None:
    assert satisfies(text, asked(schema)) is verdict


def test_json_object_and_no_format() -> None:
    assert satisfies("{}", asked(kind="json_object"))
    assert not satisfies("[1]", asked(kind="json_object"))
    assert satisfies("anything", ChatRequest())
    assert satisfies("anything", asked(kind="text"))


def in_pairs(depth: int) -> dict[str, Any]:
    """References in pairs: 2 to the ``depth`` ways."""
    steps: dict[str, Any] = {
        f"a{level}": {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}, {"$ref": f"#/$defs/a{level + 1}"}]}
        for level in range(depth)
    }
    return {"$defs": steps | {f"a{depth}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def everyone_knows_everyone(count: int) -> dict[str, Any]:
    names = [f"a{number}" for number in range(count)]
    knows = [{"$ref": f"#/$defs/{name}"} for name in names]
    return {"$defs": {name: {"oneOf": knows} for name in names}, "oneOf": knows}


def in_layers(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"properties": {"a": {}}}
    for _ in range(depth):
        schema = {"unevaluatedProperties": False, "allOf": [schema, True]}
    return schema


def doubled_by_depth() -> dict[str, Any]:
    """Twice as many ways for each level of the value."""
    inner = {"properties": {"x": {"$ref": "#"}}, "minProperties": 1}
    return {"oneOf": [inner, inner, {"const": 0}]}


def nested(depth: int) -> str:
    return '{"x":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        pytest.param(in_pairs(60), "3", id="references in pairs"),
        pytest.param(everyone_knows_everyone(16), "3", id="all ways through a crowd"),
        pytest.param(in_layers(40), '{"a": 1}', id="unevaluated in layers"),
        pytest.param(doubled_by_depth(), nested(60), id="doubled with the value's depth"),
        pytest.param({"items": {"$ref": "#"}}, "[" * 20_000 + "]" * 20_000, id="too deep to read"),
    ],
)
def test_no_schema_holds_up_the_vehicle(schema: dict[str, Any], text: str) -> None:
    # A check without the bound would outlast the test's own patience by years.
    assert satisfies(text, asked(schema)) is (text[0] != "[")


@pytest.mark.parametrize(
    ("schema", "good"),
    [
        (
            {"properties": {"children": {"type": "array", "items": {"$ref": "#"}}}, "required": ["name"]},
            '{"name": "a", "children": [{"name": "b"}]}',
        ),
        (
            {
                "$defs": {"n ~/": {"type": "integer"}},
                "properties": {"children": {"items": {"$ref": "#/$defs/n%20~0~1"}}},
            },
            '{"children": [1]}',
        ),
        (
            {
                "$defs": {"a": {"properties": {"name": {}}}},
                "allOf": [{"$ref": "#/$defs/a"}],
                "unevaluatedProperties": False,
            },
            '{"name": 1}',
        ),
    ],
)
def test_a_schema_with_references_judges_as_any_other(schema: dict[str, Any], good: str) -> None:
    assert satisfies(good, asked(schema))
    assert not satisfies('{"children": [{"name": "b", "children": [{}]}]}', asked(schema))
