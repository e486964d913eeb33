"""The Responses shape: what the engine sees of a body, what the client sees of an answer, what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from codriver.core.errors import EngineDied
from codriver.core.messages import ImagePart, Logprobs, PromptTokenDetails, TokenLogprob, TopLogprob, Usage

from .serving import HELLO, Scripted, ask, chunk, get, running
from .shaped import CALLS, Json, call, delta, events, said

PATH = "/v1/responses"
ASK: Json = {"input": "hi"}
PNG = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}


async def heard(body: Json) -> Any:
    """The request that an engine gets for ``body``."""
    engine = Scripted(*HELLO)
    reply = await said(engine, PATH, ASK | body)
    assert reply.status == 200, reply.body
    return engine.requests[0]


async def test_the_plain_members() -> None:
    request = await heard(
        {"instructions": "S", "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9, "user": "u", "store": True}
        | {"reasoning": {"effort": "low"}, "truncation": "auto", "metadata": {"a": "b"}, "service_tier": "auto"}
    )
    assert [(m.role, m.content) for m in request.messages] == [("system", "S"), ("user", "hi")]
    assert (request.max_tokens, request.temperature, request.top_p, request.user) == (9, 0.5, 0.9, "u")
    assert set(json.loads(request.raw)) == {"messages", "max_tokens", "temperature", "top_p", "user"}


async def test_items() -> None:
    items = [
        {"role": "developer", "content": "S"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look"}, PNG]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I will.", "annotations": []}],
        },
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "heat",
            "arguments": "{}",
            "id": "fc_1",
            "status": "completed",
        },
        {"type": "function_call", "call_id": "c2", "name": "horn", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "warm"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "loud"}, PNG]},
        {"type": "function_call", "call_id": "c3", "name": "horn", "arguments": "{}"},
    ]
    developer, looked, called, warm, loud, seen, again = (await heard({"input": items})).messages
    assert (developer.role, developer.content) == ("developer", "S")
    assert looked.content[1].image_url.detail == "low"
    assert called.content == "I will."
    assert [c.id for c in called.tool_calls] == ["c1", "c2"]
    assert (warm.role, warm.tool_call_id, warm.content) == ("tool", "c1", "warm")
    assert (loud.tool_call_id, loud.content) == ("c2", "loud")
    assert (seen.role, isinstance(seen.content[0], ImagePart)) == ("user", True)
    assert (again.role, again.content, [c.id for c in again.tool_calls]) == ("assistant", None, ["c3"])


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        ("required", "required"),
        ({"type": "function", "name": "heat"}, {"type": "function", "function": {"name": "heat"}}),
        (None, None),
    ],
)
async def test_tools_and_their_choice(given: Any, choice: Any) -> None:
    tool = {"type": "function", "name": "heat", "parameters": {"type": "object"}, "strict": True}
    request = await heard({"tools": [tool], "tool_choice": given, "parallel_tool_calls": False})
    assert request.tool_choice == choice
    assert request.parallel_tool_calls is False
    function = request.tools[0].function
    assert (function.name, function.parameters, function.strict) == ("heat", {"type": "object"}, True)


async def test_formats() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    wanted = (await heard({"text": {"format": schema, "verbosity": "low"}})).response_format
    assert (wanted.json_schema.name, wanted.json_schema.schema, wanted.json_schema.strict) == (
        "x",
        {"type": "object"},
        True,
    )
    assert (await heard({"text": {"format": {"type": "json_object"}}})).response_format.type == "json_object"
    assert (await heard({"text": {"format": {"type": "text"}}})).response_format is None


# ---------------------------------------------------------------- answers


async def test_whole_repeats_the_question_and_counts() -> None:
    usage = Usage(9, 4, 13, PromptTokenDetails(cached_tokens=6))
    last = chunk("", "stop", usage=usage, codriver={"engine": "cloud"})
    body = ASK | {"metadata": {"a": "b"}, "temperature": 0.5}
    found = json.loads((await said(Scripted(chunk("Hi"), last), PATH, body)).body)
    assert found["usage"]["input_tokens_details"] == {"cached_tokens": 6}
    assert (found["usage"]["input_tokens"], found["usage"]["output_tokens"]) == (9, 4)
    assert (found["metadata"], found["temperature"], found["store"]) == ({"a": "b"}, 0.5, False)
    assert (found["error"], found["incomplete_details"], found["previous_response_id"]) == (None, None, None)
    assert found["codriver"] == {"engine": "cloud"}


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_are_items(stream: bool) -> None:
    reply = await said(Scripted(delta(content="Yes."), *CALLS), PATH, ASK | {"stream": stream})
    response = events(reply)[-1]["response"] if stream else json.loads(reply.body)
    said_first, heat, horn = response["output"]
    assert said_first["content"][0]["text"] == "Yes."
    assert (heat["type"], heat["call_id"], json.loads(heat["arguments"])) == (
        "function_call",
        "call_a",
        {"celsius": 21},
    )
    assert (horn["name"], horn["status"]) == ("horn", "completed")
    assert len({item["id"] for item in response["output"]}) == 3


async def test_the_events_of_calls() -> None:
    found = events(await said(Scripted(delta(content="Yes."), *CALLS), PATH, ASK | {"stream": True}))
    assert [event["type"].removeprefix("response.") for event in found] == [
        *["created", "in_progress"],
        *["output_item.added", "content_part.added", "output_text.delta"],
        *["output_text.done", "content_part.done", "output_item.done"],
        *["output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"],
        *["function_call_arguments.done", "output_item.done"],
        *["output_item.added", "function_call_arguments.delta"],
        *["function_call_arguments.done", "output_item.done"],
        "completed",
    ]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    done = [event for event in found if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2]
    assert [event["item"] for event in done] == found[-1]["response"]["output"]


async def test_thoughts_and_refusals_are_parts_of_their_own() -> None:
    engine = Scripted(delta(reasoning_content="hm"), delta("stop", refusal="No."))
    found = events(await said(engine, PATH, ASK | {"stream": True}))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert "reasoning_text.delta" in kinds
    assert "refusal.done" in kinds
    thought, refused = found[-1]["response"]["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert refused["content"] == [{"type": "refusal", "refusal": "No."}]


async def test_logprobs_where_they_are_asked_for() -> None:
    piece = chunk("Hi", "stop")
    piece.choices[0].logprobs = Logprobs([TokenLogprob("Hi", -0.5, [72, 105], [TopLogprob("Hi", -0.5, None)])])
    engine = Scripted(piece)
    found = events(await said(engine, PATH, ASK | {"stream": True, "top_logprobs": 1}))
    assert (engine.requests[0].logprobs, engine.requests[0].top_logprobs) == (True, 1)
    told = {"token": "Hi", "bytes": [72, 105], "logprob": -0.5}
    told["top_logprobs"] = [{"token": "Hi", "bytes": [], "logprob": -0.5}]
    (grown,) = [event for event in found if event["type"] == "response.output_text.delta"]
    assert grown["logprobs"] == [told]
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == [told]


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_unfinished_response_says_why(finish: str, reason: str) -> None:
    engine = Scripted(delta(content="Yes."), call(0, '{"cel', "call_a", "heat"), delta(finish))
    found = events(await said(engine, PATH, ASK | {"stream": True}))
    assert found[-1]["type"] == "response.incomplete"
    response = found[-1]["response"]
    assert response["incomplete_details"] == {"reason": reason}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    done = [event["item"]["status"] for event in found if event["type"] == "response.output_item.done"]
    assert done == ["completed", "incomplete"]


async def test_a_cut_stream_ends_with_response_failed() -> None:
    reply = await said(Scripted(chunk("Hel"), EngineDied("The engine died.")), PATH, ASK | {"stream": True})
    last = events(reply)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "engine_died", "message": "The engine died."}
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert b"response.completed" not in reply.body


async def test_a_stream_that_is_cut_by_the_server_fails_too() -> None:
    engine = Scripted(chunk("Hel"), asyncio.Event())
    async with running(engine, request_limit_s=0.05, grace_s=0) as server:
        reply = await ask(server.port, PATH, json.dumps(ASK | {"stream": True}).encode())
    last = events(reply)[-1]
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "deadline_exceeded")


async def test_tool_calls_that_are_written_crosswise_are_an_error() -> None:
    engine = Scripted(call(0, "{", "a", "heat"), call(1, "{", "b", "horn"), call(0, "}"), delta("tool_calls"))
    last = events(await said(engine, PATH, ASK | {"stream": True}))[-1]
    assert last["type"] == "response.failed"
    assert "after it had begun another one" in last["response"]["error"]["message"]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ({"input": []}, "input", "at least one item"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "The type 'item_reference'"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", "Supported: message"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
            "'input_file'",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input",
            "Give an image by 'image_url'",
        ),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "Allowed: user, assistant"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "'codriver.session'"),
        ({"conversation": "conv_1"}, "conversation", "nothing is stored here"),
        ({"prompt": {"id": "p"}}, "prompt", "nothing is stored here"),
        ({"background": True}, "background", "'background' is not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools", "Tools of the type 'web_search' are not supported"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "name"),
        (
            {"tools": [{"type": "function", "name": "a"}], "tool_choice": {"type": "file_search"}},
            "tool_choice",
            "must be 'auto'",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "'max_output_tokens' is 0"),
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"codriver": {"failover": "restart"}, "stream": True}, "codriver.failover", "cannot be 'restart'"),
    ],
)
async def test_refused_by_name(body: Json, param: str, sentence: str) -> None:
    reply = await said(Scripted(*HELLO), PATH, ASK | body)
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert sentence in error["message"]


async def test_a_stored_response_is_not_found() -> None:
    async with running(Scripted()) as server:
        reply = await get(server.port, "/v1/responses/resp_1")
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (404, "not_found")
