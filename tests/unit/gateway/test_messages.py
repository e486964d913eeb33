"""The Anthropic shape: what the engine sees of a body, what the client sees of an answer, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codriver.core.errors import EngineDied
from codriver.core.messages import ImagePart, PromptTokenDetails, TextPart, Usage

from .serving import HELLO, Scripted, chunk, get, running
from .shaped import CALLS, Json, call, delta, events, said

PATH = "/v1/messages"
ASK: Json = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


async def heard(body: Json) -> Any:
    """The request that an engine gets for ``body``."""
    engine = Scripted(*HELLO)
    reply = await said(engine, PATH, ASK | body)
    assert reply.status == 200, reply.body
    return engine.requests[0]


async def test_the_plain_members() -> None:
    request = await heard(
        {"system": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}], "stop_sequences": ["x"]}
        | {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"}}
        | {"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}
    )
    assert [(m.role, m.content) for m in request.messages] == [("system", "A\nB"), ("user", "hi")]
    assert (request.max_tokens, request.temperature, request.top_p, request.stop) == (9, 0.5, 0.9, ["x"])
    body = json.loads(request.raw)
    assert body["top_k"] == 4
    assert not {"metadata", "context_management", "thinking"} & set(body)
    assert "codriver" not in body


async def test_a_conversation_with_tools_and_images() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Look", "cache_control": {"type": "ephemeral"}}, PNG]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I will."},
                {"type": "tool_use", "id": "t1", "name": "heat", "input": {"celsius": 21}},
                {"type": "tool_use", "id": "t2", "name": "horn", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "warm"}, PNG]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "broken", "is_error": True},
                {"type": "text", "text": "Go on"},
            ],
        },
    ]
    _, looked, called, warm, broken, more = (await heard({"system": "S", "messages": turns})).messages
    assert looked.content[0] == TextPart(text="Look")
    assert looked.content[1].image_url.url == "data:image/png;base64,AAAA"
    assert called.content == "I will."
    assert [(c.id, c.function.name, json.loads(c.function.arguments)) for c in called.tool_calls] == [
        ("t1", "heat", {"celsius": 21}),
        ("t2", "horn", {}),
    ]
    assert (warm.role, warm.tool_call_id, warm.content) == ("tool", "t1", "warm")
    assert (broken.tool_call_id, broken.content) == ("t2", "Error: broken")
    assert isinstance(more.content[0], ImagePart)
    assert more.content[1] == TextPart(text="Go on")


async def test_a_begun_answer_is_gone_on_with() -> None:
    turns = [*ASK["messages"], {"role": "assistant", "content": "It is"}]
    request = await heard({"messages": turns})
    assert request.continue_from == "It is"
    assert [message.role for message in request.messages] == ["user"]


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "heat"}, {"type": "function", "function": {"name": "heat"}}),
    ],
)
async def test_tools_and_their_choice(given: Json, choice: Any) -> None:
    tools = [{"name": "heat", "description": "d", "input_schema": {"type": "object"}}]
    request = await heard({"tools": tools, "tool_choice": given | {"disable_parallel_tool_use": True}})
    assert request.tool_choice == choice
    assert request.parallel_tool_calls is False
    assert (request.tools[0].function.name, request.tools[0].function.parameters) == ("heat", {"type": "object"})


async def test_a_format_is_a_schema() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    request = await heard({"output_config": {"format": form, "effort": "low"}})
    assert request.response_format.json_schema.schema == {"type": "object"}


async def test_control_by_body_and_by_header() -> None:
    engine = Scripted(*HELLO)
    await said(engine, PATH, ASK | {"codriver": {"policy": "auto"}}, "x-codriver-privacy: local_only")
    assert (engine.requests[0].codriver.policy, engine.requests[0].codriver.privacy) == ("auto", "local_only")


# ---------------------------------------------------------------- answers


async def test_whole_with_calls_and_cached_tokens() -> None:
    usage = Usage(9, 4, 13, PromptTokenDetails(cached_tokens=6))
    last = chunk(usage=usage, codriver={"engine": "cloud"})
    message = json.loads((await said(Scripted(delta(content="Yes."), *CALLS, last), PATH, ASK)).body)
    text, heat, horn = message["content"]
    assert text == {"type": "text", "text": "Yes."}
    assert heat == {"type": "tool_use", "id": "call_a", "name": "heat", "input": {"celsius": 21}}
    assert (horn["name"], horn["input"]) == ("horn", {})
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["input_tokens"] == 3
    assert message["usage"]["cache_read_input_tokens"] == 6
    assert message["codriver"] == {"engine": "cloud"}


async def test_stream_with_calls() -> None:
    reply = await said(Scripted(delta(content="Yes."), *CALLS), PATH, ASK | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = events(reply)
    assert [event["type"] for event in found] == [
        "message_start",
        "ping",
        *["content_block_start", "content_block_delta", "content_block_stop"],
        *["content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"],
        *["content_block_start", "content_block_delta", "content_block_stop"],
        "message_delta",
        "message_stop",
    ]
    assert [e["index"] for e in found if e["type"] == "content_block_start"] == [0, 1, 2]
    pieces = [e["delta"]["partial_json"] for e in found if e.get("index") == 1 and "delta" in e]
    assert json.loads("".join(pieces)) == {"celsius": 21}
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal")]
)
async def test_reasons(finish: str, reason: str) -> None:
    message = json.loads((await said(Scripted(chunk("x", finish)), PATH, ASK)).body)
    assert message["stop_reason"] == reason


@pytest.mark.parametrize(("thinking", "kinds"), [(None, ["text"]), ({"type": "adaptive"}, ["thinking", "text"])])
async def test_thoughts_are_shown_to_whom_they_may(thinking: Json | None, kinds: list[str]) -> None:
    engine = Scripted(delta(reasoning_content="hm"), delta("stop", content="x"))
    message = json.loads((await said(engine, PATH, ASK | {"thinking": thinking})).body)
    assert [block["type"] for block in message["content"]] == kinds


async def test_a_call_that_the_token_limit_cut_is_no_call() -> None:
    engine = Scripted(delta(content="Yes."), call(0, '{"cel', "call_a", "heat"), delta("length"))
    message = json.loads((await said(engine, PATH, ASK)).body)
    assert [block["type"] for block in message["content"]] == ["text"]
    assert message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("stream", [False, True])
async def test_arguments_that_are_no_object_are_an_error(stream: bool) -> None:
    engine = Scripted(call(0, "[1]", "call_a", "heat"), delta("tool_calls"))
    reply = await said(engine, PATH, ASK | {"stream": stream})
    error = events(reply)[-1] if stream else json.loads(reply.body)
    assert error["error"]["message"] == "The engine called a tool with arguments that are no JSON object."
    assert b"message_stop" not in reply.body


async def test_a_cut_stream_ends_with_an_error_event() -> None:
    reply = await said(Scripted(chunk("Hel"), EngineDied("The engine died.")), PATH, ASK | {"stream": True})
    *_, last = events(reply)
    assert last["type"] == "error"
    assert last["error"] == {
        "type": "api_error",
        "message": "The engine died.",
        "code": "engine_died",
        "param": None,
    }
    assert b"message_stop" not in reply.body
    assert b"message_delta" not in reply.body


async def test_an_answer_without_an_end_is_cut() -> None:
    reply = await said(Scripted(chunk("Hel")), PATH, ASK | {"stream": True})
    assert events(reply)[-1]["error"]["code"] == "engine_died"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"max_tokens": 0}, "'max_tokens' is 0"),
        ({"messages": []}, "at least one message"),
        ({"stop_sequences": [""]}, "'stop_sequences' must be text"),
        ({"temperature": "hot"}, "'temperature'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "'thinking' cannot be 'enabled'"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "'web_search_20250305' runs on Anthropic's",
        ),
        ({"tools": [{"name": "heat"}]}, "'heat' has no 'input_schema'"),
        ({"tools": [{"name": "a", "input_schema": {}}], "tool_choice": {"type": "tool"}}, "needs a 'name'"),
        ({"mcp_servers": [{"url": "x"}]}, "'mcp_servers' is not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "The type 'document' in 'messages[0].content[0].type' is not supported. Supported: text, image",
        ),
        ({"messages": [{"role": "assistant", "content": [PNG]}]}, "no images"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "a", "input": {}}]}]},
            "belongs into an assistant's message",
        ),
        ({"codriver": {"nope": 1}}, "nope"),
        ({"codriver": {"failover": "restart"}, "stream": True}, "'codriver.failover' cannot be 'restart'"),
    ],
)
async def test_refused_by_name(body: Json, sentence: str) -> None:
    reply = await said(Scripted(*HELLO), PATH, ASK | body)
    found = json.loads(reply.body)
    assert reply.status == 400
    assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
    assert sentence in found["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status", "kind"), [(PATH, 405, "invalid_request_error"), (PATH + "/count_tokens", 404, "not_found_error")]
)
async def test_other_failures_have_the_shape_too(path: str, status: int, kind: str) -> None:
    async with running(Scripted(*HELLO)) as server:
        reply = await get(server.port, path)
    assert (reply.status, json.loads(reply.body)["error"]["type"]) == (status, kind)


@pytest.mark.parametrize(("header", "status"), [("x-api-key: k", 200), ("x-api-key: no", 401), ("x-other: k", 401)])
async def test_the_key_may_come_as_anthropic_sends_it(header: str, status: int) -> None:
    reply = await said(Scripted(*HELLO), PATH, ASK, header, api_keys=("k",))
    assert reply.status == status
    if status == 401:
        assert json.loads(reply.body)["error"]["type"] == "authentication_error"


async def test_what_is_nested_too_deeply_is_refused() -> None:
    deep = b'{"max_tokens":1,"messages":[{"role":"user","content":"a"}],"tools":[{"name":"a","input_schema":{"a":'
    statuses = [
        (await said(Scripted(*HELLO), PATH, deep + b"[" * depth + b"]" * depth + b"}}]}")).status
        for depth in (200, *range(880, 1000, 5), 5000)
    ]
    assert (statuses[0], statuses[-1]) == (200, 400)
    assert set(statuses) == {200, 400}
