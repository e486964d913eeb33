"""Floods and slow clients against a gateway in a process of its own, whose memory is looked at before and after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from .serving import CHAT, Reply, ask, http, speak

PATH = "/v1/chat/completions"
HEAD_TIMEOUT_S = 1.5
# Pools of the allocator and buffers of the kind that stay, however long a flood goes on.
NOISE_KB = 12 << 10
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
SERVER = f"""
import asyncio
from codriver.engines.null import Null
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.observe.metrics import Metrics

async def main():
    config = GatewayConfig(port=0, head_timeout_s={HEAD_TIMEOUT_S}, body_timeout_s=1.0, idle_timeout_s=2.0)
    listening = await serve(Gateway({{"auto": Null()}}, "auto", config, Metrics()), config)
    print(listening.port, flush=True)
    await listening.until_signal()

asyncio.run(main())
"""


class Served:
    """``port`` to speak to; ``memory_kb`` is what the process holds now."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self.port = process, port

    def memory_kb(self) -> int:
        told = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(told.partition("VmRSS:")[2].split()[0])

    def sockets(self) -> int:
        folder = Path(f"/proc/{self._process.pid}/fd")
        return sum("socket:" in os.readlink(link) for link in folder.iterdir() if link.is_symlink())


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Served(process, int(process.stdout.readline()))
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()


async def grows_by_noise(served: Served, flood: Callable[[], Awaitable[None]], times: int = 2) -> None:
    """The first flood fills what is kept; the same again, ``times`` over, adds noise only."""
    await flood()
    before_kb = served.memory_kb()
    for _ in range(times):
        await flood()
    assert served.memory_kb() - before_kb < NOISE_KB
    assert (await ask(served.port, PATH, CHAT)).status == 200


async def at_once(count: int, request: bytes, port: int, status: int, code: str) -> None:
    async def one() -> None:
        with contextlib.suppress(ConnectionError):  # closed while the rest was still being sent
            reply = await speak(port, request)
            assert reply.status in (status, 0), reply.body
            if reply.status:
                assert json.loads(reply.body)["error"]["code"] == code, reply.body

    for _ in range(count // 50):
        await asyncio.gather(*(one() for _ in range(50)))


MANY = http("POST", PATH, CHAT, *(f"x-flood-{at}: {'y' * 20}" for at in range(1_000)))
LARGE = http("POST", PATH, CHAT, f"x-flood: {'y' * 1_000_000}")
ENDLESS = b"GET / HTTP/1.1\r\n" + b"x-flood: y\r\n" * 50_000
FOREVER = b"GET /" + b"y" * 500_000


@pytest.mark.parametrize("request_bytes", [MANY, LARGE, ENDLESS, FOREVER], ids=["many", "large", "endless", "url"])
async def test_a_flood_of_headers_is_refused_and_leaves_no_memory_behind(served: Served, request_bytes: bytes) -> None:
    reply = await first_answer(served.port, request_bytes)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (431, "invalid_request")
    assert "The headers are larger than 32768 bytes or more than 100." in json.loads(reply.body)["error"]["message"]
    await grows_by_noise(served, lambda: at_once(200, request_bytes, served.port, 431, "invalid_request"))


async def first_answer(port: int, request: bytes) -> Reply:
    """What is answered to the first 40 kB, so that the answer is not lost when the rest meets a closed door."""
    return await speak(port, request[: 40 << 10])


async def test_headers_just_below_the_limits_are_served_and_leave_no_memory_behind(served: Served) -> None:
    request = http("POST", PATH, CHAT, *(f"x-flood-{at}: {'y' * 300}" for at in range(90)))
    assert (await speak(served.port, request)).status == 200

    async def flood() -> None:
        for _ in range(10):
            await asyncio.gather(*(speak(served.port, request) for _ in range(50)))

    await grows_by_noise(served, flood)


async def test_bodies_over_the_limit_are_refused_and_leave_no_memory_behind(served: Served) -> None:
    large = b'{"messages":[{"role":"user","content":"' + b"y" * (9 << 20)
    told = http("POST", PATH, large)
    chunked = http("POST", PATH, b"", "Transfer-Encoding: chunked") + b"%x\r\n" % len(large) + large

    async def flood() -> None:
        for request in (told, chunked):
            await at_once(50, request, served.port, 413, "body_too_large")

    head = told.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    reply = await first_answer(served.port, head)  # before a byte of the body has come
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (413, "body_too_large")
    assert "The request body is larger than 8388608 bytes." in json.loads(reply.body)["error"]["message"]
    await grows_by_noise(served, flood)


@contextlib.asynccontextmanager
async def slow_clients(port: int, count: int, request: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """So many connections, each sending a byte of ``request`` twice a second, or nothing."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]

    async def drip() -> None:
        for at in range(len(request)):
            for _, writer in opened:
                writer.write(request[at : at + 1])
            await asyncio.sleep(0.5)

    dripping = asyncio.create_task(drip())
    try:
        yield [reader for reader, _ in opened]
    finally:
        dripping.cancel()
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"", 0),
        (b"POST / HTTP/1.1\r\nHost: x\r\n", 408),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 99, 408),
    ],
    ids=["silent", "head", "header"],
)
async def test_two_hundred_slow_clients_are_closed_and_meanwhile_others_are_served(
    served: Served, request_bytes: bytes, status: int
) -> None:
    idle = served.sockets()
    async with slow_clients(served.port, 200, request_bytes) as readers:
        began_s = time.monotonic()
        ends = asyncio.gather(*(reader.read() for reader in readers))
        while not ends.done():
            asked_s = time.monotonic()
            assert (await ask(served.port, PATH, CHAT)).status == 200
            assert time.monotonic() - asked_s < 1.0
            await asyncio.sleep(0.1)
        assert HEAD_TIMEOUT_S * 0.9 < time.monotonic() - began_s < HEAD_TIMEOUT_S + 3.0
        for raw in await ends:
            assert Reply(raw).status == status
            if status:
                sentence = json.loads(Reply(raw).body)["error"]["message"]
                assert sentence == f"The request's headers were not complete within {HEAD_TIMEOUT_S:g} seconds."
    async with asyncio.timeout(5):
        while served.sockets() > idle:  # noqa: ASYNC110 - another process closes them
            await asyncio.sleep(0.05)


async def test_slow_clients_leave_no_memory_behind(served: Served) -> None:
    async def flood() -> None:
        async with slow_clients(served.port, 200, b"POST / HTTP/1.1\r\nx: y") as readers:
            await asyncio.gather(*(reader.read() for reader in readers))

    await grows_by_noise(served, flood, times=1)


async def test_a_body_that_comes_too_slowly_is_refused(served: Served) -> None:
    head = http("POST", PATH, b"", "Transfer-Encoding: chunked")
    reply = await speak(served.port, head + b"1\r\n{\r\n")
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "malformed_body")
    assert "was not complete within 1 seconds" in json.loads(reply.body)["error"]["message"]
