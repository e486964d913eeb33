"""The remote engine against real servers on loopback: what goes out, what comes back, and every way it can go wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from codriver.core.answer import Answer
from codriver.core.clock import ManualClock
from codriver.core.deadline import Deadline
from codriver.core.errors import (
    BadConfigValue,
    CodriverError,
    DeadlineExceeded,
    EngineBusy,
    EngineDied,
    EngineUnavailable,
    MissingFile,
    PromptTooLong,
    UnsupportedModality,
    UnsupportedParameter,
    UpstreamError,
    UpstreamMalformed,
    UpstreamRejected,
)
from codriver.core.messages import ChatChunk, ChatRequest, EmbedRequest, Message, TensorRequest, parse_chat
from codriver.engines import openai
from codriver.engines.null import Null, NullConfig
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from tests.contract.upstream import serve
from tests.unit.engines.certificates import Authority
from tests.unit.engines.scripted_server import Server, http, serving, stream

SOON = 5.0
EVERYTHING = ("chat", "completions", "embeddings", "tools", "json_schema", "logprobs")


class Watch:
    """A link observer that writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.bytes = 0

    def sent(self) -> None:
        self.seen.append("sent")

    def received(self, count_bytes: int) -> None:
        self.bytes += count_bytes

    def settled(self) -> None:
        self.seen.append("settled")

    def failed(self, reason: str) -> None:
        self.seen.append(f"failed: {reason}")


@asynccontextmanager
async def engine_at(
    url: str, observer: Watch | None = None, tls: Any = None, **members: Any
) -> AsyncIterator[OpenAIServer]:
    engine = OpenAIServer(OpenAIConfig(url=url, **members), observer, tls)
    try:
        yield engine
    finally:
        await engine.aclose()


def ask(text: str = "hello", **members: Any) -> ChatRequest:
    return parse_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **members}).encode())


async def read(engine: OpenAIServer, request: ChatRequest, deadline: Deadline | None = None) -> list[ChatChunk]:
    return [chunk async for chunk in engine.generate(request, deadline or Deadline.after(SOON))]


def chunk(content: str | None = "hi", finish: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {"id": "c-1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
WHOLE = json.dumps(
    {
        "id": "w-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hi"}, "logprobs": None, "finish_reason": "stop"}
        ],
        "novel_field": {"kept": True},
    }
).encode()


async def failure(*replies: Any, streaming: bool = True, **members: Any) -> CodriverError:
    """The error that a chat request with these members meets at a server with these replies."""
    async with serving(*replies) as server, engine_at(server.url) as engine:
        with pytest.raises(CodriverError) as caught:
            await read(engine, ask(stream=streaming, **members))
    return caught.value


# ---------------------------------------------------------------- what goes out, what comes back


async def test_a_request_goes_out_as_it_came_in_and_chunks_keep_their_bytes() -> None:
    body = b'{ "model":"m", "stream": true, "novel": [1, 2],\n "messages":[{"role":"user","content":"x","odd":1}] }'
    events = (chunk("a"), chunk("b", extra={"kept": 1}), chunk(None, "stop"), DONE)
    async with serving(stream(*events)) as server, engine_at(server.url) as engine:
        got = await read(engine, parse_chat(body))
    assert server.requests[0][2] == body
    assert [b"data: " + c.raw + b"\n\n" for c in got] == list(events[:3])  # type: ignore[operator]
    assert {c.id for c in got} == {"c-1"}


async def test_a_whole_answer_keeps_its_bytes() -> None:
    async with serving(http("200 OK", WHOLE)) as server, engine_at(server.url) as engine:
        (got,) = await read(engine, ask())
    assert (got.raw, got.whole, got.text(), got.finish_reason) == (WHOLE, True, "hi", "stop")


async def test_a_whole_answer_may_lack_what_openai_always_sends() -> None:
    body = b'{"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}]}'
    async with serving(http("200 OK", body)) as server, engine_at(server.url) as engine:
        (got,) = await read(engine, ask())
    assert (got.raw, got.text(), got.finish_reason) == (body, "hi", "length")


async def test_a_whole_answer_may_be_packed_and_a_large_one_in_a_small_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def packed(body: bytes, kind: str = "gzip") -> bytes:
        return http("200 OK", body, extra=f"Content-Encoding: {kind}\r\n")

    whole = gzip.compress(WHOLE)
    async with serving(packed(whole)) as server, engine_at(server.url) as engine:
        (got,) = await read(engine, ask())
    assert (got.raw, got.text()) == (WHOLE, "hi")
    assert server.requests[0][1]["accept-encoding"] == "gzip"
    assert "is packed as 'br'" in (await failure(packed(WHOLE, "br"), streaming=False)).message
    assert "is not gzip" in (await failure(packed(WHOLE), streaming=False)).message
    assert isinstance(await failure(packed(whole[:-9]), streaming=False), EngineDied)
    monkeypatch.setattr(openai, "BODY_LIMIT_BYTES", 5 << 20)
    caught = await failure(packed(gzip.compress(b" " * (80 << 20))), streaming=False)
    assert isinstance(caught, UpstreamMalformed)
    assert "larger than 5242880 bytes" in caught.message


async def test_an_echo_of_the_partial_answer_is_taken_off() -> None:
    request = ask()
    request.continue_from = "The ans"
    for said in (b"The answer", b"wer"):
        body = WHOLE.replace(b'"hi"', b'"' + said + b'"')
        async with serving(http("200 OK", body)) as server, engine_at(server.url, prefill="llama_cpp") as engine:
            (got,) = await read(engine, request)
        assert got.text() == "wer"


async def test_the_configured_model_is_asked_for_and_codriver_options_stay_here() -> None:
    async with serving(http("200 OK", WHOLE)) as server, engine_at(server.url, model="big-model") as engine:
        await read(engine, ask(codriver={"policy": "auto", "session": "s"}, novel=5))
    sent = json.loads(server.requests[0][2])
    assert sent == {"model": "big-model", "messages": [{"role": "user", "content": "hello"}], "novel": 5}
    assert not [name for name in server.requests[0][1] if name.startswith("x-codriver")]


async def test_another_codriver_is_told_the_deadline() -> None:
    clock = ManualClock()
    async with serving(http("200 OK", WHOLE)) as server, engine_at(server.url, peer=True) as engine:
        await read(engine, ask(), Deadline.after(2.5, clock))
    assert server.requests[0][1]["x-codriver-deadline-ms"] == "2500"


async def test_a_request_without_bytes_is_encoded() -> None:
    request = ChatRequest(messages=[Message(role="user", content="x")], model="m", stream=True, temperature=0.0)
    async with serving(stream(chunk("a", "stop"), DONE)) as server, engine_at(server.url) as engine:
        await read(engine, request)
    sent = json.loads(server.requests[0][2])
    assert sent == {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "temperature": 0.0}


@pytest.mark.parametrize(
    ("url", "path"),
    [("", "/v1/chat/completions"), ("/", "/v1/chat/completions"), ("/openai/v1/", "/openai/v1/chat/completions")],
)
async def test_the_address_may_have_a_path(url: str, path: str) -> None:
    async with serving(http("200 OK", WHOLE)) as server, engine_at(server.url + url) as engine:
        await read(engine, ask())
    assert server.requests[0][0] == f"POST {path} HTTP/1.1"


async def test_a_unix_socket(tmp_path: Path) -> None:
    socket = tmp_path / "s.sock"
    async with (
        serving(http("200 OK", WHOLE), unix=str(socket)) as server,
        engine_at("http://localhost", unix_socket=socket) as engine,
    ):
        assert len(await read(engine, ask())) == 1
    assert server.requests[0][1]["host"] == "localhost"


async def test_the_key_is_sent_and_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", "sk-very-secret")
    (tmp_path / "key").write_text("sk-from-file\n")
    reply = http("200 OK", WHOLE)
    async with serving(reply) as server, engine_at(server.url, api_key_env="CLOUD_KEY") as engine:
        await read(engine, ask())
        assert "secret" not in repr(vars(engine)) + repr(engine._config)
    assert server.requests[0][1]["authorization"] == "Bearer sk-very-secret"
    async with serving(reply) as server, engine_at(server.url, api_key_file=tmp_path / "key") as engine:
        await read(engine, ask())
    assert server.requests[0][1]["authorization"] == "Bearer sk-from-file"


async def test_connections_are_kept_and_a_stale_one_is_not_an_error() -> None:
    streamed = stream(chunk("a", "stop"), DONE)

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    watch = Watch()
    async with (
        serving(streamed, streamed, http("200 OK", WHOLE), drop, http("200 OK", WHOLE), keep=True) as server,
        engine_at(server.url, watch) as engine,
    ):
        await read(engine, ask(stream=True))
        await read(engine, ask(stream=True))
        await read(engine, ask())
        assert server.connections == 1
        await read(engine, ask())  # the server drops the kept connection: sent again on a fresh one
    assert server.connections == 2
    assert watch.seen == ["sent", "settled"] * 4


@pytest.mark.parametrize(
    ("style", "extra"), [("llama_cpp", {}), ("vllm", {"continue_final_message": True, "add_generation_prompt": False})]
)
async def test_continuing_in_each_dialect(style: str, extra: dict[str, Any]) -> None:
    request = ask(novel=1)
    request.continue_from = "The ans"
    async with serving(http("200 OK", WHOLE)) as server, engine_at(server.url, prefill=style) as engine:
        assert engine.card.can("prefill")
        await read(engine, request)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "The ans"}]
    assert json.loads(server.requests[0][2]) == {"model": "m", "messages": messages, "novel": 1, **extra}


async def test_continuing_where_the_server_cannot() -> None:
    request = ask()
    request.continue_from = "x"
    async with engine_at("http://127.0.0.1:9") as engine:
        with pytest.raises(UnsupportedParameter, match="'cloud' cannot go on from a partial answer"):
            await read(engine, request)


# ---------------------------------------------------------------- completions and embeddings


async def test_a_text_completion_as_chat_chunks() -> None:
    request = ChatRequest(prompt="Once", model="m", stream=True, logprobs=True, max_completion_tokens=3)
    async with serve(Null(NullConfig(text="upon a time there"))) as upstream, engine_at(upstream.url) as engine:
        answer = Answer()
        for got in await read(engine, request):
            answer.add(got)
        request.stream, request.continue_from = False, " upon"
        (whole,) = await read(engine, request)
    assert json.loads(upstream.bodies[0]) == {
        "prompt": "Once",
        "model": "m",
        "stream": True,
        "logprobs": 1,
        "max_tokens": 3,
    }
    assert json.loads(upstream.bodies[1])["prompt"] == "Once upon"
    choice = answer.completion().choices[0]
    assert (answer.text, choice.finish_reason) == ("upon a time", "length")
    assert [t.token for t in choice.logprobs.content] == ["upon", " a", " time"]  # type: ignore[union-attr]
    assert choice.logprobs.content[0].top_logprobs[0].token == "upon"  # type: ignore[union-attr]
    assert (whole.text(), whole.finish_reason) == (" a time there", "stop")


async def test_logprobs_of_a_completion_in_chat_style() -> None:
    entry = {"token": "hi", "logprob": -0.25, "bytes": None, "top_logprobs": []}
    body = {"choices": [{"text": "hi", "index": 0, "logprobs": {"content": [entry]}, "finish_reason": "stop"}]}
    async with serving(http("200 OK", json.dumps(body).encode())) as server, engine_at(server.url) as engine:
        (got,) = await read(engine, ChatRequest(prompt="x", logprobs=True))
    assert got.choices[0].logprobs.content[0].logprob == -0.25  # type: ignore[union-attr, index]


async def test_embeddings_in_order_as_unit_vectors_from_lists_or_base64() -> None:
    packed = "AAAAQAAAAAA="  # float32 (2.0, 0.0)
    data = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [0.0, 3.0]}]
    body = json.dumps({"data": data, "model": "e", "usage": {"prompt_tokens": 4, "total_tokens": 4}}).encode()
    async with (
        serving(http("200 OK", body)) as server,
        engine_at(server.url, model="e", capabilities=EVERYTHING) as engine,
    ):
        made = await engine.embed(EmbedRequest(input=["a", "b"], dimensions=2), Deadline.after(SOON))
    assert (made.vectors, made.tokens, made.model) == ([[0.0, 1.0], [1.0, 0.0]], 4, "e")
    sent = {"model": "e", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2}
    assert json.loads(server.requests[0][2]) == sent


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (b'{"data": []}', UpstreamMalformed, "0 embeddings"),
        (b'{"data": [{"index": 0, "embedding": [0.0]}]}', UpstreamMalformed, "without a direction"),
        (b'{"data": [{"index": 0, "embedding": "*"}]}', UpstreamMalformed, "not a list of embeddings"),
        (b'{"error": {"message": "out of memory"}}', UpstreamError, "out of memory"),
    ],
)
async def test_embeddings_that_are_none(body: bytes, error: type[CodriverError], words: str) -> None:
    async with serving(http("200 OK", body)) as server, engine_at(server.url, capabilities=EVERYTHING) as engine:
        with pytest.raises(error, match=words):
            await engine.embed(EmbedRequest(input="a"), Deadline.after(SOON))


async def test_what_the_card_does_not_claim_is_not_attempted() -> None:
    async with engine_at("http://127.0.0.1:9") as engine:
        with pytest.raises(UnsupportedModality, match="does not make embeddings"):
            await engine.embed(EmbedRequest(input="a"), Deadline.never())
        with pytest.raises(UnsupportedModality, match="does not run tensor graphs"):
            await engine.infer(TensorRequest(inputs=()), Deadline.never())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (
            "400 Bad Request",
            {"error": {"message": "bad temperature"}},
            UpstreamRejected,
            r"refused the request \(400\): bad temp",
        ),
        (
            "400 Bad Request",
            {"error": {"message": "no", "code": "context_length_exceeded"}},
            PromptTooLong,
            "too long for 'cloud': no",
        ),
        (
            "400 Bad Request",
            {"error": {"code": 400, "message": "request (9 tokens) exceeds the available context size", "type": "x"}},
            PromptTooLong,
            "available context size",
        ),
        (
            "400 Bad Request",
            {"object": "error", "message": "maximum context length is 8"},
            PromptTooLong,
            "context length is 8",
        ),
        (
            "401 Unauthorized",
            {"error": {"message": "Incorrect key: sk-abc"}},
            UpstreamRejected,
            r"refused the API key \(401\)",
        ),
        ("403 Forbidden", {}, UpstreamRejected, r"refused the API key \(403\)"),
        ("404 Not Found", {"error": {"message": "The model `m` does not exist."}}, UpstreamRejected, "does not exist"),
        ("404 Not Found", {"detail": "Not Found"}, UpstreamRejected, "Not Found"),
        ("408 Request Timeout", {}, UpstreamError, r"failed \(408\)"),
        ("429 Too Many Requests", {"error": "slow down"}, EngineBusy, "takes no more requests now: slow down"),
        (
            "500 Internal Server Error",
            {"error": {"message": "CUDA out of memory"}},
            UpstreamError,
            "CUDA out of memory",
        ),
        ("503 Service Unavailable", {"error": {"message": "Loading model"}}, UpstreamError, "Loading model"),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
async def test_refusals(status: str, body: Any, error: type[CodriverError], words: str, streaming: bool) -> None:
    caught = await failure(http(status, json.dumps(body).encode()), streaming=streaming)
    assert type(caught) is error
    assert caught.status != 401
    with pytest.raises(error, match=words):
        raise caught
    assert "sk-abc" not in caught.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 7\r\n", 7.0),
        ("Retry-After-Ms: 250\r\n", 0.25),
        ("Retry-After: Thu, 01 Jan 1970 00:17:10 GMT\r\n", 30.0),  # the manual clock stands at 1000 s
        ("Retry-After: soon\r\n", None),
        ("", None),
    ],
)
async def test_when_to_come_back(header: str, seconds: float | None) -> None:
    clock = ManualClock()
    async with serving(http("429 Too Many Requests", b"", extra=header)) as server:
        engine = OpenAIServer(OpenAIConfig(url=server.url), clock=clock)
        with pytest.raises(EngineBusy, match="it gave no reason") as caught:
            await read(engine, ask(), Deadline.never(clock))
        assert caught.value.retry_after_s == seconds
        assert engine.health().state == "busy"
        assert engine.health().eta_s == (seconds or 1.0)
        await clock.advance(31)
        assert engine.health().state == "ready"
        await engine.aclose()


async def test_plain_text_and_redirects() -> None:
    said = await failure(http("502 Bad Gateway", b"<h1>bad\n gateway</h1>", "text/html"))
    assert said.message == "The server of 'cloud' failed (502): <h1>bad gateway</h1>."
    moved = await failure(http("308 Permanent Redirect", b"", extra="Location: https://else.example/v1\r\n"))
    assert isinstance(moved, UpstreamRejected)
    assert "redirects to https://else.example/v1: configure that address" in moved.message


# ---------------------------------------------------------------- answers that begin well and go wrong


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (
            stream(chunk("a"), b'data: {"error": {"message": "ran out"}}\n\n'),
            UpstreamError,
            "failed in its answer: ran out",
        ),
        (stream(b'event: error\ndata: {"error": "odd"}\n\n'), UpstreamError, "failed in its answer: odd"),
        (stream(chunk("a", "error", error={"message": "gone"})), UpstreamError, "failed in its answer: gone"),
        (http("200 OK", b'{"error": {"message": "later"}}'), UpstreamError, "failed in its answer: later"),
        (http("200 OK", WHOLE), UpstreamMalformed, "answered with 'application/json', not 'text/event-stream'"),
        (http("200 OK", b"<html>", "text/html"), UpstreamMalformed, "a log-in page may stand in between"),
        (stream(chunk("a"), b"data: {oops\n\n"), UpstreamMalformed, "not a chat completion chunk"),
        (stream(chunk("a"), b'data: {"choices": "none"}\n\n'), UpstreamMalformed, "not a chat completion chunk"),
        (stream(), EngineDied, "its stream was empty"),
        (stream(DONE), EngineDied, "its stream was empty"),
        (stream(b": ping\n\n", b": ping\n\n"), EngineDied, "its stream was empty"),
        (stream(chunk("a")), EngineDied, "ended without a finish_reason"),
        (stream(chunk("a"), DONE), EngineDied, "ended without a finish_reason"),
        (stream(chunk("a"), chunk("b")[:-30]), EngineDied, "ended inside an event"),
        (stream(chunk("a"), end=False), EngineDied, "The connection was cut"),
        (stream(chunk("a"), b"data: {", end=False), EngineDied, "The connection was cut"),
        (stream(chunk("a"), end=False) + b"zz\r\n", EngineDied, "its framing broke"),
        (b"", EngineDied, "closed the connection before it answered"),
        (b"HTTP/1.1 200 OK\r\nContent-", EngineDied, "closed the connection before it answered"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", UpstreamMalformed, "does not speak HTTP"),
    ],
)
async def test_broken_streams(reply: bytes, error: type[CodriverError], words: str) -> None:
    caught = await failure(reply)
    assert type(caught) is error
    assert words in caught.message


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (http("200 OK", b'{"error": {"message": "later"}}'), UpstreamError, "failed in its answer: later"),
        (http("200 OK", b"{"), UpstreamMalformed, "not a chat completion"),
        (http("200 OK", WHOLE.replace(b'"stop"', b"null")), UpstreamMalformed, "has no finish_reason"),
        (stream(chunk("a")), UpstreamMalformed, "answered with 'text/event-stream', not 'application/json'"),
        (http("200 OK", WHOLE)[:-20], EngineDied, "The connection was cut"),
    ],
)
async def test_broken_whole_answers(reply: bytes, error: type[CodriverError], words: str) -> None:
    caught = await failure(reply, streaming=False)
    assert type(caught) is error
    assert words in caught.message


@pytest.mark.parametrize(
    "reply",
    [
        stream(b": hello\n\n", chunk("a"), b": keep-alive\n\n", chunk("b", "stop"), DONE),
        stream(chunk("a"), chunk("b", "stop")),
        stream(chunk("a"), chunk("b", "stop"), end=False),  # cut when all had been said
        stream(chunk("a").replace(b"\n", b"\r\n"), chunk("b", "length"), DONE),
        stream(*(bytes([byte]) for byte in chunk("a") + chunk("b", "stop") + DONE)),
        stream(b"event: message\nid: 4\n" + chunk("a"), chunk("b", "stop"), chunk(None, choices=[]), DONE),
    ],
)
async def test_streams_that_look_odd_and_are_complete(reply: bytes) -> None:
    async with serving(reply) as server, engine_at(server.url) as engine:
        assert "".join(got.text() for got in await read(engine, ask(stream=True))) == "ab"


@pytest.mark.parametrize(
    ("mark", "text"), [("mXq3Zt", "ho ho ho"), ("mX", "ho ho ho ho"), ("", "ho ho ho ho"), (None, "ho ho ho ho")]
)
async def test_an_event_that_came_twice_counts_once_where_it_cannot_be_chance(mark: str | None, text: str) -> None:
    marks = {} if mark is None else {"obfuscation": mark}
    again, other = chunk(" ho", **marks), chunk(" ho", obfuscation="another1")
    reply = stream(chunk("ho"), again, again, other, chunk(None, "stop"), DONE)
    async with serving(reply) as server, engine_at(server.url) as engine:
        assert "".join(got.text() for got in await read(engine, ask(stream=True))) == text


async def test_two_choices_are_complete_only_together() -> None:
    def other(finish: str | None) -> bytes:
        return (
            chunk()
            .replace(b'"index": 0', b'"index": 1')
            .replace(b'"finish_reason": null', b'"finish_reason": %s' % (json.dumps(finish).encode()))
        )

    caught = await failure(stream(chunk("a"), other(None), chunk("b", "stop")))
    assert isinstance(caught, EngineDied)
    caught = await failure(stream(chunk("a"), chunk("b", "stop")), n=2)
    assert isinstance(caught, EngineDied)
    async with (
        serving(stream(chunk("a"), other(None), chunk("b", "stop"), other("stop"))) as server,
        engine_at(server.url) as engine,
    ):
        assert len(await read(engine, ask(stream=True, n=2))) == 4


# ---------------------------------------------------------------- the link


async def test_nobody_there_and_no_such_name() -> None:
    async with serving(b"") as server:
        pass
    watch = Watch()
    async with engine_at(server.url, watch) as engine:
        with pytest.raises(EngineUnavailable, match=rf"'cloud' at {server.url} cannot be reached: Connect"):
            await read(engine, ask())
        assert engine.health().state == "down"
        assert "cannot be reached" in engine.health().reason
        engine._clock = ManualClock(engine._down_until_s)
        assert engine.health().state == "ready"  # nobody probes here: the next request has to find out
    assert watch.seen[0] == "sent" and watch.seen[1].startswith("failed: 'cloud' at") and watch.seen[2] == "settled"
    async with engine_at("http://no-such-host.invalid") as engine:
        with pytest.raises(EngineUnavailable, match="The address of 'cloud' cannot be resolved"):
            await read(engine, ask())


async def test_what_the_observer_is_told() -> None:
    watch = Watch()
    async with (
        serving(stream(chunk("a"), chunk("b", "stop"), DONE), stream(chunk("a"), end=False)) as server,
        engine_at(server.url, watch) as engine,
    ):
        await read(engine, ask(stream=True))
        assert watch.seen == ["sent", "settled"]
        assert watch.bytes > len(chunk("a") + chunk("b", "stop") + DONE)
        with pytest.raises(EngineDied):
            await read(engine, ask(stream=True))
    assert watch.seen[2] == "sent" and watch.seen[3].startswith("failed") and watch.seen[4:] == ["settled"]


async def test_a_deadline_fires_even_when_headers_never_come() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    clock, watch = ManualClock(), Watch()
    async with serving(silence) as server, engine_at(server.url, watch) as engine:
        task = asyncio.create_task(read(engine, ask(stream=True), Deadline.after(2.0, clock)))
        await server.asked.wait()
        await clock.advance(1.9)
        assert not task.done()
        await clock.advance(0.2)
        with pytest.raises(DeadlineExceeded, match="before the answer was complete"):
            await task
        with pytest.raises(DeadlineExceeded):
            await read(engine, ask(), Deadline.after(0.05))
        with pytest.raises(DeadlineExceeded, match="before the request was sent"):
            await read(engine, ask(), Deadline.after(-1))
    assert watch.seen == ["sent", "settled"] * 2


async def test_a_deadline_fires_in_mid_stream_and_while_nobody_reads() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(stream(chunk("a"), end=False))
        await reader.read()

    clock = ManualClock()
    async with serving(half) as server, engine_at(server.url) as engine:
        for waiting in (True, False):
            chunks = engine.generate(ask(stream=True), Deadline.after(2.0, clock))
            assert (await anext(chunks)).text() == "a"
            if waiting:
                task = asyncio.ensure_future(anext(chunks))
                await clock.advance(3.0)
                with pytest.raises(DeadlineExceeded):
                    await task
            else:
                await clock.advance(3.0)
                with pytest.raises(DeadlineExceeded):
                    await anext(chunks)
        assert engine.health().queue == 0


async def test_a_deadline_after_the_last_word_does_no_harm() -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(stream(chunk("a", "stop"), end=False))
        await reader.read()

    clock = ManualClock()
    async with serving(hold) as server, engine_at(server.url) as engine:
        chunks = engine.generate(ask(stream=True), Deadline.after(2.0, clock))
        await anext(chunks)
        rest = asyncio.ensure_future(anext(chunks, None))
        await clock.advance(3.0)
        assert await rest is None


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silence) as server, engine_at(server.url) as engine:
        task = asyncio.create_task(read(engine, ask(stream=True)))
        await server.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_closes_the_connection_at_once(how: str) -> None:
    endless = Null(NullConfig(text="word " * 100_000, per_token_ms=1))
    watch = Watch()
    async with serve(endless) as upstream, engine_at(upstream.url, watch) as engine:
        chunks = engine.generate(ask(stream=True), Deadline.never())
        await anext(chunks)
        if how == "close":
            await chunks.aclose()  # type: ignore[attr-defined]
        else:

            async def rest() -> None:
                async for _ in chunks:
                    pass

            task = asyncio.create_task(rest())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(upstream.left.wait(), SOON)
        assert watch.seen == ["sent", "settled"]
        assert engine.health().queue == 0
        assert endless.health().queue == 0


# ---------------------------------------------------------------- TLS


async def test_mutual_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server_tls = authority.server(authority.issue("cloud"), mutual=True)
    client = authority.client(authority.issue("vehicle"))
    async with serving(http("200 OK", WHOLE), tls=server_tls) as server, engine_at(server.url, tls=client) as engine:
        assert len(await read(engine, ask())) == 1


async def tls_failure(server_tls: Any, client_tls: Any, *errors: type[CodriverError]) -> tuple[str, Watch]:
    watch = Watch()
    async with (
        serving(http("200 OK", WHOLE), tls=server_tls) as server,
        engine_at(server.url, watch, client_tls) as engine,
    ):
        with pytest.raises(errors or EngineUnavailable) as caught:
            await read(engine, ask())
    return caught.value.message, watch


async def test_bad_certificates_are_named_and_the_link_is_not_blamed(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    good = authority.server(authority.issue("good"))
    message, watch = await tls_failure(authority.server(authority.issue("old", expired=True)), authority.client())
    assert "its certificate has expired; renew it" in message
    assert watch.seen == ["sent", "settled"]
    message, _ = await tls_failure(good, stranger.client())
    assert "its certificate is not trusted here" in message
    message, _ = await tls_failure(good, None)
    assert "its certificate is not trusted here" in message


async def test_our_own_certificate_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server_tls = authority.server(authority.issue("cloud"), mutual=True)
    for client in (authority.client(), authority.client(authority.issue("old", expired=True))):
        # TLS 1.3 tells the client only after its handshake; a reset on its heels may swallow that alert.
        message, _ = await tls_failure(server_tls, client, EngineUnavailable, EngineDied)
        assert "refused our certificate" in message


async def test_plain_http_where_tls_is_expected(tmp_path: Path) -> None:
    async with serve(Null()) as upstream:
        url = upstream.url.replace("http:", "https:")
        async with engine_at(url, tls=Authority(tmp_path).client()) as engine:
            with pytest.raises(EngineUnavailable, match="The TLS connection to 'cloud' at https"):
                await read(engine, ask())


# ---------------------------------------------------------------- health, probe, discovery, configuration


async def test_a_probe_measures_the_way_there_and_back_and_mends_the_health() -> None:
    async with serving(b"") as gone:
        pass
    async with engine_at(gone.url) as engine:
        with pytest.raises(EngineUnavailable):
            await engine.probe(Deadline.after(SOON))
    async with (
        serving(b"", http("404 Not Found", b""), http("503 Service Unavailable", b""), http("200 OK", b"")) as server,
        engine_at(server.url) as engine,
    ):
        engine._note(EngineUnavailable("was unreachable"))
        with pytest.raises(EngineDied):
            await engine.probe(Deadline.after(SOON))
        assert engine.health().state == "down"
        for _ in range(3):
            assert 0 < await engine.probe(Deadline.after(SOON)) < SOON
        assert engine.health().state == "ready"
    assert server.requests[0][0] == "GET /health HTTP/1.1"


async def test_a_peer_that_is_no_codriver_is_asked_in_words_to_go_on(caplog: pytest.LogCaptureFixture) -> None:
    """A server that takes the part for a turn that is over would begin again, and the text would be spliced."""
    there, ill, gone = (http(status, b"") for status in ("200 OK", "503 Service Unavailable", "404 Not Found"))
    pages = (gone, gone, ill, gone, gone, there, gone, gone, gone, gone, there)
    async with (
        serving(*pages) as server,
        engine_at(server.url, peer=True, prefill="peer", health_path="/healthz") as engine,
    ):
        seen = []
        for _ in pages:
            await engine.probe(Deadline.after(SOON))
            seen.append(engine.card.can("prefill"))
    assert seen == [True] * 8 + [False] * 2 + [True]
    assert [record.getMessage() for record in caplog.records] == [
        "the cloud refuses /healthz and seems to be no Codriver: it is asked in words to go on with a partial answer. "
        "Set cloud.prefill to what the server can, or to none."
    ]


async def test_one_that_was_said_to_be_another_keeps_what_it_was_said_to_can() -> None:
    for prefill in ("vllm", "llama_cpp"):
        async with serving(http("404 Not Found", b"")) as server, engine_at(server.url, prefill=prefill) as engine:
            for _ in range(4):
                await engine.probe(Deadline.after(SOON))
            assert engine.card.can("prefill")


async def test_discovery_completes_the_card() -> None:
    async with serve(Null(NullConfig(id="the-model", context_tokens=4096))) as upstream:
        async with engine_at(upstream.url) as engine:
            card = await engine.discover(Deadline.after(SOON))
            assert (card.model, card.context_tokens, engine.card) == ("the-model", 4096, card)
        async with engine_at(upstream.url, model="other") as engine:
            with pytest.raises(UpstreamRejected, match="has no model 'other'; it has: the-model"):
                await engine.discover(Deadline.after(SOON))


async def test_discovery_of_something_else() -> None:
    async with serving(http("200 OK", b'{"models": 3}')) as server, engine_at(server.url) as engine:
        with pytest.raises(UpstreamMalformed, match="not a list of models"):
            await engine.discover(Deadline.after(SOON))


@pytest.mark.parametrize(
    ("members", "error", "words"),
    [
        ({"url": "cloud.example"}, BadConfigValue, "'url' is 'cloud.example'; allowed: an address such as"),
        ({"url": "http://x:y/v1"}, BadConfigValue, "'url' is 'http://x:y/v1'; allowed: an address such as"),
        ({"url": "http://a..b/v1"}, BadConfigValue, "'url' is 'http://a..b/v1'; allowed: an address such as"),
        ({"url": "http://x/a b"}, BadConfigValue, "'url' is 'http://x/a b'; allowed: an address such as"),
        (
            {"url": "http://me:secret@x"},
            BadConfigValue,
            "'url' holds a user or a password; the key goes to api_key_env",
        ),
        (
            {"url": "http://x", "api_key_env": "ODD_KEY"},
            BadConfigValue,
            "The API key of 'cloud' holds a space or a sign",
        ),
        (
            {"url": "http://x", "health_path": "/a b"},
            BadConfigValue,
            "'health_path' is '/a b'; allowed: a path such as",
        ),
        (
            {"url": "http://x", "api_key_env": "NO_SUCH_KEY"},
            BadConfigValue,
            "environment variable NO_SUCH_KEY: it is not set",
        ),
        (
            {"url": "http://x", "api_key_file": Path("/no/such")},
            MissingFile,
            "API key file /no/such of 'cloud' cannot be read",
        ),
        ({"url": "http://x", "capabilities": ("chat", "sing")}, BadConfigValue, "holds 'sing'; allowed: chat"),
    ],
)
def test_bad_configuration(
    members: dict[str, Any], error: type[CodriverError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD_KEY", "sk-1\r\nX-Injected: 1")
    with pytest.raises(error) as caught:
        OpenAIServer(OpenAIConfig(**members))
    assert words in caught.value.message


async def test_closed_means_closed() -> None:
    server: Server
    async with serving(http("200 OK", WHOLE)) as server, engine_at(server.url) as engine:
        await engine.aclose()
        await engine.aclose()
        assert engine.health().state == "down"
        with pytest.raises(EngineUnavailable, match="'cloud' is closed"):
            await read(engine, ask())
    assert not server.requests
