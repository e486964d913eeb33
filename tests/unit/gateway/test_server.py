"""Listening, slow and vanishing clients, and the end: over real sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from codriver.core.errors import BadConfigValue, CertificateError, PortInUse
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.gateway.server import is_loopback
from codriver.observe.metrics import Metrics

from .serving import CHAT, HELLO, STREAM, Reply, Scripted, ask, chunk, get, http, running, speak

PATH = "/v1/chat/completions"


def make(engine: Scripted, config: GatewayConfig) -> Gateway:
    return Gateway({"auto": engine}, "auto", config, Metrics())


async def open_stream(port: int, body: bytes = STREAM) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(http("POST", PATH, body))
    return reader, writer


async def until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not become true within five seconds")


# ---------------------------------------------------------------- starting


async def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = GatewayConfig(port=port)
        with pytest.raises(PortInUse, match=rf"Port {port} on 127.0.0.1 is in use.*--port"):
            await serve(make(Scripted(), config), config)


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        ({"host": "0.0.0.0"}, CertificateError, "codriver keys init"),
        ({"host": "::"}, CertificateError, "only for loopback"),
        ({"host": "no.such.host.invalid"}, CertificateError, "only for loopback"),
        ({"tls_cert": "a.crt"}, BadConfigValue, "tls_key"),
        ({"tls_client_ca": "a.crt"}, BadConfigValue, "tls_cert"),
    ],
)
async def test_what_cannot_be_listened_on(settings: dict[str, Any], kind: Any, sentence: str) -> None:
    config = GatewayConfig(port=0, **settings)
    with pytest.raises(kind, match=sentence):
        await serve(make(Scripted(), config), config)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("car", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


async def test_the_urls_hold_the_real_port() -> None:
    async with running(Scripted(*HELLO), host="localhost") as server:
        assert server.port != 0
        assert server.urls == (f"http://localhost:{server.port}",)


# ---------------------------------------------------------------- clients


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_leaves_stops_the_engine(body: bytes) -> None:
    engine = Scripted(chunk("Hel"), asyncio.Event())
    metrics = Metrics()
    async with running(engine, metrics) as server:
        _, writer = await open_stream(server.port, body)
        await engine.started.wait()
        writer.close()
        await asyncio.wait_for(engine.closed.wait(), 2)
        await until(lambda: b'status="499"} 1.0' in metrics.render()[0])


async def test_a_client_that_leaves_before_its_body_is_complete() -> None:
    engine = Scripted(*HELLO)
    metrics = Metrics()
    async with running(engine, metrics) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(http("POST", PATH, CHAT)[:-5])
        await writer.drain()
        writer.close()
        await until(lambda: b'status="499"} 1.0' in metrics.render()[0])
    assert engine.requests == []


async def test_a_client_that_does_not_read_is_given_up() -> None:
    engine = Scripted(*[chunk("x" * 8_000_000) for _ in range(5)])
    metrics = Metrics()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with running(engine, metrics, request_limit_s=0.3, grace_s=0.0, head_timeout_s=0.2) as server:
            client.connect(("127.0.0.1", server.port))
            client.sendall(http("POST", PATH, STREAM))
            await asyncio.wait_for(engine.closed.wait(), 5)
            await until(lambda: b'status="504"} 1.0' in metrics.render()[0])
            assert server.open_connections == 1
            await until(lambda: server.open_connections == 0)


async def test_slow_headers_are_refused() -> None:
    async with running(Scripted(*HELLO), head_timeout_s=0.05) as server:
        reply = await speak(server.port, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
        silent = await speak(server.port)
    assert reply.status == 408
    assert "not complete within 0.05 seconds" in json.loads(reply.body)["error"]["message"]
    assert silent.status == 0


async def test_a_slow_body_is_refused() -> None:
    async with running(Scripted(*HELLO), body_timeout_s=0.05) as server:
        reply = await speak(server.port, http("POST", PATH, CHAT)[:-5])
    assert reply.status == 400
    assert "not complete within 0.05 seconds" in json.loads(reply.body)["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [["a: " + "x" * 5000], [f"h{n}: 1" for n in range(30)], ["a: " + "x" * 300_000]],
    ids=["long", "many", "endless"],
)
async def test_too_much_head_is_refused(headers: list[str]) -> None:
    async with running(Scripted(*HELLO), head_limit_bytes=4096, head_limit_count=20) as server:
        reply = await ask(server.port, PATH, CHAT, *headers)
    assert reply.status == 431
    assert "4096 bytes or more than 20" in json.loads(reply.body)["error"]["message"]


async def test_a_head_without_an_end_is_refused() -> None:
    async with running(Scripted(*HELLO), head_limit_bytes=4096) as server:
        reply = await speak(server.port, b"GET / HTTP/1.1\r\nx: ", *[b"y" * 1000 for _ in range(5)])
    assert reply.status == 431


async def test_one_connection_too_many_is_closed() -> None:
    async with running(Scripted(*HELLO), max_connections=1) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(http("GET", "/healthz").replace(b"Connection: close\r\n", b""))
        await asyncio.sleep(0.05)
        try:
            second = await get(server.port, "/healthz")
        except ConnectionError:
            second = Reply(b"")
        writer.close()
    assert second.status == 0


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with running(Scripted(*HELLO)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(3):
            writer.write(http("POST", PATH, CHAT).replace(b"Connection: close\r\n", b""))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert b"Hello" in await reader.readexactly(length)
        writer.close()


# ---------------------------------------------------------------- the end


async def test_drain_lets_an_open_stream_end() -> None:
    hold = asyncio.Event()
    engine = Scripted(chunk("Hel"), hold, chunk("lo", "stop"))
    config = GatewayConfig(port=0, drain_s=20)
    server = await serve(make(engine, config), config)
    kept_reader, kept = await asyncio.open_connection("127.0.0.1", server.port)
    kept.write(http("GET", "/healthz").replace(b"Connection: close\r\n", b""))
    await kept_reader.readuntil(b"}}}")
    reader, writer = await open_stream(server.port)
    await reader.readuntil(b"Hel")
    drained = asyncio.create_task(server.drain())
    await asyncio.sleep(0.02)
    kept.write(http("POST", PATH, CHAT).replace(b"Connection: close\r\n", b"") + http("GET", "/healthz"))
    refused = await kept_reader.read()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    hold.set()
    rest = await reader.read()
    await drained
    writer.close()
    kept.close()
    assert b"[DONE]" in rest
    assert b"takes no new requests" in refused
    assert b'"status":"draining"' in refused


async def test_drain_cuts_what_takes_too_long() -> None:
    engine = Scripted(chunk("Hel"), asyncio.Event())
    config = GatewayConfig(port=0, drain_s=0.05)
    server = await serve(make(engine, config), config)
    reader, writer = await open_stream(server.port)
    await reader.readuntil(b"Hel")
    await server.drain()
    rest = await reader.read()
    writer.close()
    assert b"The server is stopping; the answer was cut" in rest
    assert b"[DONE]" not in rest
    assert engine.closed.is_set()


async def test_a_signal_drains() -> None:
    hold = asyncio.Event()
    engine = Scripted(chunk("Hel"), hold, chunk("lo", "stop"))
    config = GatewayConfig(port=0)
    server = await serve(make(engine, config), config)
    collector = gc.get_threshold()
    running_ = asyncio.create_task(server.until_signal())
    reader, writer = await open_stream(server.port)
    await reader.readuntil(b"Hel")
    assert gc.get_threshold() != collector
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.02)
    hold.set()
    assert b"[DONE]" in await reader.read()
    await asyncio.wait_for(running_, 5)
    writer.close()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (collector, 0)


async def test_a_server_does_not_list_its_generators_and_still_closes_one_that_nobody_did() -> None:
    closed = asyncio.Event()

    async def left_open() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.set()

    config = GatewayConfig(port=0)
    server = await serve(make(Scripted(), config), config)
    hooks = sys.get_asyncgen_hooks()
    assert hooks.firstiter is not None
    running_ = asyncio.create_task(server.until_signal())
    await asyncio.sleep(0)
    assert sys.get_asyncgen_hooks() == (None, hooks.finalizer)
    stream = left_open()
    assert await anext(stream) == 1
    del stream
    gc.collect()
    await asyncio.wait_for(closed.wait(), 5)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running_, 5)
    assert sys.get_asyncgen_hooks() == hooks


async def test_a_second_signal_cuts() -> None:
    engine = Scripted(chunk("Hel"), asyncio.Event())
    config = GatewayConfig(port=0, drain_s=600)
    server = await serve(make(engine, config), config)
    running_ = asyncio.create_task(server.until_signal())
    reader, writer = await open_stream(server.port)
    await reader.readuntil(b"Hel")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
    assert b"the answer was cut" in await reader.read()
    await asyncio.wait_for(running_, 5)
    writer.close()
