"""Ollama's shape: what the engine sees of a body, what the client sees of an answer, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codriver.core.clock import ManualClock
from codriver.core.engine import EngineCard
from codriver.core.errors import EngineDied
from codriver.core.messages import AnswerMessage, ChatCompletion, CompletionChoice, Logprobs, TokenLogprob
from codriver.gateway.ollama_lines import LineWriter

from .serving import HELLO, USAGE, Scripted, chunk, get, http, running, speak
from .shaped import CALLS, Json, call, delta, lines, said

CHAT, GENERATE = "/api/chat", "/api/generate"
ASK: Json = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
ONCE: Json = {"model": "auto", "prompt": "Once"}
PNG = "iVBORw0KGgoAAAA="


async def heard(path: str, body: Json) -> Any:
    """The request that an engine gets for ``body``."""
    engine = Scripted(*HELLO)
    reply = await said(engine, path, body)
    assert reply.status == 200, reply.body
    return engine.requests[0]


async def test_options_reach_the_engine() -> None:
    options = {"num_predict": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "presence_penalty": 1}
    request = await heard(CHAT, ASK | {"options": options | {"top_k": 4, "min_p": 0.1, "num_ctx": 99, "num_gpu": 1}})
    assert (request.max_tokens, request.temperature, request.top_p, request.seed) == (9, 0.5, 0.9, 3)
    assert (request.stop, request.presence_penalty, request.stream) == (["x"], 1, True)
    body = json.loads(request.raw)
    assert (body["top_k"], body["min_p"]) == (4, 0.1)
    assert not {"options", "num_ctx", "num_gpu", "keep_alive", "codriver"} & set(body)


@pytest.mark.parametrize("limit", [-1, -2])
async def test_no_limit(limit: int) -> None:
    assert (await heard(CHAT, ASK | {"options": {"num_predict": limit}})).max_tokens is None


async def test_results_find_their_calls() -> None:
    calls = [{"function": {"name": name, "arguments": {"a": 1}}} for name in ("heat", "horn", "heat")]
    turns = [
        *ASK["messages"],
        {"role": "assistant", "content": "", "tool_calls": calls, "thinking": "hm"},
        {"role": "tool", "tool_name": "horn", "content": "loud"},
        {"role": "tool", "content": "warm"},
        {"role": "tool", "tool_name": "heat", "content": "hot"},
    ]
    _, called, loud, warm, hot = (await heard(CHAT, ASK | {"messages": turns})).messages
    first, second, third = (one.id for one in called.tool_calls)
    assert (loud.tool_call_id, warm.tool_call_id, hot.tool_call_id) == (second, first, third)
    assert json.loads(called.tool_calls[0].function.arguments) == {"a": 1}


async def test_tools_and_images() -> None:
    tool = {"type": "function", "function": {"name": "heat", "parameters": {"type": "object"}}}
    message = {"role": "user", "content": "Look", "images": [PNG]}
    request = await heard(CHAT, ASK | {"messages": [message], "tools": [tool]})
    assert request.tools[0].function.name == "heat"
    assert request.messages[0].content[1].image_url.url == f"data:image/png;base64,{PNG}"


@pytest.mark.parametrize(
    ("given", "kind"), [("", None), ("json", "json_object"), ({"type": "object"}, "json_schema"), (None, None)]
)
async def test_formats(given: Any, kind: str | None) -> None:
    wanted = (await heard(GENERATE, ONCE | {"format": given})).response_format
    assert (wanted.type if wanted else None) == kind


async def test_generate_is_a_chat_of_one_message() -> None:
    request = await heard(GENERATE, ONCE | {"system": "S", "images": [PNG]})
    system, user = request.messages
    assert (system.content, user.content[0].text) == ("S", "Once")


async def test_a_raw_prompt_is_completed() -> None:
    request = await heard(GENERATE, ONCE | {"raw": True, "options": {"top_k": 4}})
    assert (request.prompt, request.messages) == ("Once", [])
    assert json.loads(request.raw)["top_k"] == 4


# ---------------------------------------------------------------- answers


async def test_stream() -> None:
    last = chunk("", "stop", usage=USAGE, codriver={"engine": "cloud"})
    reply = await said(Scripted(chunk("Hel"), chunk("lo"), last), CHAT, ASK)
    assert reply.headers["content-type"] == "application/x-ndjson"
    first, second, end = lines(reply)
    assert (first["model"], first["done"]) == ("auto", False)
    assert first["message"] == {"role": "assistant", "content": "Hel"}
    assert second["message"]["content"] == "lo"
    assert (end["done"], end["done_reason"], end["message"]["content"]) == (True, "stop", "")
    assert (end["prompt_eval_count"], end["eval_count"], end["codriver"]) == (3, 2, {"engine": "cloud"})


async def test_whole() -> None:
    body = json.loads((await said(Scripted(*HELLO), GENERATE, ONCE | {"stream": False})).body)
    assert (body["response"], body["done"], body["done_reason"]) == ("Hello", True, "stop")
    assert "message" not in body


async def test_durations_are_nanoseconds_from_the_requests_arrival() -> None:
    clock = ManualClock(100.0)
    writer = LineWriter("message", "auto", True)
    writer.start(98.5, clock)
    writer.hear(chunk("Hel"))
    await clock.advance(2.0)
    writer.hear(chunk("lo", "stop"))
    done = CompletionChoice(index=0, message=AnswerMessage(content="Hello"), finish_reason="stop")
    body = json.loads(writer.body(ChatCompletion(id="c", created=1, model="m", choices=[done])))
    assert (body["total_duration"], body["prompt_eval_duration"], body["eval_duration"]) == (
        3_500_000_000,
        1_500_000_000,
        2_000_000_000,
    )
    assert body["created_at"] == "1970-01-01T00:01:42Z"


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_are_whole(stream: bool) -> None:
    reply = await said(Scripted(delta(content="Yes."), *CALLS), CHAT, ASK | {"stream": stream})
    found = lines(reply) if stream else [json.loads(reply.body)]
    (called,) = [line["message"]["tool_calls"] for line in found if "tool_calls" in line["message"]]
    assert [one["function"] for one in called] == [
        {"name": "heat", "arguments": {"celsius": 21}},
        {"name": "horn", "arguments": {}},
    ]
    assert found[-1]["done_reason"] == "stop"


@pytest.mark.parametrize(("think", "shown"), [(None, "hm"), (True, "hm"), (False, None)])
async def test_thoughts(think: bool | None, shown: str | None) -> None:
    engine = Scripted(delta(reasoning_content="hm"), delta("stop", content="x"))
    streamed = lines(await said(engine, CHAT, ASK | {"think": think}))
    whole = json.loads((await said(engine, CHAT, ASK | {"think": think, "stream": False})).body)
    assert streamed[0]["message"].get("thinking") == shown
    assert whole["message"].get("thinking") == shown


async def test_logprobs_where_they_are_asked_for() -> None:
    piece = chunk("Hi", "stop")
    piece.choices[0].logprobs = Logprobs([TokenLogprob("Hi", -0.5, [72, 105])])
    engine = Scripted(piece)
    first, _ = lines(await said(engine, CHAT, ASK | {"logprobs": True, "top_logprobs": 1}))
    assert (engine.requests[0].logprobs, engine.requests[0].top_logprobs) == (True, 1)
    assert first["logprobs"][0]["token"] == "Hi"


async def test_a_cut_stream_ends_with_an_error_line() -> None:
    reply = await said(Scripted(chunk("Hel"), EngineDied("The engine died.")), CHAT, ASK)
    *before, last = lines(reply)
    assert last == {"error": "The engine died.", "code": "engine_died"}
    assert [line["done"] for line in before] == [False]


async def test_broken_arguments_end_with_an_error_line() -> None:
    engine = Scripted(call(0, "{", "call_a", "heat"), delta("tool_calls"))
    (last,) = lines(await said(engine, CHAT, ASK))
    assert last["error"] == "The engine called a tool with arguments that are no JSON object."


async def test_a_call_that_the_token_limit_cut_is_no_call() -> None:
    (last,) = lines(await said(Scripted(call(0, "{", "call_a", "heat"), delta("length")), CHAT, ASK))
    assert last["done_reason"] == "length"


async def test_embeddings() -> None:
    asked = {"model": "auto", "input": ["a", "b"], "truncate": True}
    body = json.loads((await said(Scripted(), "/api/embed", asked)).body)
    assert body["embeddings"] == [[0.5, -1.5, 0.25]] * 2
    assert (body["model"], body["prompt_eval_count"]) == ("auto", 4)


# ---------------------------------------------------------------- pages


async def test_tags_and_show() -> None:
    engine = Scripted()
    engine.card = EngineCard(
        id="big",
        locality="vehicle",
        model="Big-1B",
        modalities=frozenset({"text", "image"}),
        capabilities=frozenset({"chat", "tools"}),
        context_tokens=4096,
    )
    async with running({"auto": Scripted(), "org/big": engine}) as server:
        listed = json.loads((await get(server.port, "/api/tags")).body)["models"]
        shown = json.loads((await speak(server.port, http("POST", "/api/show", b'{"model":"org/big:latest"}'))).body)
        older = json.loads((await speak(server.port, http("POST", "/api/show", b'{"name":"org/big"}'))).body)
        version = json.loads((await get(server.port, "/api/version")).body)
    assert [entry["name"] for entry in listed] == ["auto", "org/big"]
    assert listed[0]["digest"] != listed[1]["digest"]
    assert listed[1]["codriver"]["locality"] == "vehicle"
    assert shown["capabilities"] == ["completion", "tools", "vision"]
    assert shown["model_info"]["codriver.context_length"] == 4096
    assert older["model_info"] == shown["model_info"]
    assert [part.isdigit() for part in version["version"].split(".")] == [True] * 3


async def test_pages_need_the_key_too() -> None:
    async with running(Scripted(), api_keys=("k",)) as server:
        without = await get(server.port, "/api/tags")
        with_key = await get(server.port, "/api/tags", "Authorization: Bearer k")
    assert (without.status, with_key.status) == (401, 200)
    assert "API key" in json.loads(without.body)["error"]


async def test_what_is_loaded_already() -> None:
    engine = Scripted(*HELLO)
    reply = await said(engine, GENERATE, {"model": "auto", "keep_alive": "5m"})
    assert json.loads(reply.body)["done_reason"] == "load"
    assert engine.requests == []


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        (CHAT, ASK | {"template": "{{ .Prompt }}"}, "'template' is not supported"),
        (CHAT, ASK | {"format": "yaml"}, "'format' is 'yaml'"),
        (CHAT, ASK | {"options": {"num_predict": 0}}, "'options.num_predict' is 0"),
        (CHAT, ASK | {"options": {"num_predict": -9}}, "'options.num_predict' is -9"),
        (CHAT, ASK | {"options": {"temperature": 9}}, "'options.temperature' is 9"),
        (CHAT, ASK | {"options": {"seed": "x"}}, "options.seed"),
        (CHAT, ASK | {"messages": [{"role": "tool", "content": "x"}]}, "does not follow a tool call"),
        (CHAT, ASK | {"messages": [{"role": "user", "content": "x", "images": ["zzz"]}]}, "is not base64 of a PNG"),
        (CHAT, ASK | {"codriver": {"failover": "restart"}}, "cannot be 'restart'"),
        (GENERATE, ONCE | {"suffix": "end"}, "'suffix' is not supported"),
        (GENERATE, ONCE | {"context": [1, 2]}, "send the conversation to /api/chat"),
        (GENERATE, ONCE | {"raw": True, "system": "S"}, "'system' cannot go with 'raw'"),
        ("/api/show", {"model": 1}, "model"),
    ],
)
async def test_refused_by_name(path: str, body: Json, sentence: str) -> None:
    reply = await said(Scripted(*HELLO), path, body)
    assert reply.status == 400
    assert sentence in json.loads(reply.body)["error"]


@pytest.mark.parametrize(("path", "status"), [("/api/pull", 404), (CHAT, 405), ("/api/embed", 405)])
async def test_other_failures_have_the_shape_too(path: str, status: int) -> None:
    async with running(Scripted()) as server:
        reply = await get(server.port, path)
    assert reply.status == status
    assert isinstance(json.loads(reply.body)["error"], str)
