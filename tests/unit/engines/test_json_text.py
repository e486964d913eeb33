"""The rest of a JSON text: its grammar takes the true rest, and whatever it takes makes a valid whole."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.engines.json_grammar import followable
from codriver.engines.json_text import JsonText, text_for
from tests.unit.engines.gbnf import Gbnf

STYLES: list[dict[str, Any]] = [{}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": 2}]
NAMES = ["a", "b", "ab", 'q"', "ö", "a-]", "^x"]
LETTERS = st.text(st.sampled_from('ab"\\/\n é€😀\x7f{}[],:'), max_size=6)
STATION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "km": {"type": "integer", "minimum": 0, "maximum": 150},
        "open": {"type": "boolean"},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "plugs": {"type": "array", "items": {"enum": ["CCS", "Typ 2", "größer"]}, "maxItems": 3},
    },
    "required": ["city", "km", "open"],
}


def valid(schema: Any, text: str) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def leaves() -> st.SearchStrategy[tuple[Any, Any]]:
    """Pairs of a schema and a value of it."""
    numbers = st.integers(-200, 200)
    ranges = st.tuples(numbers, numbers, numbers).map(sorted)
    choices = st.lists(st.one_of(LETTERS, numbers, st.booleans(), st.none()), min_size=1, max_size=3)
    return st.one_of(
        LETTERS.map(lambda text: ({"type": "string"}, text)),
        LETTERS.map(lambda text: ({"type": "string", "minLength": len(text) // 2, "maxLength": len(text) + 1}, text)),
        st.integers(-(10**19), 10**19).map(lambda value: ({"type": "integer"}, value)),
        st.floats(-1e6, 1e6).map(lambda value: ({"type": "number"}, value if abs(value) > 1e-90 else 0.0)),
        ranges.map(lambda r: ({"type": "integer", "minimum": r[0], "maximum": r[2]}, r[1])),
        ranges.map(lambda r: ({"type": "number", "minimum": r[0], "maximum": r[2]}, r[1])),
        ranges.map(lambda r: ({"type": "integer", "minimum": r[0]}, r[1])),
        st.booleans().map(lambda value: ({"type": "boolean"}, value)),
        st.just(({"type": "null"}, None)),
        choices.map(lambda values: ({"enum": values}, values[-1])),
        LETTERS.map(lambda text: ({"const": text}, text)),
        st.recursive(
            st.one_of(LETTERS, st.booleans(), numbers),
            lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(LETTERS, inner, max_size=2)),
            max_leaves=4,
        ).map(lambda value: ({}, value)),
    )


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[tuple[Any, Any]]) -> tuple[Any, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    parts = {name: draw(inner) for name in names}
    required = [name for name in names if draw(st.booleans())]
    there = [name for name in names if name in required or draw(st.booleans())]
    schema = {"type": "object", "properties": {name: part[0] for name, part in parts.items()}, "required": required}
    if draw(st.booleans()):
        schema["additionalProperties"] = False
    return schema, {name: parts[name][1] for name in there}


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[tuple[Any, Any]]) -> tuple[Any, Any]:
    schema, value = draw(inner)
    count = draw(st.integers(0, 3))
    bounds = draw(
        st.sampled_from([{}, {"minItems": count}, {"maxItems": count + 1}, {"minItems": 0, "maxItems": count}])
    )
    return {"type": "array", "items": schema, **bounds}, [value] * count


@st.composite
def either(draw: st.DrawFn, inner: st.SearchStrategy[tuple[Any, Any]]) -> tuple[Any, Any]:
    (one, value), (other, _) = draw(inner), draw(inner)
    return {"anyOf": draw(st.permutations([one, other]))}, value


CASES = st.recursive(leaves(), lambda inner: st.one_of(objects(inner), arrays(inner), either(inner)), max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(CASES, st.sampled_from(STYLES))
def test_cut_at_every_character_the_grammar_takes_the_true_rest(case: tuple[Any, Any], style: dict[str, Any]) -> None:
    schema, value = case
    text = json.dumps(value, **style)
    assert valid(schema, text)
    if not followable(schema):
        return
    for cut in range(text.find("\n") + 1 if "\n" in text else 0, len(text) + 1):
        part = JsonText(schema)
        assert part.add(text[:cut]), text[:cut]
        grammar = part.grammar()
        if grammar is None:
            assert part.complete  # and a number may be, although more digits could follow
            assert cut == len(text) or isinstance(value, (int, float))
        elif cut < len(text):
            assert Gbnf(grammar).accepts(text[cut:]), (text[:cut], grammar)


@settings(max_examples=60, deadline=None)
@given(CASES, st.randoms(use_true_random=False), st.sampled_from(STYLES))
def test_whatever_the_grammar_takes_makes_a_valid_whole(
    case: tuple[Any, Any], chance: random.Random, style: dict[str, Any]
) -> None:
    schema, value = case
    if not followable(schema):
        return
    if isinstance(value, dict):
        # A part may have its members in any order, and others where the schema does not forbid them.
        members = [*value.items(), *([("more", 1)] if schema.get("additionalProperties", True) else [])]
        if valid(schema, json.dumps(dict(members))):
            value = dict(chance.sample(members, len(members)))
    text = json.dumps(value, **style)
    for cut in range(len(text)):
        part = JsonText(schema)
        assert part.add(text[:cut])
        grammar = part.grammar()
        if grammar is None:
            continue
        rest = Gbnf(grammar).some(chance)
        assert valid(schema, text[:cut] + rest), (text[:cut], rest)
        assert part.add(rest)
        assert part.complete


@given(CASES, st.sampled_from(STYLES))
def test_it_makes_no_difference_in_what_pieces_a_text_comes(case: tuple[Any, Any], style: dict[str, Any]) -> None:
    schema, value = case
    if not followable(schema):
        return
    text, part = json.dumps(value, **style), JsonText(schema)
    assert all(part.add(letter) for letter in text)
    assert part.complete
    assert part.text == text


@pytest.mark.parametrize(
    "wrong",
    [
        "```", "Here", '{"city": 1', '{"km": 151', '{"km": 1.', '{"open": n', '{"city": "Ulm", "city"x', "[",
        '{"city": "Ulm"]', '{"city": "aaaaaaaaaaaaa', '{"plugs": ["X', '{"plugs": ["CCS", "CCS", "CCS", ',
        '{"share": 1.5', "{}", '{"km": 01', '{"city": "\\ud800"', '{"city": "\\x', '{"city": "a\nb',
        '{"km": 1, "city": "Ulm", "open": true}}', '{"km": NaN',
        '{,', '{"city" "', '{"city":: ',
    ],
)  # fmt: skip
def test_what_can_become_no_valid_text_is_refused_and_changes_nothing(wrong: str) -> None:
    part = JsonText(STATION)
    taken = 0
    while taken < len(wrong) and part.add(wrong[taken]):
        taken += 1
    assert taken < len(wrong)
    assert part.text == wrong[:taken]
    whole = JsonText(STATION)
    assert not whole.add(wrong)
    assert not whole.text


@pytest.mark.parametrize(
    "part", ["", "{", '{"km": 1', '{"open": true, "city": "U', '{ "other" : [1, {"x": "\\u00', '{"o']
)
def test_a_station_is_finished(part: str) -> None:
    for seed in range(30):
        text = JsonText(STATION)
        assert text.add(part)
        grammar = text.grammar()
        assert grammar is not None
        assert valid(STATION, part + Gbnf(grammar).some(random.Random(seed)))


def test_a_key_that_is_none_of_the_known_ones_does_not_become_one() -> None:
    schema = {"type": "object", "properties": {"foo": {"type": "integer"}, "for": {}}}
    text = JsonText(schema)
    assert text.add('{"foo": 1, "fo')
    assert text.add("x")
    other = JsonText(schema)
    assert other.add('{"foo": 1, "for": 2, "fo')
    takes = Gbnf(other.grammar() or "").accepts
    assert takes('": "x"}') and takes('ot": 1}') and takes('oo": 1}')
    assert not takes('o": "x"}') and not takes('r": "x"}')


def test_any_object_is_what_json_object_asks_for() -> None:
    text = JsonText()
    assert text.add('{"a": [1, {"b": "c')
    assert Gbnf(text.grammar() or "").accepts('"}], "d": null}')
    assert not JsonText().add("[")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/x"}, {"oneOf": [{}]}, {"type": "string", "pattern": "a"}, {"anyOf": [{}], "type": "string"}, False,
        {"type": "number", "minimum": 0.2, "maximum": 0.8}, {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "minLength": 10_000}, {"type": "integer", "maximum": 1e300}, {"enum": []},
        {"type": "object", "required": ["a"]}, {"type": "array", "items": {"$ref": "#"}},
        {"type": "string", "maxLength": "3"}, {"type": "integer", "enum": ["x"]},
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_followed_is_known_beforehand(schema: Any) -> None:
    assert text_for(schema) is None


def test_what_was_refused_is_forgotten() -> None:
    text = JsonText()
    assert text.add("{")
    assert not text.add('"" ! ')
    assert text.add('"')
    assert text.add('a": 1}')
    assert text.complete


def test_a_deep_text_is_refused_and_does_no_harm() -> None:
    text = JsonText({})
    assert not text.add("[" * 100_000)
    assert text.add("[[")


@pytest.mark.parametrize(("levels", "followed"), [(20, True), (40, False), (5000, False)])
def test_a_deep_schema_is_not_followed(levels: int, followed: bool) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "required": ["a"], "properties": {"a": schema}, "additionalProperties": False}
    assert (text_for(schema) is not None) == followed
