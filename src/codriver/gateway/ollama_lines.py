"""An answer in Ollama's shape: one JSON body, or a line of JSON for each part.

https://github.com/ollama/ollama/blob/main/docs/api.md. Rules: ``"done": true`` follows a finish reason and nothing
else; a tool call is shown whole, because its arguments are an object there. Durations are measured here: reading
the prompt is all the time up to the first token. An answer that came in one piece does not tell the two apart.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import CodriverError, UpstreamMalformed
from codriver.core.messages import ChatChunk, ChatCompletion, ToolCall
from codriver.core.wire import encode

from .exchange import Headers
from .refusals import OLLAMA

Member = Literal["message", "response"]

_HEADERS: Headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]


class LineWriter:
    """``member`` is where a route has the text. ``start`` comes before anything else."""

    headers: Headers = _HEADERS

    def __init__(self, member: Member, model: str, thinks: bool) -> None:
        self._member, self._model, self._thinks = member, model, thinks
        self._clock: Clock = SYSTEM_CLOCK
        self._arrived_s = 0.0
        self._first_s: float | None = None
        self._pieces = 0

    def start(self, arrived_s: float, clock: Clock) -> None:
        self._arrived_s, self._clock = arrived_s, clock

    def hear(self, chunk: ChatChunk) -> None:
        for choice in chunk.choices[:1]:
            delta = choice.delta
            if delta.content or delta.refusal or delta.reasoning_content or delta.tool_calls:
                self._pieces += 1
                if self._first_s is None:
                    self._first_s = self._clock.monotonic_s()

    def take(self, chunk: ChatChunk) -> bytes:
        lines = b""
        for choice in chunk.choices[:1]:
            delta = choice.delta
            thought = (delta.reasoning_content or "") if self._thinks else ""
            text = (delta.content or "") + (delta.refusal or "")
            if text or thought:
                line = self._line(chunk.model, text, thought)
                if choice.logprobs is not None and choice.logprobs.content:
                    line["logprobs"] = msgspec.to_builtins(choice.logprobs.content)
                lines += encode({**line, "done": False}) + b"\n"
        return lines

    def end(self, answer: ChatCompletion) -> bytes:
        calls = _calls(answer)
        called = b""
        if calls:
            line = self._line(answer.model, "")
            line["message"]["tool_calls"] = calls
            called = encode({**line, "done": False}) + b"\n"
        return called + encode({**self._line(answer.model, ""), **self._ended(answer)}) + b"\n"

    def body(self, answer: ChatCompletion) -> bytes:
        choice = answer.choices[0]
        said = choice.message
        thought = (said.reasoning_content or "") if self._thinks else ""
        line = self._line(answer.model, (said.content or "") + (said.refusal or ""), thought)
        calls = _calls(answer)
        if calls:
            line["message"]["tool_calls"] = calls
        if choice.logprobs is not None and choice.logprobs.content:
            line["logprobs"] = msgspec.to_builtins(choice.logprobs.content)
        return encode({**line, **self._ended(answer)})

    def loaded(self) -> bytes:
        """What a request without a prompt is told."""
        return encode({**self._line("", ""), "done": True, "done_reason": "load"})

    def last_event(self, error: CodriverError) -> bytes:
        return OLLAMA.last_event(error)

    def _line(self, model: str, text: str, thought: str = "") -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._model or model, "created_at": utc(self._clock.wall_s())}
        thinking = {"thinking": thought} if thought else {}
        if self._member == "message":
            line["message"] = {"role": "assistant", "content": text, **thinking}
        else:
            line |= {"response": text, **thinking}
        return line

    def _ended(self, answer: ChatCompletion) -> dict[str, Any]:
        end_s = self._clock.monotonic_s()
        finish = answer.choices[0].finish_reason
        ended: dict[str, Any] = {
            "done": True,
            "done_reason": "stop" if finish == "tool_calls" else finish,
            "total_duration": _ns(end_s - self._arrived_s),
            "load_duration": 0,
        }
        if self._first_s is not None and self._pieces > 1:
            ended["prompt_eval_duration"] = _ns(self._first_s - self._arrived_s)
            ended["eval_duration"] = _ns(end_s - self._first_s)
        if answer.usage:
            ended["prompt_eval_count"] = answer.usage.prompt_tokens
            ended["eval_count"] = answer.usage.completion_tokens
        if answer.codriver:
            ended["codriver"] = answer.codriver
        return ended


def utc(wall_s: float) -> str:
    """A time as Ollama writes it."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat().replace("+00:00", "Z")


def _calls(answer: ChatCompletion) -> list[dict[str, Any]]:
    choice = answer.choices[0]
    found = []
    for call in choice.message.tool_calls or ():
        try:
            found.append({"id": call.id, "function": {"name": call.function.name, "arguments": _arguments(call)}})
        except msgspec.DecodeError as error:
            if choice.finish_reason == "length":
                break  # a call that the token limit cut is no call
            raise UpstreamMalformed("The engine called a tool with arguments that are no JSON object.") from error
    return found


def _arguments(call: ToolCall) -> dict[str, Any]:
    return msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
