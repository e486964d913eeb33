"""Whether an answer that says it is whole can be: what no finish reason can make up for.

A tool call whose arguments are no JSON, an asked-for JSON that is none, an answer without a word. A ``length`` or
``content_filter`` end says itself that something is missing. Limits: text has no form that could show a cut, and JSON
that its schema does not allow is held against an engine only where another could answer.
"""

from __future__ import annotations

import msgspec

from codriver.core.answer import Answer
from codriver.core.messages import AnswerMessage, ChatChunk, ChatRequest

from .gate import satisfies

_SAYS_WHOLE = ("stop", "tool_calls", "function_call")


def why_unsound(request: ChatRequest, delivered: Answer, pending: list[ChatChunk], replaceable: bool) -> str | None:
    """Why the answer made of what was delivered and what is about to be cannot be whole; ``None`` where it can.

    That it is empty, or not what its schema allows, counts only where it is ``replaceable`` by another engine's: an
    engine may have nothing to say.
    """
    wants = request.response_format
    formal = bool(request.tools) or (wants is not None and wants.type != "text")
    if not formal and (delivered.text_pieces or any(chunk.text() for chunk in pending)):
        return None
    for choice in delivered.followed_by(pending).completion().choices:
        if choice.finish_reason not in _SAYS_WHOLE:
            continue
        said = choice.message
        if any(not _is_json(call.function.arguments or "{}") for call in said.tool_calls or ()):
            return "ended its answer in the middle of a tool call"
        if said.content and not said.tool_calls and wants is not None and wants.type != "text":
            if not _is_json(said.content):
                return "ended its answer before its JSON was complete"
            if replaceable and not satisfies(said.content, request):
                return "answered with JSON that the schema does not allow"
        elif replaceable and _is_empty(said) and _must_say_something(request):
            return "ended its answer before it had said anything"
    return None


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True


def _is_empty(said: AnswerMessage) -> bool:
    reasoned = bool(said.reasoning_content)
    return not (said.content or said.tool_calls or said.refusal or reasoned)


def _must_say_something(request: ChatRequest) -> bool:
    """False where the answer may be complete already, or a stop sequence may be its first word."""
    goes_on = request.continue_from or request.prompt is not None
    return not (goes_on or request.stop or (request.messages and request.messages[-1].role == "assistant"))
