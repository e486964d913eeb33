"""A JSON text while it is written: whether it can still become valid under its schema, and the grammar of its rest.

This is what lets one engine finish what another began: the rest is generated under a grammar (GBNF) whose texts, put
behind the part, make exactly one value of the schema. Whatever white space and order of members the part has is taken;
the rest comes in the schema's order. Limits: schemas that :func:`~.json_grammar.followable` knows; a key that is not
among an object's properties and was cut inside an escape is not gone on with.
The rule kept here: a text that was taken can be completed.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

from .json_grammar import ANYTHING, FREE_OBJECT, Rules, allowed, either, followable, is_valid, kinds, quoted, spelt
from .json_numbers import Flat, advance, number_flats, printed

# Levels of dictionaries and lists in a schema that is followed; two of them are one level of JSON.
_MOST_LEVELS = 64
_SPACE = " \t\n\r"
_HEX = "0123456789abcdefABCDEF"
_LETTERS = re.compile(
    r'(?:[^"\\\x00-\x1f\ud800-\udfff]+|\\["\\/bfnrt]'
    r"|\\u(?:[0-9a-cefA-CEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*"
)
_NUMBER = re.compile(r"-?[0-9.eE+-]*")
_ESCAPES: list[Flat] = [
    (("\\", 1, 1), ('"\\/bfnrt', 1, 1)),
    (("\\", 1, 1), ("u", 1, 1), ("0123456789abcefABCEF", 1, 1), (_HEX, 3, 3)),
    (("\\", 1, 1), ("u", 1, 1), ("dD", 1, 1), ("01234567", 1, 1), (_HEX, 2, 2)),
    (
        *(("\\", 1, 1), ("u", 1, 1), ("dD", 1, 1), ("89abAB", 1, 1), (_HEX, 2, 2)),
        *(("\\", 1, 1), ("u", 1, 1), ("dD", 1, 1), ("cdefCDEF", 1, 1), (_HEX, 2, 2)),
    ),
]
_IN_NUMBER = tuple("0123456789.eE+-")
_KEY = {"type": "string"}
_KINDS = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_scan = json.JSONDecoder(parse_constant=_no_constant).raw_decode


class JsonText:
    """``text`` grows by :meth:`add`. ``schema``: one that is followable; ``None``: any object."""

    def __init__(self, schema: dict[str, Any] | None = None) -> None:
        self._schema = FREE_OBJECT if schema is None else schema
        self.text = ""
        self._whole: dict[tuple[int, int], int] = {}  # (where a value stands, its schema) -> its end
        self._rules = Rules(lines=False)

    def add(self, more: str) -> bool:
        """Take ``more``, if the text can still become valid with it; otherwise nothing has changed."""
        before, self.text = self.text, self.text + more
        try:
            if self.complete or self._rests():
                return True
        except RecursionError:
            pass
        self.text = before
        self._whole = {place: end for place, end in self._whole.items() if end < len(before)}
        return False

    @property
    def complete(self) -> bool:
        """True for a whole value of the schema, with nothing behind it but white space."""
        end = self._end_of(self._schema, self._skip(0))
        return end is not None and self._skip(end) == len(self.text)

    @property
    def is_closed(self) -> bool:
        """True for a whole value that nothing but white space can follow: a number may have more digits."""
        return self.complete and not any(self._rests())

    def grammar(self) -> str | None:
        """What may follow, in GBNF; ``None`` where nothing may, or need."""
        rests = self._rests()
        if self.complete:
            rests = [*rests, ""] if any(rests) else []
        return self._rules.grammar(either(rests)) if rests else None

    # ------------------------------------------------------------ the open end

    def _rests(self) -> list[str]:
        self._rules = self._rules if self._rules.lines == ("\n" in self.text) else Rules(lines=True)
        return self._value(self._schema, self._skip(0))

    def _value(self, schema: Any, at: int) -> list[str]:
        """The rests of a value that begins ``at`` and is not whole; none where it cannot be one of ``schema``."""
        text, schema = self.text, schema if isinstance(schema, dict) else ANYTHING
        if at == len(text):
            return [self._rules.value(schema)]
        if "enum" in schema or "const" in schema:
            return [quoted(one[len(text) - at :]) for one in allowed(schema) if one.startswith(text[at:])]
        if "anyOf" in schema:
            return list(dict.fromkeys(rest for branch in schema["anyOf"] for rest in self._value(branch, at)))
        possible = kinds(schema)
        kind = _KINDS.get(text[at])
        if kind is None:
            return [] if not {"number", "integer"} & set(possible) else self._number(schema, at)
        if kind not in possible:
            return []
        if kind == "object":
            return self._object(schema, at)
        if kind == "array":
            return self._array(schema, at)
        if kind == "string":
            return self._string(schema, at)
        return [quoted(word[len(text) - at :]) for word in ("true", "false", "null") if word.startswith(text[at:])]

    def _number(self, schema: dict[str, Any], at: int) -> list[str]:
        written = self.text[at:]
        if not _NUMBER.fullmatch(written):
            return []
        flats = number_flats(schema, "integer" in kinds(schema))
        return [printed(flat) for flat in advance(flats, written)]

    def _string(self, schema: dict[str, Any], at: int) -> list[str]:
        letters, rests = _letters_from(self.text, at + 1)
        found = []
        for rest in rests:
            written = len(letters) + bool(rest)
            if written <= schema.get("maxLength", written):
                found.append(f"{rest} {self._rules.letters(schema, written)}")
        return found

    def _array(self, schema: dict[str, Any], at: int) -> list[str]:
        rules, text, item = self._rules, self.text, schema.get("items", True)
        written, most = 0, schema.get("maxItems")
        at = self._skip(at + 1)
        if at == len(text):
            return [f"{self._lead()} {rules.items(schema, 0)}"]
        found: list[str] = []
        while most is None or written < most:
            end = self._end_of(item, at)
            if end is None or end == len(text):
                found += [f"{rest} {rules.items(schema, written + 1)}" for rest in self._open(item, at, end)]
            written += 1
            if end is None:
                return found
            at = self._skip(end)
            if at == len(text):
                ending = rules.items(schema, written)
                return [*found, f"{self._lead()} {ending}" if end < at else ending]
            if text[at] != ",":
                return []
            at = self._skip(at + 1)
            if at == len(text):
                one = f"{self._lead()} {rules.value(item)} {rules.items(schema, written + 1)}"
                return [one] if most is None or written < most else []
        return []

    def _object(self, schema: dict[str, Any], at: int) -> list[str]:
        rules, text = self._rules, self.text
        todo = tuple(schema.get("properties", ()))
        at, first = self._skip(at + 1), True
        while True:
            if at == len(text):
                rest = rules.members(schema, todo, first)
                if rest:
                    return [f"{self._lead()} {rest}"]
                return self._other(schema, todo, f'{self._lead()} "\\"" {_unlike(tuple(schema.get("properties", ())))}')
            key_end = self._end_of(_KEY, at) if text[at] == '"' else None
            if key_end is None:
                return self._key(schema, at, todo) if text[at] == '"' else []
            name = json.loads(text[at:key_end])
            member, todo = self._schema_of(schema, name), tuple(one for one in todo if one != name)
            tail = rules.tail(schema, todo)
            at = self._skip(key_end)
            if at == len(text):
                return [f'":" gap {rules.value(member)} {tail}'] if member is not False else []
            if text[at] != ":" or member is False:
                return []
            at = self._skip(at + 1)
            if at == len(text):
                return [f"{self._lead('gap')} {rules.value(member)} {tail}"]
            end = self._end_of(member, at)
            found = []
            if end is None or end == len(text):
                found = [f"{rest} {tail}" for rest in self._open(member, at, end)]
            if end is None:
                return found
            at = self._skip(end)
            if at == len(text):
                return [*found, f"{self._lead()} {tail}" if end < at else tail]
            if text[at] != ",":
                return []
            at, first = self._skip(at + 1), False

    def _open(self, schema: Any, at: int, end: int | None) -> list[str]:
        """The rests of a value that is not whole, or is a number, which more digits may follow."""
        return self._value(schema, at) if end is None or self.text[at] in "-0123456789" else []

    def _key(self, schema: dict[str, Any], at: int, todo: tuple[str, ...]) -> list[str]:
        """The rests of an object that ends inside a key."""
        rules, part, found = self._rules, self.text[at:], []
        for name in todo:
            for key in spelt(name):
                if key.startswith(part):
                    member = rules.value(schema["properties"][name])
                    tail = rules.tail(schema, tuple(one for one in todo if one != name))
                    found.append(f"{quoted(key[len(part) :] + ':')} gap {member} {tail}")
        if found:
            return found
        letters, rests = _letters_from(self.text, at + 1)
        names = tuple(schema.get("properties", ()))
        if not names:
            return [way for rest in rests for way in self._other(schema, todo, f"{rest} {_unlike(())}")]
        if "" not in rests:
            return []
        left = tuple(name[len(letters) :] for name in names if name.startswith(letters))
        return self._other(schema, todo, _unlike(left))

    def _other(self, schema: dict[str, Any], todo: tuple[str, ...], key: str) -> list[str]:
        """The rests of an object before or in a member that is none of its properties; ``key``: the rest of its key."""
        others = schema.get("additionalProperties", True)
        if others is False:
            return []
        return [f'{key} ":" gap {self._rules.value(others)} {self._rules.tail(schema, todo)}']

    # ------------------------------------------------------------ what is whole

    def _end_of(self, schema: Any, at: int) -> int | None:
        """Where the value that begins ``at`` ends, if it is whole and one of ``schema``."""
        known = self._whole.get((at, id(schema)))
        if known is not None:
            return known
        try:
            end = _scan(self.text, at)[1]
            if self.text[end : end + 1] in _IN_NUMBER and self.text[end - 1] in "0123456789":
                return None
            # The stricter reader has the last word: it takes no half of a surrogate pair, for one.
            value = msgspec.json.decode(self.text[at:end].encode())
        except ValueError:
            return None
        if not is_valid(value, schema):
            return None
        if end < len(self.text):
            self._whole[at, id(schema)] = end
        return end

    def _schema_of(self, schema: dict[str, Any], name: str) -> Any:
        properties = schema.get("properties", {})
        return properties[name] if name in properties else schema.get("additionalProperties", True)

    def _skip(self, at: int) -> int:
        while at < len(self.text) and self.text[at] in _SPACE:
            at += 1
        return at

    def _lead(self, space: str = "brk") -> str:
        """The white space that may come next, where some may be there already."""
        if self.text[-1] not in _SPACE:
            return space
        return r"[ \t]{0,20}" if self._rules.lines else ""


def _letters_from(text: str, at: int) -> tuple[str, list[str]]:
    """What an open string says whose characters begin ``at``, and the ways in which the last one, if cut, may end."""
    found = _LETTERS.match(text, at)
    assert found is not None  # of no characters at least
    cut = text[found.end() :]
    return json.loads(f'"{found.group()}"'), [printed(flat) for flat in advance(_ESCAPES, cut)] if cut else [""]


def _unlike(names: tuple[str, ...]) -> str:
    """The rest of a string that is none of ``names``, with its closing quote, in GBNF."""
    if not names:
        return 'char* "\\""'
    # What JSON escapes can stand here only as an escape, and those are left out.
    heads = sorted({name[0] for name in names if name and name[0] not in '"\\' and name[0] >= " "})
    ways = [] if "" in names else ['"\\""']
    ways += [f"{quoted(head)} {_unlike(tuple(name[1:] for name in names if name[:1] == head))}" for head in heads]
    shut = "".join(f"\\x{ord(head):02X}" if head in "[]^-" else head for head in heads)
    ways.append(rf'[^{shut}"\\\x00-\x1F] char* "\""')
    return either(ways)


def text_for(schema: dict[str, Any] | None) -> JsonText | None:
    """A text to be followed, or ``None`` where its schema is none that can be."""
    if schema is not None and (_deeper_than([schema], _MOST_LEVELS) or not followable(schema)):
        return None
    return JsonText(schema)


def _deeper_than(level: list[Any], levels: int) -> bool:
    """Level by level: a client's schema may be deeper than Python's stack."""
    for _ in range(levels):
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return False
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    return True
