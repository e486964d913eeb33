"""Rates by key, and who gives way when there is not room for all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from codriver.core.clock import ManualClock
from codriver.core.errors import BadConfigValue, RateLimited
from codriver.gateway.admission import Admission
from codriver.gateway.auth import ApiKeys
from codriver.gateway.config import GatewayConfig
from codriver.gateway.exchange import Exchange

from .serving import CHAT, HELLO, Scripted, ask, running

PATH = "/v1/chat/completions"
BEHIND = b'{"codriver":{"priority":"background"},"messages":[{"role":"user","content":"hi"}]}'


def admission(**settings: Any) -> tuple[Admission, ManualClock, ApiKeys]:
    config, clock = GatewayConfig(**settings), ManualClock()
    keys = ApiKeys(config)
    return Admission(config, keys, clock), clock, keys


async def nothing(*_: Any) -> Any: ...


async def enter(one: Admission, caller: str = "") -> None:
    exchange = Exchange({"method": "POST", "path": PATH, "headers": []}, nothing, nothing, 0.0)
    exchange.caller = caller
    one.leave(one.enter(exchange))


async def test_a_rate_allows_a_burst_and_then_what_flows_in() -> None:
    one, clock, _ = admission(rate_per_minute=30)
    for _ in range(5):  # ten seconds' worth
        await enter(one)
    with pytest.raises(RateLimited, match=r"may send 30 requests a minute; the next may come in 2 s") as told:
        await enter(one)
    assert told.value.retry_after_s == pytest.approx(2.0)
    await clock.advance(2.0)
    await enter(one)
    with pytest.raises(RateLimited):
        await enter(one)


async def test_each_key_has_a_rate_of_its_own() -> None:
    one, _, keys = admission(api_keys=("slow", "fast"), rate_per_minute=6, key_rates=("600=fast",))
    slow, fast = keys.caller_of("slow") or "", keys.caller_of("fast") or ""
    await enter(one, slow)
    with pytest.raises(RateLimited, match="6 requests a minute"):
        await enter(one, slow)
    for _ in range(100):
        await enter(one, fast)
    with pytest.raises(RateLimited, match="600 requests a minute"):
        await enter(one, fast)


@pytest.mark.parametrize("entry", ["many=key", "0=key", "-3=key", "inf=key", "nan=key", "30", "30="])
def test_bad_rates(entry: str) -> None:
    with pytest.raises(BadConfigValue, match="not RATE=KEY; allowed rates: requests a minute, above 0") as told:
        admission(api_keys=("key",), key_rates=(entry,))
    assert told.value.param == "gateway.key_rates"


def test_a_rate_for_a_key_that_may_not_call() -> None:
    with pytest.raises(BadConfigValue, match=r"neither in gateway\.api_keys nor in gateway\.keys_file"):
        admission(api_keys=("key",), key_rates=("30=other",))


async def test_a_client_is_told_when_to_come_again() -> None:
    async with running(Scripted(*HELLO), rate_per_minute=6.0) as server:
        assert (await ask(server.port, PATH, CHAT)).status == 200
        late = await ask(server.port, PATH, CHAT)
    assert (late.status, late.headers["retry-after"]) == (429, "10")
    assert json.loads(late.body)["error"]["code"] == "rate_limit_exceeded"


async def test_background_requests_are_few() -> None:
    hold = asyncio.Event()
    engine = Scripted(hold, *HELLO)
    async with running(engine, background_most=1) as server:
        first = asyncio.create_task(ask(server.port, PATH, BEHIND))
        await engine.started.wait()
        second = await ask(server.port, PATH, BEHIND)
        third = await ask(server.port, PATH, CHAT, "x-codriver-priority: background")
        driver = asyncio.create_task(ask(server.port, PATH, CHAT))
        hold.set()
        assert [(await one).status for one in (first, driver)] == [200, 200]
        assert (await ask(server.port, PATH, BEHIND)).status == 200
    for refused in (second, third):
        assert (refused.status, refused.headers["retry-after"]) == (429, "5")
        assert "1 background requests are being answered" in json.loads(refused.body)["error"]["message"]


async def test_a_drivers_request_takes_a_background_ones_place() -> None:
    hold = asyncio.Event()
    engine = Scripted(hold, *HELLO)
    async with running(engine, max_in_flight=1) as server:
        behind = asyncio.create_task(ask(server.port, PATH, BEHIND))
        await engine.started.wait()
        assert (await ask(server.port, PATH, CHAT, "x-codriver-priority: background")).status == 429
        engine.started.clear()
        driver = asyncio.create_task(ask(server.port, PATH, CHAT))
        gone = await behind
        await engine.started.wait()
        # Nobody is left to give way to the next one.
        assert (await ask(server.port, PATH, CHAT)).status == 429
        hold.set()
        assert (await driver).status == 200
    assert (gone.status, gone.headers["retry-after"]) == (503, "5")
    assert "gave way to one of the driver" in json.loads(gone.body)["error"]["message"]


async def test_a_priority_that_there_is_not() -> None:
    async with running(Scripted(*HELLO)) as server:
        wrong = await ask(server.port, PATH, CHAT, "x-codriver-priority: urgent")
    assert wrong.status == 400
    assert "Allowed: driver, background" in json.loads(wrong.body)["error"]["message"]
