"""The asking side against a real HTTP server: whole, cut, refused, broken and late answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from aiohttp import web

from codriver.bench.datasets import Question
from codriver.bench.drive_client import DriveClient, fate_of, request_body
from codriver.bench.drive_settings import CloudPrice
from codriver.bench.workload import Limits, WorkItem, command_items, question_item

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ITEM = question_item(Question("q-1", "asdiv", "What is 1 + 1?", (), "2"), Limits(2.0, 1.0))
PRICE = CloudPrice(1.0, 2.0)


def chunk(text: str = "", finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return (
        b"data: " + json.dumps({"id": "x", "created": 1, "model": "m", "choices": [choice], **more}).encode() + b"\n\n"
    )


def stream(*events: bytes) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        return response

    return answer


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[DriveClient]]]:
    runners: list[web.AppRunner] = []
    clients: list[DriveClient] = []

    async def start(handler: Handler) -> DriveClient:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        clients.append(DriveClient(f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
        return clients[-1]

    yield start
    for client in clients:
        await client.aclose()
    for runner in runners:
        await runner.cleanup()


Serve = Callable[[Handler], Awaitable[DriveClient]]


async def test_whole_answer_is_graded_placed_and_priced(serve: Serve) -> None:
    told = {
        "engine": "cloud",
        "locality": "cloud",
        "link": "up",
        "attempts": [
            {"engine": "vehicle", "outcome": "rejected", "tokens": 3},
            {"engine": "cloud", "outcome": "answered", "tokens": 10},
        ],
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    client = await serve(
        stream(chunk("1+1="), chunk("2"), chunk(finish="stop", codriver=told), chunk(usage=usage), b"data: [DONE]\n\n")
    )
    fate = fate_of(ITEM, 3.0, await client.ask(ITEM), PRICE)
    assert (fate.outcome, fate.where, fate.correct, fate.cloud_called) == ("in time", "cloud", True, True)
    assert fate.cost_usd == pytest.approx((100 * 1.0 + 10 * 2.0) / 1e6)
    assert fate.ttft_ms is not None and fate.ttft_ms <= fate.total_ms


async def test_answer_without_its_end_is_cut(serve: Serve) -> None:
    client = await serve(stream(chunk("1+1=2"), chunk(finish="stop")))
    fate = fate_of(ITEM, 0.0, await client.ask(ITEM), PRICE)
    assert (fate.outcome, fate.where, fate.right) == ("cut", "nobody", False)


async def test_error_in_mid_stream_gives_its_code(serve: Serve) -> None:
    client = await serve(stream(chunk("1+"), b'data: {"error":{"code":"engine_died","message":"gone"}}\n\n'))
    assert (await client.ask(ITEM)).error == "engine_died"


async def test_refusal_gives_its_code_and_a_known_dead_link_no_cloud_call(serve: Serve) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"code": "link_down", "message": "down"}}, status=503)

    client = await serve(refuse)
    fate = fate_of(ITEM, 0.0, await client.ask(ITEM), PRICE)
    assert (fate.outcome, fate.cloud_called, fate.cost_usd) == ("link_down", False, 0.0)


async def test_server_that_is_not_there_is_a_lost_connection() -> None:
    client = DriveClient("http://127.0.0.1:9/v1")
    try:
        assert (await client.ask(ITEM)).error == "connection_lost"
    finally:
        await client.aclose()


async def test_silent_server_runs_into_the_deadline(serve: Serve) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    client = await serve(silent)
    hurried = replace(ITEM, deadline_s=-0.4)
    assert (await client.ask(hurried)).error == "deadline_exceeded"


async def test_answer_of_two_engines_is_mixed(serve: Serve) -> None:
    told = {"engine": "vehicle", "locality": "vehicle", "attempts": [], "failovers": [{"policy": "resume"}]}
    client = await serve(stream(chunk("1+1=2"), chunk(finish="stop", codriver=told), b"data: [DONE]\n\n"))
    fate = fate_of(ITEM, 0.0, await client.ask(ITEM), PRICE)
    assert (fate.where, fate.failovers) == ("mixed", 1)


def test_body_carries_deadline_and_schema() -> None:
    item: WorkItem = command_items(Limits(4.0, 2.5))[0]
    body = request_body(item)
    assert body["codriver"] == {"deadline_ms": 4000.0, "first_token_ms": 2500.0}
    assert body["response_format"]["type"] == "json_schema"
