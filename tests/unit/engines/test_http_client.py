"""The HTTP client against servers that say exactly the bytes they are told, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from codriver.engines import http_client
from codriver.engines.http_answer import (
    HEAD_LIMIT_BYTES,
    Answer,
    CannotConnect,
    ConnectTimedOut,
    Disconnected,
    HttpFailure,
    NotHttp,
)
from codriver.engines.http_client import HIGH_WATER_BYTES, Connection
from codriver.engines.http_pool import Place, Pool
from tests.unit.engines.certificates import Authority
from tests.unit.engines.scripted_server import Server, http, serving, stream

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = http("200 OK", b"ok")
SOON = 5.0
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@asynccontextmanager
async def pool_at(url: str, **members: Any) -> AsyncIterator[Pool]:
    pool = Pool(Place(url, **members))
    try:
        yield pool
    finally:
        await pool.aclose()


async def body_of(connection: Connection) -> bytes:
    pieces = []
    while piece := await connection.read():
        pieces.append(piece)
    return b"".join(pieces)


def answer_of(connection: Connection) -> Answer:
    assert connection.answer is not None
    return connection.answer


async def get(pool: Pool, bodyless: bool = False) -> tuple[int, bytes]:
    """Status and body of one exchange, which is then released."""
    connection = await pool.exchange(GET, None, bodyless)
    try:
        body = await body_of(connection)
    except BaseException:
        connection.abort()
        raise
    connection.release()
    return answer_of(connection).status, body


async def turns(condition: Any) -> None:
    """Let the loop run until ``condition()`` holds."""
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


def in_pieces(reply: bytes, size: int) -> Any:
    async def send(_: Reader, writer: Writer) -> None:
        for start in range(0, len(reply), size):
            writer.write(reply[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)

    return send


# ---------------------------------------------------------------- bodies

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WITH_TRAILERS = CHUNKED + b"5;name=value\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "status", "body", "kept"),
    [
        (http("200 OK", b"hello"), 200, b"hello", True),
        (http("200 OK", b""), 200, b"", True),
        (stream(b"one", b"two"), 200, b"onetwo", True),
        (WITH_TRAILERS, 200, b"hello!", True),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end", False),
        (b"HTTP/1.0 200 OK\r\n\r\nold", 200, b"old", False),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok", True),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK, 200, b"ok", True),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
async def test_an_answer_in_every_framing_and_in_any_pieces(
    reply: bytes, status: int, body: bytes, kept: bool, size: int
) -> None:
    async with serving(in_pieces(reply, size), OK, keep=kept) as server, pool_at(server.url) as pool:
        assert await get(pool) == (status, body)
        assert len(pool._idle) == kept
        assert await get(pool) == (200, b"ok")
    assert server.connections == (1 if kept else 2)


async def test_a_head_has_no_body_whatever_it_says() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"
    async with serving(head, OK, keep=True) as server, pool_at(server.url) as pool:
        assert await get(pool, bodyless=True) == (200, b"")
        assert await get(pool) == (200, b"ok")
    assert server.connections == 1


async def test_headers_come_in_lower_case_and_trailers_are_none() -> None:
    reply = b"HTTP/1.1 200 OK\r\nX-Kind:  a b \r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Kind: late\r\n\r\n"
    async with serving(reply) as server, pool_at(server.url) as pool:
        connection = await pool.exchange(GET, None)
        assert await body_of(connection) == b""
        assert answer_of(connection).headers == {b"x-kind": b"a b", b"transfer-encoding": b"chunked"}
        connection.release()


async def test_a_large_request_goes_out_whole() -> None:
    body = bytes(range(256)) * 4096
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(OK) as server, pool_at(server.url) as pool:
        connection = await pool.exchange(head, body)
        connection.release()
    assert server.requests[0][2] == body


# ---------------------------------------------------------------- answers that are none

LONG = b"HTTP/1.1 200 OK\r\n" + b"X-Long: 0123456789abcdef\r\n" * (HEAD_LIMIT_BYTES // 20) + b"\r\n"


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", NotHttp, "Expected HTTP/"),
        (LONG, NotHttp, "its framing is longer than 65536 bytes"),
        (LONG[:-2], NotHttp, "is longer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * (HEAD_LIMIT_BYTES + 10), NotHttp, "is longer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, NotHttp, "is longer"),
        (CHUNKED + b"2\r\nok\r\n0\r\n" + b"X-Trailer: 0123456789\r\n" * 4000, NotHttp, "is longer"),
        (CHUNKED + b"2;" + b"x" * (HEAD_LIMIT_BYTES * 8), NotHttp, "is longer"),
        (CHUNKED + b"5\r\nhello\r\nzz\r\n", NotHttp, "Invalid character in chunk size"),
        (CHUNKED + b"fffffffffffffffffff\r\n", NotHttp, "Chunk size overflow"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", NotHttp, "Content-Length"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            NotHttp,
            "Content-Len",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", NotHttp, "Content-Length"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            NotHttp,
            "switched to another protocol",
        ),
        (b"", Disconnected, "before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\nContent-", Disconnected, "before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", Disconnected, "before the answer was complete"),
        (CHUNKED + b"9\r\nhalf", Disconnected, "before the answer was complete"),
        (CHUNKED + b"4\r\nhalf\r\n", Disconnected, "before the answer was complete"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Disconnected, "before the answer was complete"),
    ],
)
@pytest.mark.parametrize("size", [997, 1 << 20])
async def test_answers_that_are_none(reply: bytes, error: type[HttpFailure], words: str, size: int) -> None:
    async with serving(in_pieces(reply, size)) as server, pool_at(server.url) as pool:
        with pytest.raises(error, match=words):
            await get(pool)
        assert not pool._idle
    assert server.connections == 1


async def test_what_came_before_a_cut_is_given_first() -> None:
    async with serving(CHUNKED + b"4\r\nhalf\r\n") as server, pool_at(server.url) as pool:
        connection = await pool.exchange(GET, None)
        await turns(lambda: not connection.open)
        assert await connection.read() == b"half"
        with pytest.raises(Disconnected):
            await connection.read()


async def test_a_reset_in_the_body() -> None:
    async def reset(_: Reader, writer: Writer) -> None:
        writer.write(CHUNKED + b"4\r\nhalf\r\n")
        await writer.drain()
        got.set()
        await asyncio.sleep(0)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    got = asyncio.Event()
    async with serving(reset) as server, pool_at(server.url) as pool:
        with pytest.raises(Disconnected) as caught:
            await get(pool)
        assert isinstance(caught.value.__cause__, (ConnectionResetError, type(None)))


# ---------------------------------------------------------------- which connections are used again


@pytest.mark.parametrize(
    "reply",
    [
        OK + b"junk",
        OK + OK,
        OK + b"\x00\x01",
        stream(b"ok") + b"more",
        b"HTTP/1.1 204 No Content\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok" + OK,
    ],
)
async def test_what_follows_an_answer_does_it_no_harm_and_ends_the_connection(reply: bytes) -> None:
    async with serving(reply, OK, keep=True) as server, pool_at(server.url) as pool:
        assert (await get(pool))[0] in (200, 204)
        assert await get(pool) == (200, b"ok")
    assert server.connections == 2


async def test_bytes_on_an_idle_connection_end_it() -> None:
    later = asyncio.Event()

    async def twice(_: Reader, writer: Writer) -> None:
        writer.write(OK)
        await later.wait()
        writer.write(OK.replace(b"ok", b"xx"))

    async with serving(twice, OK, keep=True) as server, pool_at(server.url) as pool:
        assert await get(pool) == (200, b"ok")
        later.set()
        await turns(lambda: not pool._idle)
        assert await get(pool) == (200, b"ok")
    assert server.connections == 2


async def test_an_idle_connection_that_the_server_closes_leaves_the_pool() -> None:
    async with serving(OK) as server, pool_at(server.url) as pool:
        await get(pool)
        await turns(lambda: not pool._all)
        assert not pool._idle
        await get(pool)
    assert server.connections == 2


async def test_a_stale_connection_is_replaced_but_an_answer_that_began_is_not_asked_for_again() -> None:
    async def drop(_: Reader, writer: Writer) -> None:
        writer.close()

    async def begin(_: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 2")
        writer.close()

    async with serving(OK, drop, OK, begin, keep=True) as server, pool_at(server.url) as pool:
        assert [await get(pool), await get(pool)] == [(200, b"ok")] * 2
        assert (server.connections, len(server.requests)) == (2, 3)
        with pytest.raises(Disconnected):
            await get(pool)
        assert len(server.requests) == 4
        with pytest.raises(Disconnected):  # fresh, so not stale
            await get(pool)
    assert len(server.requests) == 5


async def test_idle_connections_are_closed_in_time_and_the_newest_is_used_first() -> None:
    async with serving(OK, keep=True) as server, pool_at(server.url, keepalive_s=1e9) as pool:
        first, second = [await pool.exchange(GET, None) for _ in range(2)]
        for connection in (first, second):
            await body_of(connection)
            connection.release()
        assert pool._kept(asyncio.get_running_loop()) is second
        pool.give_back(second)
        first.idle_since_s -= 2e9
        pool._close_old()
        assert (pool._idle, pool._sweep is not None) == ([second], True)
        await turns(lambda: pool._all == {second})
        second.idle_since_s -= 2e9
        assert await get(pool) == (200, b"ok")
    assert server.connections == 3


async def test_the_rest_of_a_body_is_read_away_in_the_background() -> None:
    rest = asyncio.Event()

    async def slowly(_: Reader, writer: Writer) -> None:
        writer.write(stream(b"first", end=False))
        await rest.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    async with serving(slowly, keep=True) as server, pool_at(server.url) as pool:
        connection = await pool.exchange(GET, None)
        assert await connection.read() == b"first"
        connection.release()
        assert not pool._idle
        rest.set()
        await turns(lambda: pool._idle == [connection])


async def test_the_background_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_DRAIN_S", 0.0)
    left = asyncio.Event()

    async def never(reader: Reader, writer: Writer) -> None:
        writer.write(stream(b"first", end=False))
        await reader.read()
        left.set()

    async with serving(never) as server, pool_at(server.url) as pool:
        connection = await pool.exchange(GET, None)
        connection.release()
        await asyncio.wait_for(left.wait(), SOON)
        await turns(lambda: not pool._all)


# ---------------------------------------------------------------- flow


@pytest.mark.parametrize("chunk_bytes", [1 << 16, 3])
async def test_an_unread_body_stops_the_server_and_not_the_memory(chunk_bytes: int) -> None:
    """The writer blocks once the kernel's buffers are full; what the client holds stays near the high-water mark."""
    chunk = b"%x\r\n%b\r\n" % (chunk_bytes, b"x" * chunk_bytes) * max(1, (1 << 16) // chunk_bytes)
    blocked, total = asyncio.Event(), 0

    async def flood(_: Reader, writer: Writer) -> None:
        nonlocal total
        writer.write(CHUNKED)
        for _round in range(400 if chunk_bytes > 3 else 80):
            writer.write(chunk)
            total += len(chunk)
            try:
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(writer.drain())), 0.2)
            except TimeoutError:
                blocked.set()
                await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serving(flood, keep=True) as server, pool_at(server.url) as pool:
        connection = await pool.exchange(GET, None)
        await asyncio.wait_for(blocked.wait(), SOON)
        assert HIGH_WATER_BYTES < answer_of(connection).held_bytes < 3 * HIGH_WATER_BYTES
        held = total
        assert len(await body_of(connection)) > held // 8
        connection.release()
        assert pool._idle == [connection]


@pytest.mark.parametrize("secure", [False, True])
async def test_leaving_is_seen_at_once(secure: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server_tls = authority.server(authority.issue("cloud")) if secure else None
    left = asyncio.Event()

    async def drip(reader: Reader, writer: Writer) -> None:
        writer.write(stream(b"a", end=False))
        try:
            await reader.read()
        finally:
            left.set()

    async with (
        serving(drip, tls=server_tls) as server,
        pool_at(server.url, tls=authority.client() if secure else None) as pool,
    ):
        connection = await pool.exchange(GET, None)
        connection.abort()
        await asyncio.wait_for(left.wait(), SOON)
        assert not pool._idle


async def test_closing_the_pool_ends_readers_and_waits_for_nobody() -> None:
    async def hold(reader: Reader, writer: Writer) -> None:
        writer.write(stream(b"a", end=False))
        await reader.read()

    async with serving(hold) as server, pool_at(server.url) as pool:
        connection = await pool.exchange(GET, None)
        assert await connection.read() == b"a"
        reading = asyncio.ensure_future(connection.read())
        await asyncio.sleep(0)
        await pool.aclose()
        with pytest.raises(Disconnected):
            await asyncio.wait_for(reading, SOON)


async def test_a_cancelled_request_leaves_nothing_behind() -> None:
    async def silence(reader: Reader, _: Writer) -> None:
        await reader.read()

    async with serving(silence) as server, pool_at(server.url) as pool:
        task = asyncio.ensure_future(pool.exchange(GET, None))
        await server.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns(lambda: not pool._all)


# ---------------------------------------------------------------- getting there


async def test_nobody_there_and_no_such_name() -> None:
    async with serving(b"") as server:
        pass
    async with pool_at(server.url) as pool:
        with pytest.raises(CannotConnect) as caught:
            await get(pool)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    async with pool_at("http://no-such-host.invalid") as pool:
        with pytest.raises(CannotConnect) as caught:
            await get(pool)
        assert isinstance(caught.value.__cause__, socket.gaierror)
        assert pool._names._lookup is None  # asked again next time


async def test_no_unix_socket(tmp_path: Path) -> None:
    async with pool_at("http://x", unix_socket=tmp_path / "none.sock") as pool:
        with pytest.raises(CannotConnect) as caught:
            await get(pool)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


async def test_the_time_for_a_connection_covers_tls(tmp_path: Path) -> None:
    async def mute(reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        left.set()

    left = asyncio.Event()
    listening = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    tls = Authority(tmp_path).client()
    async with pool_at(f"https://127.0.0.1:{port}", tls=tls, connect_s=0.05) as pool:
        with pytest.raises(ConnectTimedOut, match=r"no connection within 0\.05 s"):
            await get(pool)
        assert not pool._all
        await asyncio.wait_for(left.wait(), SOON)
    listening.close()


async def test_tls_and_its_kept_connection(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = authority.server(authority.issue("cloud"))
    async with serving(stream(b"a", b"b"), OK, tls=tls, keep=True) as server:
        async with pool_at(server.url, tls=authority.client()) as pool:
            assert [await get(pool), await get(pool)] == [(200, b"ab"), (200, b"ok")]
        async with pool_at(server.url.replace("127.0.0.1", "localhost"), tls=authority.client()) as pool:
            with pytest.raises(CannotConnect) as caught:  # the certificate is for 127.0.0.1
                await get(pool)
            assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert server.connections == 1


async def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two addresses of which only the second answers: on loopback, both in IPv4."""
    server: Server
    async with serving(OK, keep=True) as server:
        port = int(server.url.rpartition(":")[2])
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.9.9.9", "127.0.0.1")]

        async def lookup(host: str, port: int, **kinds: Any) -> Any:
            if host != "two.example":  # uvloop asks again for each address
                return await real(host, port, **kinds)
            asked.append(host)
            return found

        asked: list[str] = []
        real = asyncio.get_running_loop().getaddrinfo
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        async with pool_at("http://two.example") as pool:
            assert [await get(pool), await get(pool)] == [(200, b"ok")] * 2
    assert len(asked) == 1


async def test_those_who_wait_for_a_name_share_one_lookup_and_a_failure_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lookup(*_: Any, **__: Any) -> Any:
        asked.append(1)
        await slow.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    asked: list[int] = []
    slow = asyncio.Event()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    async with pool_at("http://slow.example") as pool:
        waiting = [asyncio.ensure_future(get(pool)) for _ in range(3)]
        await turns(lambda: asked)
        waiting[0].cancel()  # the one that began the lookup
        await asyncio.wait(waiting[:1])
        slow.set()
        for failed in await asyncio.gather(*waiting[1:], return_exceptions=True):
            assert isinstance(failed, CannotConnect)
            assert isinstance(failed.__cause__, socket.gaierror)
        assert len(asked) == 1
        with pytest.raises(CannotConnect):
            await get(pool)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("origin", "host", "port", "authority"),
    [
        ("http://127.0.0.1:81", "127.0.0.1", 81, "127.0.0.1:81"),
        ("https://Cloud.example", "cloud.example", 443, "cloud.example"),
        ("http://[::1]:8000", "::1", 8000, "[::1]:8000"),
        ("http://bücher.example", "xn--bcher-kva.example", 80, "xn--bcher-kva.example"),
    ],
)
def test_an_address_taken_apart(origin: str, host: str, port: int, authority: str) -> None:
    place = Place(origin)
    assert (place.host, place.port, place.authority) == (host, port, authority)


async def test_proxies_of_the_environment_are_not_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving(OK) as server, pool_at(server.url) as pool:
        assert await get(pool) == (200, b"ok")
