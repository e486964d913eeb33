"""Tool calls for models whose chat template knows nothing of tools (SmolLM2's, for one), and calls that must be made.

llama.cpp would render such a request without its tools and answer in prose; and a call that ``tool_choice`` demands it
leaves to the model even where the template knows tools (Qwen2.5-Coder wrote prose). Here the tools are described in the
system message, a grammar (llguidance's Lark) lets the model write either prose or one well-formed call, and the call
comes out as ``tool_calls``. Limits: one call per answer; a call reaches the client whole, not argument by argument;
where a call is possible, prose holds no ``<``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from codriver.core.errors import UnsupportedParameter
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionDelta,
    Logprobs,
    Message,
    TokenLogprob,
    Tool,
    ToolCallDelta,
)

from .json_subset import WORDS, closed, fits

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# One space after a colon or comma and no line breaks: what json.dumps writes, far fewer tokens than free white space.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_grammar(schema: dict[str, Any]) -> str:
    """A grammar for exactly one compact JSON value of ``schema``."""
    return f"%llguidance {{}}\nstart: %json {_json({**closed(schema), 'x-guidance': _COMPACT})}"


def describe(messages: list[Message], tools: list[Tool]) -> list[Message]:
    """The conversation with its tools in the system message, and earlier calls and their results as text."""
    listed = "\n".join(_json(msgspec.to_builtins(tool)) for tool in tools)
    text = (
        f"You can call these functions:\n<tools>\n{listed}\n</tools>\nTo call one, answer only with:\n"
        f'{OPEN}\n{{"name": <name>, "arguments": <object>}}\n{CLOSE}'
    )
    first, rest = (messages[0], messages[1:]) if messages and messages[0].role == "system" else (None, messages)
    system = f"{first.text()}\n\n{text}" if first else text
    return [Message(role="system", content=system), *(_plain(message) for message in rest)]


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message(role="user", content=f"<tool_response>\n{message.text()}\n</tool_response>")
    if message.tool_calls:
        calls = [
            f'{OPEN}\n{{"name": {_json(call.function.name)}, "arguments": {call.function.arguments or "{}"}}}\n{CLOSE}'
            for call in message.tool_calls
        ]
        return Message(role="assistant", content="\n".join([*([message.text()] if message.text() else []), *calls]))
    return message


def must_call(request: ChatRequest) -> bool:
    """True where ``tool_choice`` allows no answer but a call."""
    return request.tool_choice not in (None, "auto", "none")


def chosen_tools(request: ChatRequest) -> list[Tool]:
    """The tools that the answer may call. Errors: :class:`UnsupportedParameter` for a choice that cannot be met."""
    choice, tools = request.tool_choice, list(request.tools or [])
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        tools = [tool for tool in tools if tool.function.name == name]
        if not tools:
            known = ", ".join(tool.function.name for tool in request.tools or []) or "none"
            raise UnsupportedParameter(
                f"'tool_choice' names '{name}', which 'tools' does not have. It has: {known}.", param="tool_choice"
            )
        return tools
    if choice not in (None, "auto", "none", "required"):
        raise UnsupportedParameter(
            "'tool_choice' is 'auto', 'none', 'required' or {\"type\": \"function\", \"function\": {\"name\": …}}.",
            param="tool_choice",
        )
    if choice == "required" and not tools:
        raise UnsupportedParameter("'tool_choice' is 'required', and 'tools' offers none.", param="tool_choice")
    return [] if choice == "none" else tools


def call_grammar(request: ChatRequest) -> str | None:
    """The grammar for ``tool_choice``; ``None`` where the answer is free (``none``, or no tools).

    Errors: :class:`UnsupportedParameter` for a tool choice that names no tool, or parameters this cannot enforce.
    """
    choice = request.tool_choice
    tools = chosen_tools(request)
    if not tools:
        return None
    call = f"call: %json {_json({'anyOf': [_call_schema(tool) for tool in tools], 'x-guidance': _COMPACT})}"
    start = f'"{OPEN}\\n" call "\\n{CLOSE}"'
    if choice in (None, "auto"):
        return f"%llguidance {{}}\nstart: TEXT | TEXT? {start}\nTEXT: /[^<]+/\n{call}"
    return f"%llguidance {{}}\nstart: {start}\n{call}"


def _call_schema(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters or {"type": "object", "properties": {}}
    if not fits(parameters):
        raise UnsupportedParameter(
            f"The parameters of the tool '{tool.function.name}' use JSON Schema keywords that this model's engine "
            f"cannot enforce; it knows: {', '.join(sorted(WORDS))}.",
            param="tools",
        )
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": closed(parameters)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class CallReader:
    """Turns the marked call in a stream of chunks into ``tool_calls``; prose passes through as it is.

    The grammar keeps ``<`` out of prose, so the first one begins the call.
    """

    def __init__(self) -> None:
        self._text = ""
        self._held: list[ChatChunk] = []

    def feed(self, chunk: ChatChunk) -> Iterator[ChatChunk]:
        text = chunk.text()
        if not chunk.choices or not (self._held or "<" in text):
            yield chunk
            return
        prose, mark, rest = ("", "", text) if self._held else text.partition("<")
        self._text += mark + rest
        self._held.append(chunk)
        if prose:
            yield wire_free(chunk, Delta(content=prose), None)
        if chunk.finish_reason:
            yield from self._call(chunk)

    def _call(self, last: ChatChunk) -> Iterator[ChatChunk]:
        body = self._text.strip().removeprefix(OPEN).removesuffix(CLOSE)
        try:
            found = json.loads(body)
        except ValueError:
            # Cut by the token limit inside the call: half a call must not look like one.
            yield wire_free(last, Delta(), last.finish_reason)
            return
        yield from call_chunks(last, self._held, found["name"], found["arguments"])


def call_chunks(last: ChatChunk, held: list[ChatChunk], name: str, arguments: Any) -> Iterator[ChatChunk]:
    """The end of an answer as one call. ``held``: the chunks it was read from, whose log-probabilities it keeps."""
    call = ToolCallDelta(
        index=0,
        id=f"call_{last.id.rsplit('-', 1)[-1][:24]}",
        type="function",
        function=FunctionDelta(name=name, arguments=_json(arguments)),
    )
    chunk = wire_free(last, Delta(tool_calls=[call]), None)
    chunk.choices[0].logprobs = _logprobs(held)
    yield chunk
    yield wire_free(last, Delta(), "tool_calls")


def _logprobs(held: list[ChatChunk]) -> Logprobs | None:
    tokens: list[TokenLogprob] = []
    for chunk in held:
        if chunk.choices[0].logprobs:
            tokens.extend(chunk.choices[0].logprobs.content or [])
    return Logprobs(content=tokens) if tokens else None


def wire_free(chunk: ChatChunk, delta: Delta, finish: str | None) -> ChatChunk:
    """A new chunk of the same answer, without bytes of its own."""
    choice = ChunkChoice(delta=delta, finish_reason=finish)
    return ChatChunk(id=chunk.id, created=chunk.created, model=chunk.model, choices=[choice])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


__all__ = [
    "CLOSE",
    "OPEN",
    "CallReader",
    "call_chunks",
    "call_grammar",
    "chosen_tools",
    "describe",
    "json_grammar",
    "must_call",
    "wire_free",
]
