"""What a semantic route changes in a request, and which of a request's text says what it is about.

Rule: what the client set stays as it is, save for privacy, which only gets stricter, and tools, which only get fewer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from msgspec.structs import replace

from codriver.core.messages import ChatRequest, Message, Privacy, RequestOptions
from codriver.core.privacy import strictest
from codriver.core.wire import request_members

from .semantic_file import Rule

# Of a longer text its beginning and its end are read: the embedder takes 256 tokens.
_WINDOW_CHARS = 400
_OPEN = ("failover", "deadline_ms", "first_token_ms", "budget_usd")


def sentences(request: ChatRequest) -> list[str]:
    """The text of every user message in its order, at least one; that of one without words, as a picture, is empty."""
    if request.prompt is not None:
        return [_window(request.prompt)]
    return [_window(message.text()) for message in request.messages if message.role == "user"] or [""]


def _window(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 2 * _WINDOW_CHARS else f"{text[:_WINDOW_CHARS]} {text[-_WINDOW_CHARS:]}"


def stricter(request: ChatRequest, privacy: Privacy) -> ChatRequest:
    """The request in the class ``privacy``, or in its own where that is stricter."""
    options = request.codriver
    if privacy == "any" or (options is not None and options.privacy == strictest(privacy, options.privacy)):
        return request
    options = options or RequestOptions()
    return replace(request, codriver=replace(options, privacy=strictest(privacy, options.privacy)))


def filled_in(request: ChatRequest, rule: Rule) -> ChatRequest:
    """The request with the route's policy where the client left it open."""
    options = request.codriver or RequestOptions()
    changes: dict[str, Any] = {}
    for name in _OPEN:
        if getattr(options, name) is None and getattr(rule, name) is not None:
            changes[name] = getattr(rule, name)
    # An engine is a narrower policy: who says one of the two has said who answers.
    if options.policy is None and options.engine is None:
        changes |= {"policy": rule.policy, "engine": rule.engine}
    if rule.privacy is not None:
        changes["privacy"] = strictest(rule.privacy, options.privacy)
    request = replace(request, codriver=replace(options, **changes))
    return request if rule.tools is None else _with_tools(request, rule.tools)


def _with_tools(request: ChatRequest, names: Collection[str]) -> ChatRequest:
    """Only the tools that are named; the struct and the bytes it arrived as lose the same ones."""
    tools = request.tools
    if not tools or all(tool.function.name in names for tool in tools):
        return request
    kept = [tool for tool in tools if tool.function.name in names]
    chosen = request.tool_choice
    if isinstance(chosen, dict):
        chosen = chosen if chosen.get("function", {}).get("name") in names else None
    lost = {} if kept else {"parallel_tool_calls": None}
    changes: dict[str, Any] = {"tools": kept or None, "tool_choice": chosen if kept else None, **lost}
    raw = request.raw
    if raw is not None:
        body = request_members(raw)
        body["tools"] = [tool for tool, parsed in zip(body["tools"], tools, strict=True) if parsed in kept]
        for name, value in changes.items():
            if value is None:
                body.pop(name, None)
        raw = msgspec.json.encode(body)
    return replace(request, raw=raw, **changes)


def last_user_text(messages: list[Message]) -> str | None:
    """The last message's text, if it is a user's and nothing but text."""
    if not messages or messages[-1].role != "user" or not isinstance(messages[-1].content, str):
        return None
    return messages[-1].content
