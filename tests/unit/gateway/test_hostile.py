"""Bad and huge input over real sockets: a 4xx that says why, or an answer in time; never a 5xx."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from codriver.engines.null import Null, NullConfig
from codriver.route.config import RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.quality import Quality

from .serving import Reply, ask, http, running, speak

CHAT = "/v1/chat/completions"
TURN = '"messages":[{"role":"user","content":"hi"}]'


def bare() -> Any:
    return Null(NullConfig(context_tokens=10_000_000))


def router() -> Any:
    engines = {
        name: Null(NullConfig(id=name, locality=name, context_tokens=10_000_000))  # type: ignore[arg-type]
        for name in ("vehicle", "cloud")
    }
    return HybridEngine(Lineup(engines, quality=Quality()), RouteConfig())  # type: ignore[arg-type]


ENGINES = pytest.mark.parametrize("engine", [bare, router])


def refused(reply: Reply, *words: str) -> None:
    """A 400 in OpenAI's shape whose message holds the words."""
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"]) == (400, "malformed_body"), reply.body
    assert all(word in error["message"] for word in words), error


# ---------------------------------------------------------------- long bodies


def turns(count: int) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[at % 2], "content": f"message {at}, how are you?"} for at in range(count)]


def calls(count: int) -> dict[str, Any]:
    """Ollama: a tool call each, and their results in the order that is worst for whoever looks for them in turn."""
    names = [f"f{at}" for at in range(count)]
    asked = {"role": "assistant", "tool_calls": [{"function": {"name": name}} for name in names]}
    results = [{"role": "tool", "tool_name": name, "content": "x"} for name in reversed(names)]
    return {"stream": False, "messages": [asked, *results]}


LONG: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "chat": (CHAT, lambda count: {"messages": turns(count)}),
    "session": (CHAT, lambda count: {"messages": turns(count), "codriver": {"session": "s"}}),
    "responses": ("/v1/responses", lambda count: {"input": turns(count)}),
    "responses calls": (
        "/v1/responses",
        lambda count: {
            "input": [
                {"type": "function_call", "call_id": str(at), "name": "f", "arguments": "{}"} for at in range(count)
            ]
        },
    ),
    "messages": ("/v1/messages", lambda count: {"max_tokens": 5, "messages": turns(count)}),
    "ollama": ("/api/chat", lambda count: {"stream": False, "messages": turns(count)}),
    "ollama calls": ("/api/chat", calls),
}


@ENGINES
@pytest.mark.parametrize("name", LONG)
async def test_ten_thousand_messages_take_ten_times_as_long_as_a_thousand(name: str, engine: Callable[[], Any]) -> None:
    path, make = LONG[name]
    took_s: dict[int, float] = {}
    async with running(engine()) as server:
        for count in (1_000, 10_000):
            body = json.dumps(make(count)).encode()
            times = []
            for _ in range(3):
                began_s = time.process_time()
                reply = await ask(server.port, path, body)
                times.append(time.process_time() - began_s)
                assert reply.status == 200, reply.body
            took_s[count] = min(times)
    # Quadratic would be a hundred times.
    assert took_s[10_000] < max(40 * took_s[1_000], 0.2), took_s


@ENGINES
async def test_a_history_over_the_context_is_refused_in_its_words(engine: Callable[[], Any]) -> None:
    body = json.dumps({"messages": turns(10_000)}).encode()
    async with running(Null(NullConfig(context_tokens=1_000))) as server:
        reply = await ask(server.port, CHAT, body)
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"]) == (400, "context_length_exceeded")


async def test_a_models_name_of_megabytes_is_refused_at_once() -> None:
    body = json.dumps({"model": "auto" * 1_000_000, "messages": turns(1)}).encode()
    async with running(bare()) as server:
        began_s = time.process_time()
        reply = await ask(server.port, CHAT, body)
        assert time.process_time() - began_s < 0.5
    assert (reply.status, len(reply.body) < 500) == (404, True)
    assert json.loads(reply.body)["error"]["code"] == "model_not_found"


# ---------------------------------------------------------------- schemas


def with_tool(schema: str) -> bytes:
    tool = f'{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}'
    return f'{{{TURN},"tools":[{tool}],"tool_choice":"required"}}'.encode()


def with_format(schema: str) -> bytes:
    form = f'{{"type":"json_schema","json_schema":{{"name":"a","schema":{schema}}}}}'
    return f'{{{TURN},"response_format":{form}}}'.encode()


WIDE = json.dumps(
    {"type": "object", "properties": {f"p{at}": {"type": "string", "description": "x" * 50} for at in range(12_000)}}
)


@ENGINES
@pytest.mark.parametrize("ask_with", [with_tool, with_format])
async def test_a_schema_of_a_megabyte_is_taken_in_time(engine: Callable[[], Any], ask_with: Any) -> None:
    body = ask_with(WIDE)
    assert len(body) > 1 << 20
    async with running(engine()) as server:
        began_s = time.process_time()
        reply = await ask(server.port, CHAT, body)
        assert time.process_time() - began_s < 1.0
    assert reply.status == 200, reply.body


@ENGINES
@pytest.mark.parametrize("ask_with", [with_tool, with_format])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
async def test_a_schema_of_ten_thousand_levels_is_refused(
    engine: Callable[[], Any], ask_with: Any, brackets: str
) -> None:
    inner = "[" * 10_000 + "]" * 10_000 if brackets == "[]" else '{"a":' * 10_000 + "1" + "}" * 10_000
    async with running(engine()) as server:
        refused(await ask(server.port, CHAT, ask_with(f'{{"a":{inner}}}')), "not valid JSON", "recursion")
        for path, more in (("/v1/messages", '"max_tokens":5,'), ("/v1/responses", '"input":"hi",'), ("/api/chat", "")):
            body = f'{{{more}{TURN},"tools":[{{"name":"f","x":{inner},"input_schema":{inner}}}]}}'.encode()
            reply = await ask(server.port, path, body)
            assert reply.status == 400 and b"recursion" in reply.body, (path, reply.body)


@ENGINES
@pytest.mark.parametrize("levels", [100, 300, 450, 480, 700, 900])
@pytest.mark.parametrize("ask_with", [with_tool, with_format])
async def test_a_schema_as_deep_as_can_be_read_breaks_nothing(
    engine: Callable[[], Any], levels: int, ask_with: Any
) -> None:
    schema = '{"type":"object","required":["a"],"properties":{"a":' * (levels // 2) + "{}" + "}}" * (levels // 2)
    async with running(engine()) as server:
        assert (await ask(server.port, CHAT, ask_with(schema))).status in (200, 400)


@ENGINES
@pytest.mark.parametrize(
    "schema",
    [
        '{"$schema":[]}', '{"$schema":{}}', '{"$id":"http://["}', '{"$ref":"#"}', '{"$ref":5}', '{"type":12}',
        '{"anyOf":[1]}', '{"anyOf":{"a":1}}', '{"properties":5}', '{"required":[{}]}',
        '{"pattern":"(","type":"string"}',
        '{"type":"array","minItems":1000000000}', '{"type":"string","minLength":1000000000}', '{"type":[]}',
        '{"type":"string","minLength":1e300}', '{"items":[],"type":"array","minItems":2}', '{"enum":{"a":1}}',
        '{"$ref":"https://example.invalid/schema"}', '{"multipleOf":0}', '{"type":"array","minItems":"many"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("ask_with", [with_tool, with_format])
async def test_what_is_no_schema_breaks_nothing(engine: Callable[[], Any], schema: str, ask_with: Any) -> None:
    async with running(engine()) as server:
        assert (await ask(server.port, CHAT, ask_with(schema))).status in (200, 400)


# ---------------------------------------------------------------- numbers and strings


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "01", ".5", "+1"])
@pytest.mark.parametrize("member", ["temperature", "max_tokens", "seed", "logit_bias", "codriver"])
async def test_what_is_no_json_number_is_refused_wherever_it_stands(number: str, member: str) -> None:
    value = {"logit_bias": f'{{"1":{number}}}', "codriver": f'{{"deadline_ms":{number}}}'}.get(member, number)
    async with running(bare()) as server:
        refused(
            await ask(server.port, CHAT, f'{{{TURN},"{member}":{value}}}'.encode()), "The request body is not valid"
        )


@ENGINES
@pytest.mark.parametrize("digits", [19, 20, 400, 5_000])
async def test_a_long_number_is_refused_or_answered(engine: Callable[[], Any], digits: int) -> None:
    async with running(engine()) as server:
        for member in ("max_tokens", "seed", "temperature", "n", "unknown", "top_logprobs"):
            reply = await ask(server.port, CHAT, f'{{{TURN},"{member}":{"9" * digits}}}'.encode())
            assert reply.status in (200, 400), reply.body


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00", r"\ud800\ud800", r"\ud83d", r"\x", "\x00", "\x1f", "\\"])
async def test_half_a_surrogate_or_a_bare_control_character_is_refused(text: str) -> None:
    async with running(bare()) as server:
        for body in (
            f'{{"messages":[{{"role":"user","content":"{text}"}}]}}',
            f'{{{TURN},"user":"{text}"}}',
            f'{{{TURN},"unknown":"{text}"}}',
            f'{{{TURN},"{text}":1}}',
        ):
            refused(await ask(server.port, CHAT, body.encode()), "The request body is not valid")


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /v1/models/\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        (b"GET /v1/models/%ff%fe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/models/%00%0a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /%ff?%ff=%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET //x:y@z:99999999/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nx: \x00\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
            400,
        ),
    ],
)
async def test_a_head_that_no_client_sends_is_refused(raw: bytes, status: int) -> None:
    async with running(bare()) as server:
        reply = await speak(server.port, raw)
        assert reply.status == status, reply.body
        assert "message" in json.loads(reply.body)["error"]
        assert (await ask(server.port, CHAT, f"{{{TURN}}}".encode())).status == 200


@pytest.mark.parametrize(
    "name", ["x-codriver-session", "x-codriver-engine", "x-request-id", "authorization", "traceparent"]
)
async def test_a_headers_value_may_hold_any_byte(name: str) -> None:
    body = f"{{{TURN}}}".encode()
    async with running(router()) as server:
        for value in (b"\xff\xfe", b"\xc3\xa4", b"%00", b"\x80" * 300, b"'; --"):
            head, _, _ = http("POST", CHAT, body, f"{name}: V").partition(b"\r\n\r\n")
            reply = await speak(server.port, head.replace(b"V", value) + b"\r\n\r\n" + body)
            assert reply.status in (200, 400, 404), (value, reply.body)
            assert value not in reply.headers.values()
