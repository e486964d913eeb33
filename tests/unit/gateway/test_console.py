"""The console's routes over real sockets: the page, its headers, the feed, the state, and keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from codriver.core.clock import ManualClock
from codriver.core.engine import EngineCard, Price
from codriver.core.errors import EngineDied
from codriver.gateway import Console, Gateway, GatewayConfig, Listening, serve
from codriver.observe.journal import QUEUED, REQUESTS, WATCHERS, Ended, Journal
from codriver.observe.metrics import Metrics
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup

from .serving import CHAT, HELLO, STREAM, Scripted, ask, chunk, get, http, running

CHAT_PATH = "/v1/chat/completions"
FILES = {"index.html": b"<!doctype html>", "console.js": b"1", "console.css": b"a{}", "icon.svg": b"<svg/>"}
SECRET = "the-secret-in-the-text"
ASKED = json.dumps({"messages": [{"role": "user", "content": SECRET}]}).encode()


@asynccontextmanager
async def console(
    engine: Scripted, journal: Journal | None = None, clock: ManualClock | None = None, **settings: Any
) -> AsyncIterator[Listening]:
    config = GatewayConfig(port=0, **settings)
    gateway = Gateway({"auto": engine}, "auto", config, Metrics())
    clocks = () if clock is None else (clock,)
    shown = {"kind": "vehicle", "models": ["auto"]}
    gateway.show(Console(journal or Journal(*clocks), FILES, {engine.card.id: engine}, lambda: shown, *clocks))
    listening = await serve(gateway, config)
    try:
        yield listening
    finally:
        await listening.aclose()


class Feed:
    """An open feed; ``next`` is its next event."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def next(self) -> dict[str, Any]:
        while True:
            line = await asyncio.wait_for(self.reader.readline(), 10)
            if not line:
                raise EOFError
            if line.startswith(b"data: "):
                event: dict[str, Any] = json.loads(line[6:])
                return event

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """The events before the first of this kind, and that one."""
        events = [await self.next()]
        while events[-1].get("kind") != kind:
            events.append(await self.next())
        return events


@asynccontextmanager
async def feed(port: int) -> AsyncIterator[Feed]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(http("GET", "/console/feed"))
    try:
        yield Feed(reader, writer)
    finally:
        writer.close()


async def recent(port: int) -> list[dict[str, Any]]:
    async with feed(port) as open_feed:
        return await open_feed.until("live")


# ---------------------------------------------------------------- the page


async def test_the_page_and_the_way_to_it() -> None:
    async with console(Scripted()) as server:
        page = await get(server.port, "/console/")
        script = await get(server.port, "/console/console.js")
        ways = [await get(server.port, path) for path in ("/", "/console")]
    assert (page.status, page.body) == (200, b"<!doctype html>")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert [(way.status, way.headers["location"]) for way in ways] == [(307, "/console/")] * 2


@pytest.mark.parametrize("path", ["/console/", "/console/console.js", "/console/state", "/console/feed"])
async def test_nothing_is_loaded_from_elsewhere_nor_framed(path: str) -> None:
    async with console(Scripted()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(http("GET", path))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
    policy = next(line for line in head.split("\r\n") if line.startswith("content-security-policy"))
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "x-content-type-options: nosniff" in head


@pytest.mark.parametrize(
    "path",
    [
        "/console/../pyproject.toml",
        "/console/%2e%2e/pyproject.toml",
        "/console/..%2f..%2fgateway/app.py",
        "/console//etc/passwd",
        "/console/index.html/",
        "/console/nothing.js",
    ],
)
async def test_only_the_pages_own_files_are_served(path: str) -> None:
    async with console(Scripted()) as server:
        reply = await get(server.port, path)
    assert reply.status == 404
    assert "Invalid URL" in json.loads(reply.body)["error"]["message"]


async def test_a_gateway_without_a_console_has_none() -> None:
    async with running(Scripted()) as server:
        replies = [await get(server.port, path) for path in ("/", "/console/", "/console/feed", "/console/state")]
    assert [reply.status for reply in replies] == [404] * 4


# ---------------------------------------------------------------- the feed


async def test_what_became_of_a_request_without_its_text() -> None:
    told = {
        "engine": "scripted",
        "locality": "vehicle",
        "link": "up",
        "privacy": "any",
        "semantic": {"route": "climate", "score": 0.9, "text": SECRET},
        "confidence": 0.75,
        "attempts": [
            {"engine": "scripted", "why": "w", "started_ms": 0.5, "took_ms": 9.0, "outcome": "answered", "ttft_ms": 3.0}
        ],
        "failovers": [{"from": "scripted", "to": "scripted", "policy": "resume", "error": "e", "at_chars": 3}],
        "upstream": {"echo": SECRET},
        "note": SECRET,
    }
    engine = Scripted(chunk(SECRET), chunk("!", "stop", codriver=told), HELLO[-1])
    engine.card = EngineCard(id="scripted", locality="vehicle", price=Price(input_usd=1.0, output_usd=2.0))
    async with console(engine) as server:
        await ask(server.port, CHAT_PATH, ASKED, "x-request-id: my-id")
        events = await recent(server.port)
    (request,) = [event for event in events if event["kind"] == "request"]
    assert (request["id"], request["route"], request["status"]) == ("my-id", CHAT_PATH, 200)
    assert request["took_ms"] > 0
    assert request["cost_usd"] == pytest.approx(7e-6)
    assert (request["prompt_tokens"], request["completion_tokens"]) == (3, 2)
    kept = request["told"]
    assert kept["attempts"] == told["attempts"]
    assert kept["failovers"] == told["failovers"]
    assert (kept["engine"], kept["confidence"]) == ("scripted", 0.75)
    assert (kept["privacy"], kept["semantic"]) == ("any", {"route": "climate"})
    assert SECRET not in json.dumps(events)


@pytest.mark.parametrize(
    "told",
    [
        {"engine": "scripted", "attempts": [{"engine": "other", "outcome": "x", "started_ms": 0, "took_ms": 0}]},
        {"engine": "elsewhere"},
        {"engine": "x" * 1000},
        {"engine": "scripted", "attempts": "many"},
    ],
)
async def test_an_extension_that_this_server_did_not_make_is_not_kept(told: dict[str, Any]) -> None:
    async with console(Scripted(chunk("x", "stop", codriver=told))) as server:
        await ask(server.port, CHAT_PATH, CHAT)
        request = (await recent(server.port))[1]
    assert "told" not in request


async def test_the_attempts_of_a_request_that_failed() -> None:
    engine = Scripted(EngineDied("gone", engine="vehicle"), id="vehicle")
    hybrid = HybridEngine(Lineup({"vehicle": engine}))
    config = GatewayConfig(port=0)
    gateway = Gateway({"codriver": hybrid}, "codriver", config, Metrics())
    gateway.show(Console(Journal(), FILES, {"vehicle": engine}, dict))
    server = await serve(gateway, config)
    try:
        reply = await ask(server.port, CHAT_PATH, CHAT)
        request = (await recent(server.port))[1]
    finally:
        await server.aclose()
    assert b"attempts" not in reply.body
    assert (request["status"], request["code"]) == (502, "engine_died")
    (attempt,) = request["told"]["attempts"]
    assert (attempt["engine"], attempt["outcome"]) == ("vehicle", "engine_died")


async def test_a_refused_request_is_told_by_its_code() -> None:
    async with console(Scripted()) as server:
        await ask(server.port, CHAT_PATH, b'{"messages":[]}')
        await get(server.port, "/healthz")
        events = await recent(server.port)
    assert [(event.get("status"), event.get("code")) for event in events[1:-1]] == [(400, "malformed_body")]


async def test_the_feed_goes_on_live() -> None:
    async with console(Scripted(*HELLO)) as server, feed(server.port) as open_feed:
        assert [event["kind"] for event in await open_feed.until("live")] == ["hello", "live"]
        await ask(server.port, CHAT_PATH, STREAM)
        request = await open_feed.next()
        assert (request["kind"], request["number"], request["engine"]) == ("request", 1, "scripted")


async def test_the_feed_beats_while_nothing_happens() -> None:
    clock = ManualClock()
    async with console(Scripted(), clock=clock) as server, feed(server.port) as open_feed:
        await open_feed.until("live")
        await clock.advance(15.0)
        assert (await open_feed.next())["kind"] == "beat"


async def test_the_feed_ends_with_the_server() -> None:
    journal = Journal()
    async with console(Scripted(), journal) as server, feed(server.port) as open_feed:
        await open_feed.until("live")
        await server.drain()
        with pytest.raises(EOFError):
            await open_feed.next()
    assert journal.watchers == 0


async def test_a_watcher_that_leaves_is_forgotten() -> None:
    journal = Journal()
    async with console(Scripted(), journal) as server:
        async with feed(server.port) as open_feed:
            await open_feed.until("live")
            assert journal.watchers == 1
        await asyncio.wait_for(_until(lambda: journal.watchers == 0), 10)


async def test_more_watchers_than_the_most_are_told() -> None:
    journal = Journal()
    for _ in range(WATCHERS):
        journal.watch(lambda: None)
    async with console(Scripted(), journal) as server:
        reply = await get(server.port, "/console/feed")
    assert reply.status == 429
    assert "16 consoles watch already" in json.loads(reply.body)["error"]["message"]


async def test_a_watcher_that_is_too_slow_is_dropped_and_told() -> None:
    journal = Journal()
    async with console(Scripted(), journal) as server, feed(server.port) as open_feed:
        await open_feed.until("live")
        for number in range(QUEUED + 2):
            journal.ended(ended(number))
        assert journal.watchers == 0
        events = [await open_feed.next()]
        while "error" not in events[-1]:
            events.append(await open_feed.next())
    assert "read too slowly" in events[-1]["error"]["message"]
    assert len(events) <= QUEUED + 1


async def test_only_the_last_requests_are_kept() -> None:
    journal = Journal()
    for number in range(REQUESTS + 50):
        journal.ended(ended(number))
    async with console(Scripted(), journal) as server:
        numbers = [event["number"] for event in await recent(server.port) if event["kind"] == "request"]
    assert numbers == list(range(50, REQUESTS + 50))


# ---------------------------------------------------------------- keys


async def test_feed_and_state_need_a_key_where_there_are_keys_and_the_page_does_not() -> None:
    async with console(Scripted(), api_keys=("sesame",)) as server:
        page = await get(server.port, "/console/")
        closed = [await get(server.port, path) for path in ("/console/feed", "/console/state")]
        wrong = await get(server.port, "/console/state", "authorization: Bearer barley")
        state = await get(server.port, "/console/state", "authorization: Bearer sesame")
    assert page.status == 200
    assert [reply.status for reply in closed] == [401, 401]
    assert "You didn't provide an API key" in json.loads(closed[0].body)["error"]["message"]
    assert "Incorrect API key" in json.loads(wrong.body)["error"]["message"]
    assert json.loads(state.body) == {"kind": "vehicle", "models": ["auto"]}
    assert state.headers["cache-control"] == "no-store"


def ended(number: int) -> Ended:
    return Ended(number=number, at_s=1.0, id=f"r{number}", route=CHAT_PATH, status=200, took_ms=1.0)


async def _until(true: Any) -> None:
    while not true():  # noqa: ASYNC110 - the end of a connection is no event that a test can await
        await asyncio.sleep(0)
