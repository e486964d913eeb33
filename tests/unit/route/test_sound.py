"""What an answer with a finish reason must have to be whole."""

from __future__ import annotations

from typing import Any

import pytest

from codriver.core.answer import Answer
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionDelta,
    FunctionSpec,
    Message,
    ResponseFormat,
    Tool,
    ToolCallDelta,
)
from codriver.route.sound import why_unsound

TOOLS = [Tool(function=FunctionSpec(name="f"))]
JSON = ResponseFormat(type="json_object")


def end(reason: str = "stop", **delta: Any) -> list[ChatChunk]:
    return [ChatChunk(choices=[ChunkChoice(delta=Delta(**delta), finish_reason=reason)])]


def asked(**members: Any) -> ChatRequest:
    return ChatRequest(**{"messages": [Message(role="user", content="hi")], **members})


def call(arguments: str) -> list[ToolCallDelta]:
    return [ToolCallDelta(index=0, function=FunctionDelta(name="f", arguments=arguments))]


def unsound(request: ChatRequest, pending: list[ChatChunk], replaceable: bool = True) -> str | None:
    return why_unsound(request, Answer(), pending, replaceable)


@pytest.mark.parametrize(
    ("request_", "pending"),
    [
        (asked(), end(content="yes")),
        (asked(tools=TOOLS), end("tool_calls", tool_calls=call('{"a": 1}'))),
        (asked(tools=TOOLS), end("tool_calls", tool_calls=call(""))),
        (asked(tools=TOOLS), end(content="no tool is needed")),
        (asked(tools=TOOLS, response_format=JSON), end("tool_calls", tool_calls=call("{}"))),
        (asked(response_format=JSON), end(content='{"a": 1}')),
        (asked(response_format=JSON), end(refusal="no")),
        (asked(response_format=JSON), end("length", content='{"a"')),
        (asked(), end("content_filter")),
        (asked(), end(reasoning_content="hm")),
        (asked(stop="."), end()),
        (asked(continue_from="one"), end()),
        (asked(prompt="one"), end()),
        (asked(messages=[Message(role="assistant", content="one")]), end()),
    ],
)
def test_what_can_be_whole(request_: ChatRequest, pending: list[ChatChunk]) -> None:
    assert unsound(request_, pending) is None


def test_what_cannot() -> None:
    assert unsound(asked(tools=TOOLS), end("tool_calls", tool_calls=call('{"a"'))) == (
        "ended its answer in the middle of a tool call"
    )
    assert unsound(asked(response_format=JSON), end(content='{"a"')) == "ended its answer before its JSON was complete"
    assert unsound(asked(), end()) == "ended its answer before it had said anything"
    assert unsound(asked(), end(), replaceable=False) is None


def test_what_was_delivered_counts() -> None:
    delivered = Answer()
    delivered.add(ChatChunk(choices=[ChunkChoice(delta=Delta(content='{"a": '))]))
    assert why_unsound(asked(response_format=JSON), delivered, end(content="1}"), False) is None
    assert why_unsound(asked(), delivered, end(), True) is None
    assert delivered.text == '{"a": '
