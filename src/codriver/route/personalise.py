"""An answer with its placeholders made the values again, while it streams.

A placeholder may be cut anywhere by the chunks: as much is held back as could still become one, never more than the
longest placeholder, and given out with the next chunk or with the finish reason. In tool-call arguments, and where JSON
was asked for, values are written as JSON escapes them. The chunks' own bytes and log probabilities do not pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from codriver.core.messages import ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta

from .vault import in_json


class Restorer:
    """One text in pieces. ``json``: the text is JSON, in which a server may also write ``<`` as an escape."""

    def __init__(self, values: Mapping[str, str], json: bool = False) -> None:
        self._values = {name: in_json(value) if json else value for name, value in values.items()}
        if json:
            self._values |= {_escaped(name): value for name, value in self._values.items()}
            self._values |= {
                _escaped(name).upper().replace("\\U", "\\u"): in_json(value) for name, value in values.items()
            }
        self._pattern = re.compile("|".join(map(re.escape, self._values))) if self._values else None
        self._longest = max(map(len, self._values), default=0)
        self._held = ""

    def take(self, text: str) -> str:
        """What may be given out now."""
        if self._pattern is None:
            return text
        text = self._pattern.sub(lambda match: self._values[match.group()], self._held + text)
        at = self._open(text)
        text, self._held = text[:at], text[at:]
        return text

    def flush(self) -> str:
        """What was held back and has become nothing."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """Where a placeholder may have begun that is not complete; the text's end where none has."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in "<\\" and any(name.startswith(text[at:]) for name in self._values):
                return at
        return len(text)


def _escaped(name: str) -> str:
    return name.replace("<", "\\u003c").replace(">", "\\u003e")


class Personaliser:
    """The chunks of one engine's answer; a text of its own for each choice's content, reasoning, refusal, tool call."""

    def __init__(self, values: Mapping[str, str], json: bool) -> None:
        self._values = values
        self._json = json
        self._names = {name.strip("<>"): value for name, value in values.items()}
        self._texts: dict[tuple[int, str, int], Restorer] = {}

    def take(self, chunk: ChatChunk) -> ChatChunk | None:
        """The chunk to give out; ``None`` where all of it is held back."""
        choices = [self._choice(choice) for choice in chunk.choices]
        if chunk.choices and not chunk.usage and not any(map(_tells, choices)):
            return None
        return msgspec.structs.replace(chunk, choices=choices, raw=msgspec.UNSET, whole=msgspec.UNSET)

    def _choice(self, choice: ChunkChoice) -> ChunkChoice:
        old = choice.delta
        delta = Delta(
            role=old.role,
            content=self._said(choice.index, "content", old.content),
            reasoning_content=self._said(choice.index, "reasoning_content", old.reasoning_content),
            refusal=self._said(choice.index, "refusal", old.refusal),
            tool_calls=[self._call(choice.index, call) for call in old.tool_calls]
            if old.tool_calls
            else old.tool_calls,
        )
        if choice.finish_reason:
            self._flush(choice.index, delta)
        return msgspec.structs.replace(choice, delta=delta, logprobs=None)

    def _said(self, index: int, member: str, text: str | None) -> str | None:
        if not text:
            return text
        return self._text(index, member, 0, json=self._json and member == "content").take(text)

    def _call(self, index: int, call: ToolCallDelta) -> ToolCallDelta:
        if not call.function:
            return call
        name, arguments = call.function.name, call.function.arguments
        if name:
            name = self._names.get(name.strip("<>"), name)
        if arguments:
            arguments = self._text(index, "arguments", call.index, json=True).take(arguments)
        return msgspec.structs.replace(call, function=FunctionDelta(name=name, arguments=arguments))

    def _text(self, index: int, member: str, call: int, json: bool) -> Restorer:
        key = (index, member, call)
        found = self._texts.get(key)
        if found is None:
            found = self._texts[key] = Restorer(self._values, json)
        return found

    def _flush(self, index: int, delta: Delta) -> None:
        """Put what is still held back for a choice into its last delta."""
        for (choice, member, call), text in self._texts.items():
            held = text.flush() if choice == index else ""
            if not held:
                continue
            if member == "arguments":
                rest = ToolCallDelta(index=call, function=FunctionDelta(arguments=held))
                delta.tool_calls = [*(delta.tool_calls or []), rest]
            else:
                setattr(delta, member, (getattr(delta, member) or "") + held)


def _tells(choice: ChunkChoice) -> bool:
    delta = choice.delta
    said = delta.content or delta.reasoning_content or delta.refusal or delta.role or choice.finish_reason
    return bool(said) or any(_call_tells(call) for call in delta.tool_calls or ())


def _call_tells(call: ToolCallDelta) -> bool:
    return bool(call.id or (call.function and (call.function.name or call.function.arguments)))
