"""The right answers of the fault catalogue, and how a healthy server says them: numbered words, a tool call, JSON.

Every engine of the catalogue has the same answer, so that a verdict is a comparison. A healthy engine that is given
the start of an answer as the last message goes on from there and repeats nothing. Chunks carry what a hosted API's
carry: one id and date, and a random ``obfuscation`` member each, so that two chunks are never alike by chance.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

Asks = Literal["text", "tools", "json"]
WORDS = 24
TEXT = " ".join(f"w{number}" for number in range(1, WORDS + 1))
TOOL = "set_temperature"
ARGUMENTS = '{"zone": "driver", "degrees": 21, "why": "' + " ".join(f"r{number}" for number in range(1, 9)) + '"}'
JSON = '{"words": [' + ", ".join(f'"w{number}"' for number in range(1, 13)) + "]}"
CREATED = 1_750_000_000
_PIECE = re.compile(r"\S+\s*|\s+")
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Set the temperature of a zone.",
            "parameters": {
                "type": "object",
                "properties": {
                    "zone": {"type": "string"},
                    "degrees": {"type": "number"},
                    "why": {"type": "string"},
                },
                "required": ["zone", "degrees", "why"],
            },
        },
    }
]
_SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "words",
        "schema": {
            "type": "object",
            "properties": {"words": {"type": "array", "items": {"type": "string"}, "minItems": 12}},
            "required": ["words"],
        },
    },
}


def request_body(model: str, asks: Asks, streamed: bool, prompt: str = "Count with numbered words.") -> bytes:
    """What the client sends. A stream asks for usage, as most clients that count costs do."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 64,
        "temperature": 0,
    }
    if streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if asks == "tools":
        body["tools"] = _TOOLS
    elif asks == "json":
        body["response_format"] = _SCHEMA
    return msgspec.json.encode(body)


def expected(asks: Asks) -> str:
    """The right answer: the text, or the tool call's arguments."""
    return {"text": TEXT, "tools": ARGUMENTS, "json": JSON}[asks]


@dataclass(frozen=True)
class RightAnswer:
    """What a healthy server says to one request body. ``created`` may be made absurd."""

    model: str
    asks: Asks
    rest: str
    usage_asked: bool
    created: int = CREATED

    @classmethod
    def to(cls, body: dict[str, Any]) -> RightAnswer:
        asks: Asks = "tools" if body.get("tools") else "json" if body.get("response_format") else "text"
        whole, said = expected(asks), _already_said(body)
        rest = whole[len(said) :] if whole.startswith(said) else whole
        usage_asked = bool((body.get("stream_options") or {}).get("include_usage"))
        return cls(str(body.get("model", "")), asks, rest, usage_asked)

    @property
    def pieces(self) -> list[str]:
        return _PIECE.findall(self.rest)

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.asks == "tools" else "stop"

    def events(self) -> list[bytes]:
        """The payloads of a stream: the role, the pieces, the finish reason, and usage where it was asked for."""
        said = [self.chunk({"role": "assistant", "content": None if self.asks == "tools" else ""})]
        for index, piece in enumerate(self.pieces):
            said.append(self.chunk(self._delta(piece, first=index == 0)))
        said.append(self.chunk({}, self.finish_reason))
        if self.usage_asked:
            said.append(self._encode({"choices": [], "usage": self.usage()}))
        return said

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return self._encode({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def whole(self, text: str | None = None, finish_reason: str | None = "") -> dict[str, Any]:
        """A body that is not streamed; ``text`` instead of the right one, ``finish_reason`` None for none at all."""
        said = self.rest if text is None else text
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if self.asks == "tools":
            call = {"id": "call_1", "type": "function", "function": {"name": TOOL, "arguments": said}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice: dict[str, Any] = {"index": 0, "message": message}
        if finish_reason is not None:
            choice["finish_reason"] = finish_reason or self.finish_reason
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        count = len(self.pieces)
        return {"prompt_tokens": 12, "completion_tokens": count, "total_tokens": 12 + count}

    def _delta(self, piece: str, first: bool) -> dict[str, Any]:
        if self.asks != "tools":
            return {"content": piece}
        call: dict[str, Any] = {"index": 0, "function": {"arguments": piece}}
        if first:
            call |= {"id": "call_1", "type": "function"}
            call["function"]["name"] = TOOL
        return {"tool_calls": [call]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-fault", "object": kind, "created": self.created, "model": self.model}

    def _encode(self, members: dict[str, Any]) -> bytes:
        head = self._head("chat.completion.chunk")
        return msgspec.json.encode({**head, **members, "obfuscation": secrets.token_hex(4)})


def _already_said(body: dict[str, Any]) -> str:
    """The start of the answer that the request hands over, where its last message is the assistant's."""
    messages = body.get("messages") or [{}]
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return ""
    content = last.get("content")
    return content if isinstance(content, str) else ""
