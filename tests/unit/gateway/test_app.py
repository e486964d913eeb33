"""The routes over real sockets: answers, streams, errors, limits."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
from typing import Any

import pytest

from codriver.core.clock import ManualClock
from codriver.core.engine import Health
from codriver.core.errors import BadConfigValue, EngineBusy, EngineDied, LinkDown, MissingFile
from codriver.core.messages import RequestOptions
from codriver.core.wire import decode_chunk, decode_whole
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.gateway.auth import ApiKeys
from codriver.observe.metrics import Metrics
from codriver.privacy import PrivacyConfig
from codriver.privacy.detect import make_detector
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.pinned import PinnedEngine

from .serving import CHAT, HELLO, STREAM, USAGE, Scripted, ask, chunk, get, http, running, speak

CHAT_PATH = "/v1/chat/completions"


def events(body: bytes) -> list[Any]:
    """The events of a chunked body, decoded; ``[DONE]`` stays a string."""
    payloads = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [p.decode() if p == b"[DONE]" else json.loads(p) for p in payloads]


def error(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


# ---------------------------------------------------------------- answers


async def test_whole_answer() -> None:
    engine = Scripted(*HELLO)
    async with running(engine) as server:
        reply = await ask(server.port, CHAT_PATH, CHAT, "x-request-id: my-id")
    body = json.loads(reply.body)
    assert reply.status == 200
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert reply.headers["x-request-id"] == "my-id"
    assert reply.headers["x-codriver-engine"] == "scripted"
    assert engine.closed.is_set()


async def test_a_whole_body_passes_through_in_its_own_bytes() -> None:
    raw = (
        b'{ "id":"c", "created":1,"model":"m","unknown":[1, 2],"choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"x"},"logprobs":null,"finish_reason":"stop"}]}'
    )
    async with running(Scripted(decode_whole(raw))) as server:
        assert (await ask(server.port, CHAT_PATH, CHAT)).body == raw


async def test_stream_without_usage() -> None:
    async with running(Scripted(*HELLO)) as server:
        reply = await ask(server.port, CHAT_PATH, STREAM)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(reply.body)
    assert done == "[DONE]"
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["Hel", "lo"]
    assert not any("usage" in c for c in chunks)


async def test_stream_with_usage_ends_with_one_usage_chunk() -> None:
    body = b'{"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}'
    raw = decode_chunk(b'{"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],"x":1}')
    both = chunk("lo", "stop", usage=USAGE)
    async with running(Scripted(raw, both)) as server:
        *chunks, done = events((await ask(server.port, CHAT_PATH, body)).body)
    assert done == "[DONE]"
    assert [c["usage"] for c in chunks[:-1]] == [None, None]
    assert chunks[0]["x"] == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 5


async def test_usage_that_nobody_asked_for_is_taken_out_of_raw_chunks() -> None:
    raw = decode_chunk(
        b'{"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}],"x":1,'
        b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
    )
    async with running(Scripted(raw)) as server:
        first, done = events((await ask(server.port, CHAT_PATH, STREAM)).body)
    assert (done, first["x"], "usage" in first) == ("[DONE]", 1, False)


async def test_raw_chunks_pass_through_in_their_own_bytes() -> None:
    raw = b'{ "id":"a","choices":[{"index":0, "delta":{"content":"x"},"finish_reason":"stop"}],"x":1}'
    async with running(Scripted(decode_chunk(raw))) as server:
        assert b"data: " + raw + b"\n\n" in (await ask(server.port, CHAT_PATH, STREAM)).body


async def test_the_extension_names_the_engine_that_answered() -> None:
    final = chunk("x", "stop", codriver={"engine": "cloud"})
    async with running(Scripted(final)) as server:
        whole = await ask(server.port, CHAT_PATH, CHAT)
        streamed = await ask(server.port, CHAT_PATH, STREAM)
    assert json.loads(whole.body)["codriver"] == {"engine": "cloud"}
    assert whole.headers["x-codriver-engine"] == streamed.headers["x-codriver-engine"] == "cloud"


async def test_an_engine_name_from_upstream_cannot_forge_headers() -> None:
    final = chunk("x", "stop", codriver={"engine": "a\r\nset-cookie: b=c"})
    async with running(Scripted(final)) as server:
        reply = await ask(server.port, CHAT_PATH, CHAT)
    assert reply.headers["x-codriver-engine"] == "a??set-cookie:?b=c"
    assert "set-cookie" not in reply.headers


async def test_completions_whole_and_streamed() -> None:
    engine = Scripted(*HELLO)
    async with running(engine) as server:
        whole = json.loads((await ask(server.port, "/v1/completions", b'{"prompt":["Once"]}')).body)
        *chunks, done = events((await ask(server.port, "/v1/completions", b'{"prompt":"Once","stream":true}')).body)
    assert engine.requests[0].prompt == "Once"
    assert engine.requests[0].max_tokens == 16
    assert whole["object"] == "text_completion"
    assert whole["id"] == "cmpl-1"
    assert whole["choices"] == [{"text": "Hello", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert [c["choices"][0]["text"] for c in chunks] == ["Hel", "lo"]
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        (b'{"prompt":["a","b"]}', 400, "prompt"),
        (b'{"prompt":[1,2]}', 400, "prompt"),
        (b'{"prompt":"a","echo":true}', 400, "echo"),
        (b'{"prompt":"a","best_of":3}', 400, "best_of"),
        (b'{"prompt":"a","logprobs":9}', 400, "logprobs"),
        (b"{}", 400, "prompt"),
        (b"{", 400, "JSON"),
    ],
)
async def test_completions_refuse_by_name(hello_port: int, body: bytes, status: int, names: str) -> None:
    reply = await ask(hello_port, "/v1/completions", body)
    assert reply.status == status
    assert names in error(reply.body)["message"]


async def test_embeddings(hello_port: int) -> None:
    numbers = json.loads((await ask(hello_port, "/v1/embeddings", b'{"input":["a","b"]}')).body)
    packed = json.loads((await ask(hello_port, "/v1/embeddings", b'{"input":"a","encoding_format":"base64"}')).body)
    assert [item["embedding"] for item in numbers["data"]] == [[0.5, -1.5, 0.25]] * 2
    assert packed["data"][0]["embedding"] == "AAAAPwAAwL8AAIA+"
    assert numbers["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


async def test_embeddings_refuse_control_that_they_cannot_honour(hello_port: int) -> None:
    by_header = await ask(hello_port, "/v1/embeddings", b'{"input":"a"}', "x-codriver-privacy: local_only")
    by_body = await ask(hello_port, "/v1/embeddings", b'{"input":"a","codriver":{"policy":"cloud-only"}}')
    assert "codriver.privacy" in error(by_header.body)["message"]
    assert "codriver.policy" in error(by_body.body)["message"]


# ---------------------------------------------------------------- pages


async def test_models() -> None:
    async with running({"auto": Scripted(), "org/big": Scripted(id="big")}) as server:
        listed = json.loads((await get(server.port, "/v1/models")).body)
        one = json.loads((await get(server.port, "/v1/models/org/big")).body)
        quoted = json.loads((await get(server.port, "/v1/models/org%2Fbig")).body)
        missing = await get(server.port, "/v1/models/nope")
    assert [item["id"] for item in listed["data"]] == ["auto", "org/big"]
    assert one == quoted
    assert one["codriver"]["engine"] == "big"
    assert (missing.status, error(missing.body)["code"]) == (404, "model_not_found")


async def test_health_follows_the_engines() -> None:
    engine = Scripted()
    async with running({"a": engine, "b": engine}) as server:
        up = await get(server.port, "/healthz")
        engine.state = Health("down", reason="no weights")
        down = await get(server.port, "/healthz")
    assert (up.status, json.loads(up.body)["status"]) == (200, "ok")
    assert (down.status, json.loads(down.body)["engines"]["a"]["reason"]) == (503, "no weights")


async def test_metrics_count_by_route() -> None:
    metrics = Metrics()
    async with running(Scripted(*HELLO), metrics) as server:
        await ask(server.port, CHAT_PATH, CHAT)
        await get(server.port, "/made/up/by/a/client")
        page = (await get(server.port, "/metrics")).body.decode()
    assert 'codriver_requests_total{route="/v1/chat/completions",status="200"} 1.0' in page
    assert 'codriver_requests_total{route="other",status="404"} 1.0' in page
    assert "made/up" not in page


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("request_bytes", "status", "code", "sentence"),
    [
        (http("POST", CHAT_PATH, b"{"), 400, "malformed_body", "not valid JSON"),
        (http("POST", CHAT_PATH, b""), 400, "malformed_body", "not valid JSON"),
        (http("POST", CHAT_PATH, b'{"messages":[{"role":"user","content":"\xff"}]}'), 400, "malformed_body", "JSON"),
        (http("POST", CHAT_PATH, b'{"messages":[]}'), 400, "malformed_body", "messages"),
        (http("POST", CHAT_PATH, b'{"messages":[{"role":"king"}]}'), 400, "malformed_body", "messages"),
        (http("POST", CHAT_PATH, b'{"x":' * 100_000), 400, "malformed_body", "JSON"),
        (http("POST", CHAT_PATH, CHAT[:-1] + b',"model":"aut"}'), 404, "model_not_found", "Did you mean: auto?"),
        (http("GET", "/v1/nothing"), 404, "not_found", "Invalid URL (GET /v1/nothing)"),
        (http("GET", CHAT_PATH), 405, "method_not_allowed", "use POST"),
        (http("DELETE", "/v1/models"), 405, "method_not_allowed", "use GET"),
        (
            http("POST", CHAT_PATH, CHAT, "x-codriver-policy: fast"),
            400,
            "malformed_body",
            "Allowed: auto, vehicle-only",
        ),
        (http("POST", CHAT_PATH, CHAT, "x-codriver-privcy: local_only"), 400, "malformed_body", "x-codriver-privcy"),
        (
            http("POST", CHAT_PATH, CHAT, "x-codriver-deadline-ms: soon"),
            400,
            "malformed_body",
            "x-codriver-deadline-ms",
        ),
        (
            http("POST", CHAT_PATH, CHAT[:-1] + b',"codriver":{"policy":"fast"}}'),
            400,
            "malformed_body",
            "Allowed: auto, vehicle-only",
        ),
        (
            http("POST", CHAT_PATH, CHAT, "x-codriver-session: " + "s" * 257),
            400,
            "malformed_body",
            "'codriver.session' has 257 characters, and may have 256 at most.",
        ),
        (http("POST", CHAT_PATH, CHAT[:-1] + b',"n":0}'), 400, "malformed_body", "'n' is 0, and must be from 1 to 128"),
        (
            http("POST", "/v1/completions", b'{"prompt":"x","temperature":3}'),
            400,
            "malformed_body",
            "'temperature' is 3",
        ),
        (http("POST", CHAT_PATH, CHAT, "x-codriver-deadline-ms: nan"), 400, "malformed_body", "deadline_ms"),
        (http("POST", CHAT_PATH, CHAT[:-1] + b',"codriver":{"deadline_ms":-1}}'), 400, "malformed_body", "deadline_ms"),
        (http("POST", CHAT_PATH, CHAT[:-1] + b',"codriver":{"polcy":"auto"}}'), 400, "malformed_body", "polcy"),
        (http("POST", CHAT_PATH, CHAT, "x-codriver-privacy: secret"), 400, "malformed_body", "any, redact, local_only"),
        (
            http("POST", CHAT_PATH, CHAT[:-1] + b',"codriver":{"entities":["' + b"x" * 201 + b'"]}}'),
            400,
            "malformed_body",
            "'codriver.entities' may hold 1000 names of 200 characters at most.",
        ),
        (
            http("POST", CHAT_PATH, CHAT[:-1] + b',"codriver":{"context":[' + b'"x",' * 64 + b'"x"]}}'),
            400,
            "malformed_body",
            "'codriver.context' holds 65 documents, and may hold 64 at most.",
        ),
        (
            http("POST", CHAT_PATH, CHAT[:-1] + b',"codriver":{"context":["' + b"x" * 2_000_001 + b'"]}}'),
            400,
            "malformed_body",
            "'codriver.context' has 2000001 characters, and may have 2000000 at most.",
        ),
        (
            http("POST", CHAT_PATH, CHAT[:-1] + b',"codriver":{"context":"a manual"}}'),
            400,
            "malformed_body",
            "'codriver.context'",
        ),
        (b"GARBAGE\r\n\r\n", 400, "invalid_request", "not a valid HTTP/1.1 request"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_request", "not a valid HTTP/1.1 request"),
    ],
)
async def test_bad_input(hello_port: int, request_bytes: bytes, status: int, code: str, sentence: str) -> None:
    reply = await speak(hello_port, request_bytes)
    assert reply.status == status, reply.body
    assert error(reply.body)["code"] == code
    assert sentence in error(reply.body)["message"]


async def test_an_error_before_the_first_chunk_has_its_status() -> None:
    busy = EngineBusy("The engine is busy.", retry_after_s=2.3)
    async with running(Scripted(busy)) as server:
        reply = await ask(server.port, CHAT_PATH, STREAM)
    assert (reply.status, reply.headers["retry-after"]) == (503, "3")
    assert error(reply.body)["code"] == "engine_busy"


async def test_an_error_in_mid_stream_is_an_event_and_no_done() -> None:
    async with running(Scripted(chunk("Hel"), LinkDown("The link is down."))) as server:
        reply = await ask(server.port, CHAT_PATH, STREAM)
    first, last = events(reply.body)
    assert first["choices"][0]["finish_reason"] is None
    assert last["error"]["code"] == "link_down"


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_an_answer_without_a_finish_reason_is_no_answer(body: bytes) -> None:
    async with running(Scripted(chunk("Hel"))) as server:
        reply = await ask(server.port, CHAT_PATH, body)
    assert b"engine_died" in reply.body
    assert b"[DONE]" not in reply.body


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_an_engine_that_yields_nothing_is_an_error(body: bytes) -> None:
    async with running(Scripted()) as server:
        assert (await ask(server.port, CHAT_PATH, body)).status == EngineDied.status


async def test_a_defect_in_an_engine_is_logged_and_hidden(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="codriver"):
        async with running(Scripted(ZeroDivisionError("private text"))) as server:
            reply = await ask(server.port, CHAT_PATH, CHAT)
    assert reply.status == 500
    assert b"private" not in reply.body
    assert "ZeroDivisionError" in caplog.text
    assert "private" not in caplog.text
    assert "serving.py" in caplog.records[0].at  # type: ignore[attr-defined]


# ---------------------------------------------------------------- options and deadlines


async def test_options_from_body_and_headers() -> None:
    engine = Scripted(*HELLO)
    body = CHAT[:-1] + b',"codriver":{"policy":"cloud-only"}}'
    headers = ("x-codriver-policy: vehicle-only", "x-codriver-first-token-ms: 250", "x-codriver-session: s1")
    async with running(engine) as server:
        await ask(server.port, CHAT_PATH, body, *headers)
    expected = RequestOptions(policy="cloud-only", first_token_ms=250.0, session="s1")
    assert engine.requests[0].codriver == expected


@pytest.mark.parametrize(
    ("members", "headers"),
    [
        (b'{"privacy":"any"}', ("x-codriver-privacy: local_only",)),
        (b'{"privacy":"local_only"}', ("x-codriver-privacy: any",)),
        (b"{}", ("x-codriver-privacy: local_only", "x-codriver-privacy: any")),
        (b"{}", ("x-codriver-privacy: any", "x-codriver-privacy: local_only")),
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions"])
async def test_of_two_words_on_privacy_the_stricter_counts(path: str, members: bytes, headers: tuple[str, ...]) -> None:
    engine = Scripted(*HELLO)
    body = CHAT[:-1] + b',"prompt":"hi","codriver":' + members + b"}"
    async with running(engine) as server:
        reply = await ask(server.port, path, body, *headers)
    assert reply.status == 200, reply.body
    assert engine.requests[0].codriver.privacy == "local_only"


@pytest.mark.parametrize(
    ("members", "headers", "counts"),
    [
        (b'{"privacy":"redact"}', ("x-codriver-privacy: any",), "redact"),
        (b'{"privacy":"any"}', ("x-codriver-privacy: redact",), "redact"),
        (b'{"privacy":"redact"}', ("x-codriver-privacy: local_only",), "local_only"),
        (b'{"privacy":"local_only"}', ("x-codriver-privacy: redact",), "local_only"),
        (b"{}", ("x-codriver-privacy: redact", "x-codriver-privacy: any"), "redact"),
        (
            b"{}",
            ("x-codriver-privacy: redact", "x-codriver-privacy: local_only", "x-codriver-privacy: any"),
            "local_only",
        ),
    ],
)
async def test_redact_lies_between_any_and_local_only(members: bytes, headers: tuple[str, ...], counts: str) -> None:
    engine = Scripted(*HELLO)
    async with running(engine) as server:
        reply = await ask(server.port, CHAT_PATH, CHAT[:-1] + b',"codriver":' + members + b"}", *headers)
    assert reply.status == 200, reply.body
    assert engine.requests[0].codriver.privacy == counts


async def test_a_key_has_its_least_privacy_class() -> None:
    engine = Scripted(*HELLO)
    digest = hashlib.sha256(b"bob").hexdigest()
    settings = {
        "api_keys": ("alice", f"sha256:{digest}", "carl"),
        "key_privacy": ("redact=alice", f"local_only=sha256:{digest}", "any=carl"),
    }
    seen = []
    async with running(engine, **settings) as server:
        for key in ("alice", "bob", "carl"):
            for word in ("any", "redact", "local_only"):
                reply = await ask(
                    server.port, CHAT_PATH, CHAT, f"authorization: Bearer {key}", f"x-codriver-privacy: {word}"
                )
                assert reply.status == 200
                seen.append(engine.requests[-1].codriver.privacy)
        assert (await ask(server.port, CHAT_PATH, CHAT, "authorization: Bearer bob")).status == 200
    assert seen == ["redact", "redact", "local_only", *["local_only"] * 3, "any", "redact", "local_only"]
    assert engine.requests[-1].codriver == RequestOptions(privacy="local_only")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("secret=alice", "an entry that is not CLASS=KEY; allowed classes: any, redact, local_only"),
        ("alice", "an entry that is not CLASS=KEY"),
        ("redact=", "an entry that is not CLASS=KEY"),
        ("redact=alcie", "a key that is neither in gateway.api_keys nor in gateway.keys_file"),
    ],
)
def test_a_class_for_a_key_that_may_not_call_is_refused(entry: str, told: str) -> None:
    with pytest.raises(BadConfigValue) as refused:
        ApiKeys(GatewayConfig(api_keys=("alice",), key_privacy=(entry,)))
    assert told in refused.value.message
    assert "alcie" not in refused.value.message


async def test_texts_to_embed_carry_the_class_of_their_key_and_no_body_sets_it() -> None:
    made = []

    class Embedder(Scripted):
        async def embed(self, request: Any, deadline: Any) -> Any:
            made.append(request.privacy)
            return await super().embed(request, deadline)

    body = b'{"input":"a","__privacy__":"any"}'
    async with running(Embedder(), api_keys=("alice", "bob"), key_privacy=("redact=alice",)) as server:
        for key in ("alice", "bob"):
            assert (await ask(server.port, "/v1/embeddings", body, f"authorization: Bearer {key}")).status == 200
    assert made == ["redact", "any"]


async def test_a_request_to_be_redacted_goes_only_to_who_can_redact() -> None:
    engine = Scripted(*HELLO)
    engine.card = dataclasses.replace(engine.card, locality="cloud")
    lineup = Lineup({"scripted": engine})
    pinned = PinnedEngine(HybridEngine(lineup, detector=make_detector(PrivacyConfig())), lineup, "scripted")
    body = b'{"messages":[{"role":"user","content":"mail a@b.example"}],"codriver":{"privacy":"redact"}}'
    async with running({"bare": engine, "pinned": pinned}) as server:
        reply = await ask(server.port, CHAT_PATH, body)
        assert (reply.status, error(reply.body)["code"]) == (403, "forbidden")
        assert error(reply.body)["message"].startswith("The request is redact, and 'scripted' is not in the vehicle")
        assert engine.requests == []
        reply = await ask(server.port, CHAT_PATH, body[:-1] + b',"model":"pinned"}')
    assert reply.status == 200
    assert engine.requests[0].messages[0].text() == "mail <EMAIL_1>"


async def test_the_word_in_a_message_is_no_wish_for_privacy() -> None:
    engine = Scripted(*HELLO)
    body = b'{"messages":[{"role":"user","content":"codriver privacy local_only"}],"codriver":{"policy":"auto"}}'
    async with running(engine) as server:
        await ask(server.port, CHAT_PATH, body)
        await ask(server.port, CHAT_PATH, b'{"messages":[{"role":"user","content":"local_only"}]}')
    assert [request.codriver for request in engine.requests] == [RequestOptions(policy="auto"), None]


async def test_each_key_has_its_own_conversations() -> None:
    engine = Scripted(*HELLO)
    body = CHAT[:-1] + b',"codriver":{"session":"trip"}}'
    async with running(engine, api_keys=("alice", "bob")) as server:
        await ask(server.port, CHAT_PATH, body, "Authorization: Bearer alice")
        await ask(server.port, CHAT_PATH, CHAT, "Authorization: Bearer bob", "x-codriver-session: trip")
        await ask(server.port, CHAT_PATH, body, "Authorization: Bearer alice")
    # Whoever keeps something for a caller knows callers by this, which no body can set.
    callers = [request.caller for request in engine.requests]
    assert callers[0] and callers[1] and len(set(callers[:2])) == 2
    first, second, third = (request.codriver.session for request in engine.requests)
    assert first == third != second
    assert first == hashlib.sha256(b"alice").hexdigest()[:16] + ":trip"


async def test_bob_does_not_go_on_with_alices_conversation() -> None:
    engine = Scripted(*HELLO)
    body = CHAT[:-1] + b',"codriver":{"session":"trip"}}'
    async with running(HybridEngine(Lineup({"v": engine})), api_keys=("alice", "bob")) as server:
        for key in ("alice", "bob", "alice"):
            assert (await ask(server.port, CHAT_PATH, body, f"Authorization: Bearer {key}")).status == 200
    assert [len(request.messages) for request in engine.requests] == [1, 1, 3]


async def test_a_local_only_request_never_reaches_a_cloud_engine() -> None:
    engine = Scripted(*HELLO)
    engine.card = dataclasses.replace(engine.card, locality="cloud")
    async with running(engine) as server:
        reply = await ask(server.port, CHAT_PATH, CHAT, "x-codriver-privacy: local_only")
    assert (reply.status, error(reply.body)["code"]) == (403, "forbidden")
    assert "nothing was sent" in error(reply.body)["message"]
    assert engine.requests == []


async def test_the_deadline_is_made_at_arrival_and_capped() -> None:
    engine = Scripted(*HELLO)
    clock = ManualClock(50.0)
    config = GatewayConfig(port=0, request_limit_s=30.0)
    server = await serve(Gateway({"auto": engine}, "auto", config, Metrics(), clock), config)
    try:
        for header in ("x-codriver-deadline-ms: 1500", "x-codriver-deadline-ms: 9000000", "accept: */*"):
            await ask(server.port, CHAT_PATH, CHAT, header)
    finally:
        await server.aclose()
    assert [deadline.at_s for deadline in engine.deadlines] == [51.5, 80.0, 80.0]


@pytest.mark.parametrize("first", [(), (chunk("Hel"),)])
async def test_an_engine_that_hangs_is_cut_at_the_deadline(first: tuple[Any, ...]) -> None:
    engine = Scripted(*first, asyncio.Event())
    async with running(engine, request_limit_s=0.05, grace_s=0.0) as server:
        reply = await ask(server.port, CHAT_PATH, STREAM)
    assert reply.status == (200 if first else 504)
    assert b"deadline_exceeded" in reply.body
    assert b"[DONE]" not in reply.body
    assert engine.closed.is_set()


# ---------------------------------------------------------------- limits and keys


async def test_oversized_bodies() -> None:
    big = CHAT[:-1] + b',"user":"' + b"x" * 2000 + b'"}'
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(big), big)
    async with running(Scripted(*HELLO), body_limit_bytes=1000) as server:
        declared = await ask(server.port, CHAT_PATH, big)
        streamed = await ask(server.port, CHAT_PATH, chunked, "Transfer-Encoding: chunked")
    for reply in (declared, streamed):
        assert (reply.status, error(reply.body)["code"]) == (413, "body_too_large")
        assert "1000 bytes" in error(reply.body)["message"]


async def test_a_chunked_body_in_pieces_is_read() -> None:
    pieces = [b"%x\r\n%b\r\n" % (len(CHAT[i : i + 7]), CHAT[i : i + 7]) for i in range(0, len(CHAT), 7)]
    async with running(Scripted(*HELLO)) as server:
        head = http("POST", CHAT_PATH, b"", "Transfer-Encoding: chunked")
        assert (await speak(server.port, head, *pieces, b"0\r\n\r\n")).status == 200


async def test_too_many_at_once() -> None:
    hold = asyncio.Event()
    engine = Scripted(hold, *HELLO)
    async with running(engine, max_in_flight=1) as server:
        first = asyncio.create_task(ask(server.port, CHAT_PATH, CHAT))
        await engine.started.wait()
        second = await ask(server.port, CHAT_PATH, CHAT)
        hold.set()
        assert (await first).status == 200
        assert (await ask(server.port, CHAT_PATH, CHAT)).status == 200
    assert (second.status, second.headers["retry-after"]) == (429, "1")


async def test_keys() -> None:
    hashed = "sha256:" + hashlib.sha256(b"second").hexdigest()
    async with running(Scripted(*HELLO), api_keys=("first", hashed)) as server:
        none = await ask(server.port, CHAT_PATH, CHAT)
        wrong = await ask(server.port, CHAT_PATH, CHAT, "Authorization: Bearer third")
        assert (await ask(server.port, CHAT_PATH, CHAT, "Authorization: Bearer first")).status == 200
        assert (await get(server.port, "/v1/models", "Authorization: bearer second")).status == 200
        assert (await get(server.port, "/metrics")).status == 401
        assert (await get(server.port, "/healthz")).status == 200
    assert none.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer" in error(none.body)["message"]
    assert (wrong.status, error(wrong.body)["code"]) == (401, "invalid_api_key")
    assert b"third" not in wrong.body


async def test_a_keys_file(tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfilekey # the dashboard\n")
    async with running(Scripted(*HELLO), keys_file=file) as server:
        assert (await get(server.port, "/v1/models", "Authorization: Bearer filekey")).status == 200
        assert (await get(server.port, "/v1/models")).status == 401


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        ({"keys_file": "none.txt"}, MissingFile, "none.txt does not exist"),
        ({"keys_file": "empty.txt"}, BadConfigValue, "holds no key"),
        ({"api_keys": ("sha256:12",)}, BadConfigValue, "64 hex digits"),
        ({"api_keys": (" ",)}, BadConfigValue, "gateway.api_keys"),
    ],
)
def test_bad_keys_are_refused_at_start(tmp_path: Any, settings: dict[str, Any], kind: Any, sentence: str) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    if "keys_file" in settings:
        settings = {"keys_file": tmp_path / settings["keys_file"]}
    with pytest.raises(kind, match=sentence):
        Gateway({"auto": Scripted()}, "auto", GatewayConfig(**settings), Metrics())


async def test_two_pipelined_requests_get_two_answers(hello_port: int) -> None:
    one = http("POST", CHAT_PATH, CHAT).replace(b"Connection: close\r\n", b"")
    reply = await speak(hello_port, one + http("POST", CHAT_PATH, CHAT))
    assert reply.body.count(b"HTTP/1.1 200 OK") == 1


@pytest.fixture
async def hello_port() -> Any:
    async with running(Scripted(*HELLO)) as server:
        yield server.port
