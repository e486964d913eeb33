"""Judging a draft while it is being written, and once more when it is finished."""

from __future__ import annotations

import re
from typing import Literal

import jsonschema
import msgspec
import referencing
import referencing.exceptions

from codriver.core.messages import ChatChunk, ChatRequest
from codriver.core.plan import Gate

from .quality import Draft, Features, Quality

Verdict = Literal["wait", "accept", "reject"]
# Looking whether a schema is one takes 3 ms a kilobyte, and meanwhile everybody else waits. What the draft has to do
# with is looked at anyway.
_CHECKED_BYTES = 16 << 10
# What a client's own idea of a schema may raise: jsonschema expects one.
_BROKEN = (
    jsonschema.SchemaError,
    jsonschema.exceptions.UnknownType,
    referencing.exceptions.Unresolvable,
    re.error,
    RecursionError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


class GateKeeper:
    """One draft's judge. ``confidence`` is the probability behind the last verdict, NaN before."""

    def __init__(self, gate: Gate, quality: Quality, engine: str, features: Features, request: ChatRequest) -> None:
        self._gate = gate
        self._quality = quality
        self._engine = engine
        self._features = features
        self._request = request
        self._draft = Draft()
        self._text: list[str] = []
        self.confidence = float("nan")
        self.reason = ""

    def read(self, chunk: ChatChunk) -> Verdict:
        """The verdict after one more chunk of the draft."""
        self._text.append(chunk.text())
        for choice in chunk.choices[:1]:
            if choice.logprobs is not None and choice.logprobs.content:
                self._draft.add(choice.logprobs.content)
        if chunk.finish_reason:
            return self._final(chunk)
        if len(self._draft.logprobs) < self._gate.probe_tokens:
            return "wait"
        verdict = self._by_confidence()
        # A draft that must satisfy a schema can be given up early, but accepted only when it is whole.
        return "wait" if verdict == "accept" and self._gate.schema else verdict

    def _final(self, chunk: ChatChunk) -> Verdict:
        if self._gate.schema and not satisfies("".join(self._text), self._request):
            self.reason = "schema"
            self.confidence = 0.0
            return "reject"
        if chunk.finish_reason == "tool_calls":
            return "accept"
        return self._by_confidence()

    def _by_confidence(self) -> Verdict:
        self.confidence = self._quality.confidence(self._engine, self._features, self._draft)
        if self.confidence >= self._gate.min_confidence:
            return "accept"
        self.reason = "low_confidence"
        return "reject"


def satisfies(text: str, request: ChatRequest) -> bool:
    """True when ``text`` is JSON and meets the schema that ``request`` asks for, if any. References in the schema are
    followed within it only: nothing is fetched.
    """
    wants = request.response_format
    if wants is None or wants.type == "text":
        return True
    try:
        value = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    if wants.type == "json_object" or wants.json_schema is None:
        return isinstance(value, dict)
    schema = wants.json_schema.schema
    try:
        kind = jsonschema.validators.validator_for(schema)
        if len(msgspec.json.encode(schema)) <= _CHECKED_BYTES:
            kind.check_schema(schema)
        return bool(kind(schema, registry=referencing.Registry()).is_valid(value))
    except _BROKEN:
        # The schema itself is broken: the engine that took it decides, not the draft's judge.
        return True
