"""Tool calls that a model writes bare, without the marks of its template.

Qwen2.5-Coder's template knows tools, and asked by it the model answers with ``{"name": …, "arguments": …}`` or the same
in a code fence, which llama.cpp passes on as prose. Here an answer that is nothing but one such call, of a function
that the request offers, becomes a ``tool_calls`` answer. Only an answer that still may become one is held back: prose
and other JSON flow as they come. Limits: one call; what the arguments hold is the model's word, as in any free answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from codriver.core.messages import ChatChunk

from .llama_cpp_tools import call_chunks

# The second brace is a slip of that template, which shows its example with doubled braces.
_HEAD = re.compile(r'\s*(?:```(?:json)?\s*)?(?P<call>\{\{?\s*"name"\s*:\s*"(?P<name>[^"]*)")')
_TAIL = re.compile(r"[\s}`]*")
_BEGINNINGS = tuple(fence + brace + '"name":"' for fence in ("", "```", "```json") for brace in ("{", "{{"))


class BareCallReader:
    """Passes chunks on, and turns an answer that is one bare call of a function in ``names`` into ``tool_calls``."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._text = ""
        self._held: list[ChatChunk] = []
        self._is_open = True

    def feed(self, chunk: ChatChunk) -> Iterator[ChatChunk]:
        if not self._is_open or not chunk.choices or not (self._held or chunk.text()):
            yield chunk
            return
        self._text += chunk.text()
        self._held.append(chunk)
        choice = chunk.choices[0]
        if (choice.delta and choice.delta.tool_calls) or not self._may_be_call():
            yield from self._release()
        elif chunk.finish_reason:
            yield from self._end(chunk)

    def _may_be_call(self) -> bool:
        if head := _HEAD.match(self._text):
            return head["name"] in self._names
        begun = re.sub(r"\s", "", self._text)
        if any(known.startswith(begun) for known in _BEGINNINGS):
            return True
        return any(begun.startswith(known) and self._begins_name(begun[len(known) :]) for known in _BEGINNINGS)

    def _begins_name(self, begun: str) -> bool:
        return '"' not in begun and any(re.sub(r"\s", "", name).startswith(begun) for name in self._names)

    def _release(self) -> Iterator[ChatChunk]:
        self._is_open = False
        yield from self._held
        self._held = []

    def _end(self, last: ChatChunk) -> Iterator[ChatChunk]:
        call = self._call()
        if call is None:
            yield from self._release()
            return
        self._is_open = False
        yield from call_chunks(last, self._held, *call)

    def _call(self) -> tuple[str, dict[str, object]] | None:
        head = _HEAD.match(self._text)
        if head is None:
            return None
        body = self._text[head.start("call") :]
        body = body[1:] if body.startswith("{{") else body
        try:
            found, end = json.JSONDecoder().raw_decode(body)
        except ValueError:
            return None
        if not _TAIL.fullmatch(body, end) or set(found) != {"name", "arguments"}:
            return None
        arguments = found["arguments"]
        return (found["name"], arguments) if isinstance(arguments, dict) else None
