"""A chat request as llama.cpp's server wants it, and its refusals as Codriver's errors.

Members that this file does not know (``top_k``, ``min_p``, …) reach llama.cpp as they came. The rule kept here: what
llama.cpp would take in silence and then ignore - an unknown adapter, tools without a template, a schema its grammar
drops - is refused by name or done another way.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from codriver.core import wire
from codriver.core.errors import (
    BadImage,
    CodriverError,
    EngineError,
    EngineUnavailable,
    PromptTooLong,
    RequestError,
    UnsupportedParameter,
)
from codriver.core.messages import ChatRequest, ImagePart, Message

from . import llama_cpp_tools as tools
from .json_subset import fits
from .json_text import text_for
from .openai_formats import CHAT_ONLY, text_changes

# Ours to set, never the client's: they choose slots and caches.
_RESERVED = ("id_slot", "n_cmpl", "n", "cache_prompt", "return_progress", "lora", "user", "response_fields")
_IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """What the loaded model and its template can do. ``adapters``: names of LoRA adapters, in llama.cpp's order."""

    engine: str
    native_tools: bool
    thinks: bool
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """``reads_calls``: the answer's tool calls are text that :class:`~.llama_cpp_tools.CallReader` takes apart.
    ``bare_calls``: functions whose calls the model may also write without any marks.
    """

    path: str
    body: bytes
    reads_calls: bool = False
    bare_calls: frozenset[str] = frozenset()

    def on_slot(self, slot: int, reuse: bool) -> bytes:
        """The body, for the slot that shall answer; ``reuse``: what that slot computed before may be built upon."""
        return wire.splice(wire.splice(self.body, "id_slot", slot), "cache_prompt", reuse)


def prepare(request: ChatRequest, dialect: Dialect) -> Prepared:
    """Errors: :class:`UnsupportedParameter`, :class:`BadImage`."""
    if (request.n or 1) > 1:
        raise UnsupportedParameter(
            f"The model '{dialect.engine}' gives one answer per request ('n': 1); send the request again for another.",
            param="n",
        )
    changes: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # a sign of life per batch: what a cancelled prompt is noticed by
        "lora": _adapters(request, dialect),
    }
    if request.prompt is not None:
        changes |= text_changes(request)
        drop = tuple(key for key in (*_RESERVED, *CHAT_ONLY) if key not in changes)
        return Prepared("/v1/completions", wire.upstream_body(request, changes, drop))
    check_images(request)
    offered = tools.chosen_tools(request)
    changes["messages"] = _messages(request, dialect)
    if request.logprobs:
        changes["top_logprobs"] = max(1, request.top_logprobs or 0)  # 0 would switch log-probabilities off
    if request.limit_tokens is not None:
        changes["max_tokens"] = request.limit_tokens
    drop = (*_RESERVED, "max_completion_tokens")
    grammar, reads_calls = _grammar(request, dialect)
    if _tells_tools(request, dialect):
        drop = (*drop, "tools", "tool_choice", "parallel_tool_calls")
    if grammar:
        changes["grammar"] = grammar
        drop = (*drop, "response_format")
        if reads_calls and dialect.thinks:
            changes["reasoning_format"] = "none"  # a call that must come leaves no room for thoughts
    drop = tuple(key for key in drop if key not in changes)
    bare = frozenset() if request.continue_from or tools.must_call(request) else {one.function.name for one in offered}
    return Prepared("/v1/chat/completions", wire.upstream_body(request, changes, drop), reads_calls, frozenset(bare))


def _tells_tools(request: ChatRequest, dialect: Dialect) -> bool:
    """True where we tell the model its tools: its template cannot, or a grammar of ours shall make it call one.

    A continued answer goes on in the form in which it began: the template's, where that knows tools.
    """
    if not request.tools:
        return False
    return not dialect.native_tools or (tools.must_call(request) and not request.continue_from)


def _begun(request: ChatRequest) -> str:
    """What the answer begins with: a trailing assistant message is taken so by llama.cpp, and more may follow it."""
    last = request.messages[-1] if request.messages else None
    begun = last.text() if last is not None and last.role == "assistant" and not last.tool_calls else ""
    return begun + (request.continue_from or "")


def _messages(request: ChatRequest, dialect: Dialect) -> list[Message]:
    messages = list(request.messages)
    if request.tools and _tells_tools(request, dialect):
        messages = tools.describe(messages, request.tools)
    if request.continue_from:
        # A trailing assistant message is taken as the beginning of the answer, and two of them are refused.
        if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
            messages.pop()
        messages.append(Message(role="assistant", content=_begun(request)))
    return messages


def _grammar(request: ChatRequest, dialect: Dialect) -> tuple[str | None, bool]:
    """A grammar of ours, and whether it writes tool calls as text.

    Compact JSON takes a third fewer tokens than llama.cpp's own free white space. JSON that has begun gets a grammar of
    its rest: one that llama.cpp is given begins at the seam. Those it makes itself it moves past what is there already,
    and it refuses a part that they do not fit, as one in another order; it is left what ours cannot do.
    """
    form = request.response_format
    if _tells_tools(request, dialect):
        if request.continue_from:
            return None, False
        grammar = tools.call_grammar(request)
        return grammar, grammar is not None
    if form is None or form.type == "text" or request.tools:
        return None, False
    if begun := _begun(request):
        text = text_for(form.json_schema.schema if form.json_schema else None)
        return (text.grammar() if text is not None and text.add(begun) else None), False
    if dialect.thinks:
        return None, False
    schema = form.json_schema.schema if form.json_schema else {"type": "object"}
    return (tools.json_grammar(schema) if schema and fits(schema) else None), False


def _adapters(request: ChatRequest, dialect: Dialect) -> list[dict[str, Any]]:
    wanted = (request.codriver.lora if request.codriver else None) or []
    found = []
    for item in wanted:
        name, scale = item.get("name", item.get("id")), item.get("scale", 1.0)
        index = dialect.adapters.index(name) if name in dialect.adapters else name
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(dialect.adapters):
            known = ", ".join(dialect.adapters) or "none"
            raise UnsupportedParameter(
                f"The model '{dialect.engine}' has no adapter '{name}'. Loaded: {known}.", param="codriver.lora"
            )
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise UnsupportedParameter(f"The scale of the adapter '{name}' must be a number.", param="codriver.lora")
        found.append({"id": index, "scale": float(scale)})
    return found


def check_images(request: ChatRequest) -> None:
    """Refuse images that are not data URLs (an engine fetches nothing) or not images. Errors: :class:`BadImage`."""
    for message in request.messages:
        if isinstance(message.content, list):
            for part in message.content:
                if isinstance(part, ImagePart):
                    _check_image(part.image_url.url)


def _check_image(url: str) -> None:
    head = _DATA_URL.match(url)
    if head is None:
        raise BadImage("Give images as data URLs: data:image/png;base64,… (PNG, JPEG, GIF or BMP).", param="messages")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise BadImage("An image's base64 data is not valid.", param="messages") from None
    if not data.startswith(_IMAGE_MAGIC):
        raise BadImage("An image's data is not a PNG, JPEG, GIF or BMP file.", param="messages")


class _Problem(msgspec.Struct):
    code: int = 500
    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _ProblemBody(msgspec.Struct):
    error: _Problem


def refusal(engine: str, body: bytes, *, has_image: bool = False) -> CodriverError:
    """llama.cpp's error object as an error of the tree."""
    try:
        problem = msgspec.json.decode(body, type=_ProblemBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = _Problem()
    said = problem.message.split("\n", 1)[0][:200].rstrip(". ")
    if problem.type == "exceed_context_size_error":
        return PromptTooLong(
            f"The prompt has {problem.n_prompt_tokens} tokens; '{engine}' has a context of {problem.n_ctx} tokens.",
            param="messages",
        )
    if has_image and re.search(r"image|bitmap|media|mtmd", problem.message, re.IGNORECASE):
        return BadImage("An image could not be decoded; send a whole PNG, JPEG, GIF or BMP file.", param="messages")
    if re.search(r"schema|grammar", problem.message, re.IGNORECASE):
        return UnsupportedParameter(f"The JSON schema cannot be enforced: {said}.", param="response_format")
    if problem.type == "unavailable_error":
        return EngineUnavailable(f"The engine '{engine}' is not ready: {said}.", engine=engine)
    if problem.code < 500:
        return RequestError(f"The engine '{engine}' refused the request: {said}.")
    return EngineError(f"The engine '{engine}' failed: {said or 'no reason given'}.", engine=engine)
