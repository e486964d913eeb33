"""HTTP/1.1 as a connection speaks it, over real sockets: any cut of the bytes, any order of requests, any client."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.gateway import GatewayConfig
from codriver.gateway.connection import Connection, Shared
from codriver.gateway.exchange import Receive, Scope, Send

from .serving import CHAT, HELLO, STREAM, Scripted, ask, chunk, http, running, speak

PATH = "/v1/chat/completions"


def kept(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """A request whose connection stays open."""
    return http(method, path, body, *headers).replace(b"Connection: close\r\n", b"")


@asynccontextmanager
async def listening(app: Any, **limits: Any) -> AsyncIterator[tuple[int, Shared]]:
    """``app`` behind connections alone, without a gateway."""
    shared = Shared(app, GatewayConfig(**limits), b"server: test\r\n")
    server = await asyncio.get_running_loop().create_server(lambda: Connection(shared), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], shared
    finally:
        server.close()
        for connection in list(shared.connections):
            connection.transport.abort()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what was asked, once the whole body is there."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    told = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} ".encode() + body
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(told)).encode())]}
    )
    await send({"type": "http.response.body", "body": told})


THREE = kept("POST", "/a?x=1", b"first") + kept("GET", "/b%20c") + http("POST", "/d", b"last")
ANSWERS = [b"POST /a x=1 first", b"GET /b c  ", b"POST /d  last"]


def bodies(raw: bytes) -> list[bytes]:
    """The bodies of answers that state their length."""
    found: list[bytes] = []
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append(raw[:length])
        raw = raw[length:]
    return found


async def talk(port: int, pieces: list[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    raw = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return raw


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, len(THREE) - 1), max_size=12).map(sorted))
def test_any_cut_of_the_bytes_gives_the_same_answers(cuts: list[int]) -> None:
    async def main() -> bytes:
        edges = [0, *cuts, len(THREE)]
        async with listening(echo) as (port, _):
            return await talk(port, [THREE[a:b] for a, b in itertools.pairwise(edges)])

    assert bodies(asyncio.run(main())) == ANSWERS


async def test_a_byte_at_a_time() -> None:
    async with listening(echo) as (port, _):
        raw = await talk(port, [THREE[at : at + 1] for at in range(len(THREE))])
    assert bodies(raw) == ANSWERS


async def test_a_pipelined_request_waits_for_the_answer_before_it() -> None:
    hold = asyncio.Event()
    begun: list[str] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])
        if scope["path"] == "/a":
            await hold.wait()
        await echo(scope, receive, send)

    async with listening(slow) as (port, _):
        talking = asyncio.create_task(talk(port, [THREE]))
        await asyncio.sleep(0.05)
        assert begun == ["/a"]
        hold.set()
        assert bodies(await talking) == ANSWERS


async def test_a_client_is_told_to_go_on_only_when_its_body_is_wanted() -> None:
    async with running(Scripted(*HELLO), body_limit_bytes=1000) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        whole = http("POST", PATH, CHAT, "Expect: 100-continue")
        head, _, body = whole.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert b"Hello" in await reader.read()
        writer.close()
        too_large = await speak(server.port, head.replace(b"Length: ", b"Length: 99") + b"\r\n\r\n")
    assert too_large.status == 413


async def test_an_old_client_gets_a_stream_without_chunks_that_ends_with_the_connection() -> None:
    request = http("POST", PATH, STREAM).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with running(Scripted(*HELLO)) as server:
        reply = await speak(server.port, request)
    assert "transfer-encoding" not in reply.headers
    assert reply.headers["connection"] == "close"
    assert reply.body.startswith(b"data: {")
    assert reply.body.endswith(b"data: [DONE]\n\n")


async def test_head_has_the_headers_and_no_body() -> None:
    async with running(Scripted(*HELLO)) as server:
        reply = await speak(server.port, http("HEAD", "/healthz"))
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) > 10


@pytest.mark.parametrize(
    "offer",
    [
        ["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        ["Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==", "Sec-WebSocket-Version: 13"],
    ],
)
async def test_an_offer_of_another_protocol_is_answered_over_this_one(offer: list[str]) -> None:
    request = http("GET", "/healthz", b"", *offer).replace(b"Connection: close", b"Connection: Upgrade")
    async with running(Scripted(*HELLO), head_timeout_s=0.4, idle_timeout_s=0.2) as server:
        reply = await speak(server.port, request)
    assert reply.status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        http("POST", PATH, CHAT, "Transfer-Encoding: chunked", f"Content-Length: {len(CHAT)}"),
        http("POST", PATH, CHAT, "Content-Length: 3"),
        http("POST", PATH, CHAT, "Transfer-Encoding: gzip"),
        http("GET", "/healthz", b"", "Bad Header: 1"),
        http("GET", "/healthz", b"", "a: 1\x00"),
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"CONNECT upstream:443 HTTP/1.1\r\nHost: upstream\r\n\r\n",
    ],
    ids=["both lengths", "two lengths", "gzip", "name", "nul", "version", "connect"],
)
async def test_what_could_be_read_in_two_ways_is_refused(request_bytes: bytes) -> None:
    engine = Scripted(*HELLO)
    async with running(engine) as server:
        reply = await speak(server.port, request_bytes)
    assert reply.status == 400
    assert "not a valid HTTP/1.1 request" in json.loads(reply.body)["error"]["message"]
    assert engine.requests == []


async def test_a_bad_request_behind_a_good_one_does_not_cost_the_answer() -> None:
    hold = asyncio.Event()
    async with running(Scripted(chunk("Hel"), hold, chunk("lo", "stop"))) as server:
        talking = asyncio.create_task(talk(server.port, [kept("POST", PATH, STREAM), b"GARBAGE\r\n\r\n"]))
        await asyncio.sleep(0.05)
        hold.set()
        raw = await talking
    assert b"data: [DONE]" in raw
    assert raw.endswith(b"0\r\n\r\n")
    assert raw.count(b"HTTP/1.1") == 1


async def test_an_address_without_a_path_is_the_root() -> None:
    async with listening(echo) as (port, _):
        reply = await speak(port, http("GET", "http://car"))
    assert reply.body == b"GET /  "


async def test_an_idle_connection_is_closed() -> None:
    async with running(Scripted(*HELLO), idle_timeout_s=0.1) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(kept("POST", PATH, CHAT))
        await reader.readuntil(b"}]")
        assert server.open_connections == 1
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert server.open_connections == 0


async def test_a_client_that_sends_faster_than_it_is_read_is_held_back() -> None:
    wanted, seen = asyncio.Event(), 0

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal seen
        await wanted.wait()
        more = True
        while more:
            message = await receive()
            seen += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    body = b"x" * 20_000_000
    async with listening(late) as (port, shared):
        talking = asyncio.create_task(talk(port, [http("POST", "/", body)]))
        await asyncio.sleep(0.2)
        (connection,) = shared.connections
        assert connection._answering is not None
        assert connection._answering.unread < 1_000_000
        wanted.set()
        raw = await talking
    assert raw.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert b"chunked" not in raw
    assert seen == len(body)


async def test_an_answer_waits_for_a_client_that_reads_slowly() -> None:
    sent = 0

    async def much(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"y" * 100_000, "more_body": True})
            sent += 100_000
        await send({"type": "http.response.body"})

    async with listening(much) as (port, _):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(http("GET", "/"))
            await asyncio.sleep(0.2)
            assert sent < 19_000_000
            client.setblocking(False)
            got, loop = 0, asyncio.get_running_loop()
            while data := await loop.sock_recv(client, 1 << 20):
                got += len(data)
    assert got > sent == 20_000_000


@pytest.mark.parametrize(
    ("headers", "body"),
    [([(b"content-length", b"5")], b"four"), ([(b"content-length", b"3")], b"four"), ([(b"x", b"a\r\nb: c")], b"")],
    ids=["too short", "too long", "two lines"],
)
async def test_an_answer_that_would_lie_is_cut(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    told: list[str] = []

    async def wrong(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        except RuntimeError as error:
            told.append(str(error))

    async with listening(wrong) as (port, _):
        reply = await speak(port, http("GET", "/"))
    assert reply.status == 0
    assert len(told) == 1


async def test_a_stream_that_its_application_leaves_is_cut() -> None:
    async def leaves(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})

    async with listening(leaves) as (port, _):
        reply = await speak(port, http("GET", "/"))
    assert b"part" in reply.body
    assert not reply.body.endswith(b"0\r\n\r\n")


async def test_receive_tells_when_the_client_has_left() -> None:
    told: list[str] = []
    done = asyncio.Event()

    async def listens(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            told.append((await receive())["type"])
            try:
                await receive()
            except asyncio.CancelledError:
                told.append("cancelled")
            told.append((await receive())["type"])
        finally:
            done.set()

    async with listening(listens) as (port, shared):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(http("GET", "/"))
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.wait_for(done.wait(), 5)
        await asyncio.sleep(0)
        assert not shared.tasks
    assert told == ["http.request", "cancelled", "http.disconnect"]


async def test_the_next_request_is_taken_after_one_whose_body_nobody_wanted() -> None:
    async with running(Scripted(*HELLO), api_keys=("k",)) as server:
        refused = kept("POST", PATH, b"x" * 300_000)
        raw = await talk(server.port, [refused, http("POST", PATH, CHAT, "Authorization: Bearer k")])
    assert raw.startswith(b"HTTP/1.1 401 ")
    assert b"HTTP/1.1 200 OK" in raw
    assert b"Hello" in raw


async def test_many_at_once() -> None:
    async with running({"auto": Scripted(chunk("Hello", "stop"))}) as server:
        replies = await asyncio.gather(*(ask(server.port, PATH, CHAT) for _ in range(200)))
    assert {reply.status for reply in replies} == {200}
