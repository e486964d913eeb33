"""Could judging a value by a client's JSON schema take for ever? Counted before the check, which nothing can stop.

A validator follows each reference each time that it meets it, so that a few hundred bytes of references in pairs ask
for 2 to the 40 steps; ``unevaluatedProperties`` in one another do the same (jsonschema-rs 0.60: 20 levels, 25 s). Here
the steps are counted with each pair of a part of the schema and a part of the value looked at once. Rule: the count is
of a validator that leaves nothing out, so it may be too high, never too low; what it cannot follow counts as endless.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

_MOST_STEPS = 200_000
_MOST_PAIRS = 50_000
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_REPEATING = ("unevaluatedProperties", "unevaluatedItems")
_REPEATED = 4  # times, at most, that a validator looks through what stands beside one of those
# Members whose schemas judge the value itself, and those whose schemas judge what is in it; some are tables of schemas.
_ITSELF = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies")
_INSIDE = (
    "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames", "items", "prefixItems",
    "additionalItems", "unevaluatedItems", "contains",
)  # fmt: skip
_TABLES = ("patternProperties", "dependentSchemas", "dependencies")


def is_tangled(schema: Any, value: Any) -> bool:
    """True when judging ``value`` by ``schema`` may take more steps than a vehicle has time for."""
    if not _has(schema, _REFERENCES + _REPEATING):
        return False  # the steps are then at most the schema's size times the value's
    try:
        return _Count(schema).steps(schema, value) > _MOST_STEPS
    except (_Endless, RecursionError):
        return True


class _Endless(Exception):
    pass


class _Count:
    """Raises :class:`_Endless` where it cannot follow the schema, or has looked at too many pairs."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps: dict[tuple[int, int], float] = {}  # NaN while a pair is being counted

    def steps(self, schema: Any, value: Any) -> float:
        if not isinstance(schema, dict):
            return 1
        pair = id(schema), id(value)
        known = self._steps.get(pair)
        if known is None and len(self._steps) < _MOST_PAIRS:
            self._steps[pair] = math.nan
        elif known is None or math.isnan(known):
            raise _Endless  # too many pairs, or references in a circle, which a validator walks in every order
        else:
            return known
        times = _REPEATED if any(member in schema for member in _REPEATING) else 1
        found = 1 + times * sum(self.steps(part, one) for part, one in self._looks(schema, value))
        self._steps[pair] = found if found <= _MOST_STEPS else math.inf
        return self._steps[pair]

    def _looks(self, schema: dict[str, Any], value: Any) -> Iterator[tuple[Any, Any]]:
        """What a validator looks at next: parts of the schema, each with the part of the value that it judges."""
        inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        for member, told in schema.items():
            if member in _REFERENCES:
                yield self._target(told), value
            elif member == "properties" and isinstance(told, dict):
                if isinstance(value, dict):
                    yield from ((part, value[name]) for name, part in told.items() if name in value)
            elif member in _ITSELF or member in _INSIDE:
                parts = told if isinstance(told, list) else told.values() if member in _TABLES else [told]
                judged = [value] if member in _ITSELF else inside
                yield from ((part, one) for part in parts for one in judged)

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise _Endless
        found = self._root
        for written in unquote(reference).split("/")[1:]:
            name = written.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (LookupError, ValueError, TypeError):
                raise _Endless from None
        return found


def _has(schema: Any, members: tuple[str, ...]) -> bool:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if any(name in part for name in members):
                return True
            waiting += part.values()
    return False
