"""JSON schemas as GBNF, llama.cpp's grammar format, for values that have not begun and for what follows a begun one.

Members come in the schema's order, as llama.cpp's own grammars have them, and an object that lists its properties gets
no others. White space is what ``json.dumps`` writes, and line breaks only where ``lines`` says that there are some.
Limits: the words of :mod:`.json_subset`, less what :func:`followable` names.
"""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema_rs

from .json_numbers import number_flats, printed
from .json_subset import fits

ANYTHING: dict[str, Any] = {}
FREE_OBJECT: dict[str, Any] = {"type": "object"}
# Longest run that is written out; llama.cpp refuses 2,000.
MOST_REPEATS = 500
_SURE_DIGITS = 10**15
_NOTES = {"title", "description", "default"}
_ANY = {
    "any": '"{" brk ( pair ("," brk pair)* brk )? "}" | "[" brk ( any ("," brk any)* brk )? "]" | string | number'
    ' | "true" | "false" | "null"',
    "pair": 'string ":" gap any',
    "number": '"-"? ("0" | [1-9] [0-9]{0,20}) ("." [0-9]{1,20})? ([eE] [+-]? [0-9]{1,2})?',
    "string": '"\\"" char* "\\""',
    # Half of a surrogate pair is no character.
    "char": r'[^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" unit)',
    "unit": r'[0-9a-cefA-CEF] hex{3} | [dD] [0-7] hex{2} | [dD] [89abAB] hex{2} "\\u" [dD] [c-fC-F] hex{2}',
    "hex": "[0-9a-fA-F]",
    "gap": '" "?',
}


def followable(schema: Any) -> bool:
    """True for a schema of which a begun value can be gone on with, wherever it was cut."""
    if not fits(schema):
        return False
    if isinstance(schema, bool):
        return schema
    if "anyOf" in schema and (set(schema) - _NOTES != {"anyOf"} or not schema["anyOf"]):
        return False
    if not (_bounds(schema, "Length") and _bounds(schema, "Items") and _range(schema)):
        return False
    if "enum" in schema or "const" in schema:
        return bool(allowed(schema))
    if {"number", "integer"} & set(kinds(schema)) and not number_flats(schema, kinds(schema) == ["integer"]):
        return False
    more = schema.get("additionalProperties", True)
    if schema.get("properties") and set(schema.get("required", ())) - set(schema["properties"]):
        return False
    if not schema.get("properties") and schema.get("required"):
        return False
    below = [*schema.get("anyOf", []), *schema.get("properties", {}).values(), schema.get("items", True)]
    return all(followable(part) for part in below) and (more is False or followable(more))


def _bounds(schema: dict[str, Any], of: str) -> bool:
    fewest, most = schema.get(f"min{of}", 0), schema.get(f"max{of}", math.inf)
    return isinstance(fewest, int) and (most == math.inf or isinstance(most, int)) and fewest <= min(most, MOST_REPEATS)


def _range(schema: dict[str, Any]) -> bool:
    """True where the bounds of a number are numbers of which every digit counts."""
    ends = [schema[word] for word in ("minimum", "maximum") if word in schema]
    return all(isinstance(end, (int, float)) and abs(end) < _SURE_DIGITS for end in ends)


def kinds(schema: dict[str, Any]) -> list[str]:
    """The types that a value of ``schema`` may have; one whose words speak of one type is taken to be of it."""
    if "type" in schema:
        return [schema["type"]]
    words = {
        "object": {"properties", "required", "additionalProperties"},
        "array": {"items", "minItems", "maxItems"},
        "string": {"minLength", "maxLength"},
        "number": {"minimum", "maximum"},
    }
    spoken = [kind for kind, own in words.items() if own & set(schema)]
    return spoken or ["object", "array", "string", "number", "boolean", "null"]


def allowed(schema: dict[str, Any]) -> list[str]:
    """The texts of an ``enum`` or ``const``: those of its values that the rest of the schema allows."""
    values = [schema["const"]] if "const" in schema else schema["enum"]
    valid = [value for value in values if is_valid(value, schema)]
    return list(dict.fromkeys(text for value in valid for text in spelt(value)))


def spelt(value: Any) -> list[str]:
    """``value`` as JSON in its two spellings, which differ where it is not ASCII."""
    return list(dict.fromkeys(json.dumps(value, ensure_ascii=pure) for pure in (False, True)))


def is_valid(value: Any, schema: Any) -> bool:
    return jsonschema_rs.is_valid(schema, value, draft=jsonschema_rs.Draft202012, offline=True)


def quoted(text: str) -> str:
    """``text`` as a literal of GBNF. What JSON is written in has no control characters."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if text else ""


def either(ways: list[str]) -> str:
    """One of ``ways``; an empty one is an empty text."""
    return ways[0] if len(ways) == 1 else "(" + " | ".join(way or '""' for way in ways) + ")"


class Rules:
    """The rules of one grammar; asking for one makes it. ``lines``: line breaks are allowed."""

    def __init__(self, lines: bool) -> None:
        self.lines = lines
        self._named: dict[str, str] = {}
        self._bodies: dict[str, str] = {**_ANY, "brk": r'" "? | "\n" [ \t]{0,20}' if lines else '" "?'}

    def grammar(self, root: str) -> str:
        rules = {"root": root, **self._bodies}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items())

    def value(self, schema: Any) -> str:
        """A whole value."""
        if not isinstance(schema, dict) or not set(schema) - _NOTES:
            return "any"
        return self._rule(f"value {json.dumps(schema)}", lambda: self._value(schema))

    def _rule(self, key: str, body: Any) -> str:
        name = self._named.get(key)
        if name is None:
            name = self._named[key] = f"r{len(self._named)}"
            self._bodies[name] = body()
        return name

    def _value(self, schema: dict[str, Any]) -> str:
        if "enum" in schema or "const" in schema:
            return " | ".join(quoted(text) for text in allowed(schema))
        if "anyOf" in schema:
            return " | ".join(self.value(branch) for branch in schema["anyOf"])
        return " | ".join(self._of_kind(schema, kind) for kind in kinds(schema))

    def _of_kind(self, schema: dict[str, Any], kind: str) -> str:
        if kind == "object":
            return f'"{{" {self.lead()} {self.members(schema, tuple(schema.get("properties", ())), True)}'
        if kind == "array":
            return f'"[" {self.lead()} {self.items(schema, 0)}'
        if kind == "string":
            return f'"\\"" {self.letters(schema, 0)}'
        if kind in ("number", "integer"):
            return " | ".join(printed(flat) for flat in number_flats(schema, kind == "integer"))
        return '"null"' if kind == "null" else '"true" | "false"'

    @staticmethod
    def lead() -> str:
        return "brk"

    def letters(self, schema: dict[str, Any], written: int) -> str:
        """The rest of a string that has ``written`` characters, with its closing quote."""
        fewest, most = max(0, schema.get("minLength", 0) - written), schema.get("maxLength")
        if most is None:
            return f'char{{{fewest},}} "\\""' if fewest else 'char* "\\""'
        most = min(most - written, max(fewest, MOST_REPEATS))
        return f'char{{{fewest},{most}}} "\\""' if most else '"\\""'

    def items(self, schema: dict[str, Any], written: int) -> str:
        """The rest of an array after its bracket or an item, with its closing bracket."""
        fewest, most = max(0, schema.get("minItems", 0) - written), schema.get("maxItems")
        left = None if most is None else min(most - written, max(fewest, MOST_REPEATS))
        if left == 0:
            return 'brk "]"' if written else '"]"'
        item = self.value(schema.get("items", True))
        next_one = f'("," brk {item})'
        if written:
            return f'{_times(next_one, fewest, left)} brk "]"'
        more = _times(next_one, max(0, fewest - 1), None if left is None else left - 1)
        some = f'{item} {more} brk "]"'
        return some if fewest else f'("]" | {some})'

    def members(self, schema: dict[str, Any], todo: tuple[str, ...], may_end: bool) -> str:
        """An object from before a member on, with its closing brace; ``may_end``: no member need follow."""
        ways = []
        for at, name in enumerate(todo):
            ways.append(f"{self.member(schema, name)} {self.tail(schema, todo[at + 1 :])}")
            if name in schema.get("required", ()):
                break
        else:
            ways.extend(['"}"'] if may_end else [])
            if self._takes_others(schema):
                ways.append(f"{self.other(schema)} {self.tail(schema, ())}")
        return either(ways) if ways else ""

    def tail(self, schema: dict[str, Any], todo: tuple[str, ...]) -> str:
        """An object from behind a member on, with its closing brace. ``todo``: what of its properties is not there."""
        return self._rule(f"tail {todo} {json.dumps(schema)}", lambda: self._tail(schema, todo))

    def _tail(self, schema: dict[str, Any], todo: tuple[str, ...]) -> str:
        if todo:
            one = f'"," brk {self.member(schema, todo[0])}'
            must = todo[0] in schema.get("required", ())
            return f"{one if must else f'({one})?'} {self.tail(schema, todo[1:])}"
        return f'("," brk {self.other(schema)})* brk "}}"' if self._takes_others(schema) else 'brk "}"'

    def member(self, schema: dict[str, Any], name: str) -> str:
        keys = either([quoted(f"{key}:") for key in spelt(name)])
        return f"{keys} gap {self.value(schema['properties'][name])}"

    def other(self, schema: dict[str, Any]) -> str:
        return f'string ":" gap {self.value(schema.get("additionalProperties", True))}'

    @staticmethod
    def _takes_others(schema: dict[str, Any]) -> bool:
        return not schema.get("properties") and schema.get("additionalProperties", True) is not False


def _times(one: str, fewest: int, most: int | None) -> str:
    if most is None:
        return f"{one}{{{fewest},}}" if fewest else f"{one}*"
    return f"{one}{{{fewest},{most}}}" if most else ""
