"""Judging a draft while it is being written, and once more when it is finished."""

from __future__ import annotations

from typing import Literal

import jsonschema_rs
import msgspec

from codriver.core.messages import ChatChunk, ChatRequest
from codriver.core.plan import Gate

from .quality import Draft, Features, Quality
from .tangle import is_tangled

Verdict = Literal["wait", "accept", "reject"]
# A client's pattern is matched in linear time, or, where it looks around or back, with so many steps back.
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000)


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
    if is_tangled(wants.json_schema.schema, value):
        return True
    try:
        schema = jsonschema_rs.validator_for(wants.json_schema.schema, pattern_options=_PATTERNS, offline=True)
        return schema.is_valid(value)
    except ValueError:
        # The schema itself is broken: as with a tangled one, the engine that took it decides, not the draft's judge.
        return True
