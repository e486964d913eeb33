"""The part of JSON Schema that every grammar engine here is sure to enforce.

llguidance (llama.cpp) drops a schema it cannot read without a word; xgrammar (OpenVINO) fails in the middle of a step
and takes every other answer with it. So a schema is looked at first, by this one rule.
"""

from __future__ import annotations

from typing import Any

WORDS = {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf"),
    *("title", "description", "default", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
}
_TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}


def fits(schema: Any) -> bool:
    """True when ``schema`` holds only what is in :data:`WORDS`, well formed."""
    if isinstance(schema, bool):
        return True
    if not isinstance(schema, dict) or not set(schema) <= WORDS:
        return False
    kind = schema.get("type")
    if kind is not None and not (isinstance(kind, str) and kind in _TYPES):
        return False
    if not all(isinstance(schema.get(word, []), list) for word in ("enum", "required", "anyOf")):
        return False
    properties = schema.get("properties", {})
    below = [*schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]
    below.extend([schema["additionalProperties"]] if "additionalProperties" in schema else [])
    return isinstance(properties, dict) and all(fits(part) for part in [*properties.values(), *below])


def closed(schema: Any) -> Any:
    """The schema with objects that list their properties closed to others, as llama.cpp's own grammars have it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(part) if key in ("items", "anyOf") else part for key, part in schema.items()}
    if "properties" in schema:
        found["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        found.setdefault("additionalProperties", False)
    return found
