"""Answers of every API in the chat shape that the fault catalogue's verdict reads.

Rule: nothing is made better on the way. What an API has no event for stays away, so that a stream without its end is
one after the translation as well. A restart mark takes back what came before it, as the client that asked for it does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from .fault_answers import ARGUMENTS
from .fault_verdict import Heard, payloads
from .soak_requests import Api

_FINISHES = {"end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_calls", "max_tokens": "length"}


def as_chat(heard: Heard, api: Api) -> Heard:
    """The answer as chat; as it is where it is an error or no JSON."""
    if not 200 <= heard.status < 300:
        return heard
    if heard.content_type == "text/event-stream":
        return replace(heard, body=b"".join(b"data: " + part + b"\n\n" for part in _stream(heard.body, api)))
    try:
        body = msgspec.json.decode(heard.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return heard
    if not isinstance(body, dict):
        return heard
    whole = {"chat": _same, "completions": _text_choices, "responses": _response, "messages": _message}[api](body)
    return replace(heard, body=msgspec.json.encode(whole))


def engine_of(heard: Heard) -> str:
    """Who answered, as the answer itself says; empty where it does not."""
    name, _, rest = heard.body.rpartition(b'"codriver":')
    return "" if not name else rest.partition(b'"engine":"')[2].partition(b'"')[0].decode("ascii", "replace")


def _stream(body: bytes, api: Api) -> list[bytes]:
    parts: list[bytes] = []
    for payload in payloads(body):
        if payload.strip() == b"[DONE]":
            parts.append(payload)
            continue
        try:
            event = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            parts.append(payload)
            continue
        if not isinstance(event, dict):
            continue
        if isinstance(event.get("codriver"), dict) and event["codriver"].get("restart"):
            parts.clear()
        translate = {"chat": _same, "completions": _text_choices, "responses": _of_response, "messages": _of_message}
        parts.append(msgspec.json.encode(translate[api](event)))
    return parts


def _same(body: dict[str, Any]) -> dict[str, Any]:
    return body


def _delta(**members: Any) -> dict[str, Any]:
    finish = members.pop("finish_reason", None)
    return {"choices": [{"index": 0, "delta": members, "finish_reason": finish}]}


def _call(**function: Any) -> dict[str, Any]:
    return _delta(tool_calls=[{"index": 0, "function": function}])


# ---------------------------------------------------------------- completions


def _text_choices(body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("choices"):
        return body
    choices = [{**one, "message": {"content": one.get("text")}} for one in body["choices"]]
    return {**body, "choices": choices}


# ---------------------------------------------------------------- responses


def _of_response(event: dict[str, Any]) -> dict[str, Any]:
    kind = event.get("type", "")
    if kind == "response.output_text.delta":
        return _delta(content=event.get("delta"))
    if kind == "response.function_call_arguments.delta":
        return _call(arguments=event.get("delta"))
    if kind == "response.output_item.added" and event["item"].get("type") == "function_call":
        return _call(name=event["item"].get("name"))
    if kind in ("response.completed", "response.incomplete"):
        return _delta(finish_reason="stop" if kind == "response.completed" else "length")
    if kind in ("response.failed", "error"):
        return {"error": (event.get("response") or {}).get("error") or event.get("error") or event}
    return {}


def _response(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("error"):
        return {"error": body["error"]}
    text, calls = "", []
    for item in body.get("output") or []:
        if item.get("type") == "function_call":
            calls.append({"function": {"name": item.get("name"), "arguments": item.get("arguments")}})
        text += "".join(part.get("text") or "" for part in item.get("content") or [])
    finish = {"completed": "stop", "incomplete": "length"}.get(body.get("status", ""), "")
    return {"choices": [{"message": {"content": text, "tool_calls": calls}, "finish_reason": finish}]}


# ---------------------------------------------------------------- messages


def _of_message(event: dict[str, Any]) -> dict[str, Any]:
    kind = event.get("type")
    if kind == "content_block_start" and event["content_block"].get("type") == "tool_use":
        return _call(name=event["content_block"].get("name"))
    if kind == "content_block_delta":
        delta = event.get("delta") or {}
        if delta.get("type") == "input_json_delta":
            return _call(arguments=delta.get("partial_json"))
        return _delta(content=delta.get("text"))
    if kind == "message_delta":
        reason = (event.get("delta") or {}).get("stop_reason") or ""
        return _delta(finish_reason=_FINISHES.get(reason, reason))
    return {"error": event.get("error") or event} if kind == "error" else {}


def _message(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("type") == "error":
        return {"error": body.get("error")}
    text, calls = "", []
    for block in body.get("content") or []:
        text += block.get("text") or ""
        if block.get("type") == "tool_use":
            calls.append({"function": {"name": block.get("name"), "arguments": _arguments(block.get("input"))}})
    reason = body.get("stop_reason") or ""
    message = {"content": text, "tool_calls": calls}
    return {"choices": [{"message": message, "finish_reason": _FINISHES.get(reason, reason)}]}


def _arguments(given: Any) -> str:
    """An object as the text it was made from, where it says the same."""
    return ARGUMENTS if given == msgspec.json.decode(ARGUMENTS) else msgspec.json.encode(given).decode()
