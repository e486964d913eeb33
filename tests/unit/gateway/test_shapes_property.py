"""Whatever a client sends to the other APIs, it is a request or it is refused with a 4xx that says why."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.core.errors import RequestError
from codriver.core.messages import ChatRequest
from codriver.gateway import messages, ollama, responses
from codriver.gateway.exchange import Exchange

from .test_messages import PNG as ANTHROPIC_PNG
from .test_ollama import PNG as OLLAMA_PNG
from .test_responses import PNG as OPENAI_PNG

FULL: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/messages": (
        messages.parse,
        {
            "model": "m",
            "max_tokens": 9,
            "system": [{"type": "text", "text": "S"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, ANTHROPIC_PNG]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "b"}]},
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "f"},
            "thinking": {"type": "adaptive"},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
            "stop_sequences": ["x"],
            "codriver": {"policy": "auto", "deadline_ms": 5},
        },
    ),
    "/v1/responses": (
        responses.parse,
        {
            "model": "m",
            "instructions": "S",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, OPENAI_PNG]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "a"}]},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
            "stream": True,
        },
    ),
    "/api/chat": (
        ollama.parse_chat,
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "a", "images": [OLLAMA_PNG]},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
                {"role": "tool", "content": "b", "tool_name": "f"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "options": {"num_predict": 9, "stop": ["x"], "top_k": 3},
            "format": {"type": "object"},
            "think": "high",
        },
    ),
    "/api/generate": (
        ollama.parse_generate,
        {"model": "m", "prompt": "a", "system": "S", "images": [OLLAMA_PNG], "options": {"seed": 1}, "format": "json"},
    ),
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every member and element of ``value``."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, inner in inside:
        found += places(inner, (*path, key))
    return found


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made: Any = copy.deepcopy(body)
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return dict(made)


@pytest.mark.parametrize("path", FULL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_member_is_anything(path: str, data: st.DataObject) -> None:
    parse, body = FULL[path]
    sent = changed(body, data.draw(st.sampled_from(places(body))), data.draw(ANYTHING))
    exchange: Any = Exchange({"method": "POST", "path": path, "headers": []}, None, None, 0.0)  # type: ignore[arg-type]
    try:
        asked, options = parse(exchange, json.dumps(sent).encode())
    except RequestError as error:
        assert error.status == 400
        assert error.message
    else:
        assert isinstance(asked.chat, ChatRequest)
        assert asked.chat.codriver is options
        assert asked.chat.raw is not None
        assert set(json.loads(asked.chat.raw)) <= {*ChatRequest.__struct_fields__, *ollama._SAMPLING}
