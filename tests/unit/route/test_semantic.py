"""Semantic routes over a stand-in embedder: what a route fills in, when it abstains, and what it does when it cannot
tell. The words of the stand-in make the routes exact.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from codriver.core.clock import ManualClock
from codriver.core.deadline import Deadline
from codriver.core.errors import BadConfigValue, DeadlineExceeded, EngineUnavailable, MissingFile
from codriver.core.messages import (
    ChatRequest,
    FunctionSpec,
    ImagePart,
    ImageUrl,
    Message,
    RequestOptions,
    Tool,
    parse_chat,
)  # fmt: skip
from codriver.core.virtual import LoopClock, run_virtual
from codriver.core.wire import upstream_body
from codriver.observe.metrics import Metrics
from codriver.route.hybrid import HybridEngine
from codriver.route.semantic import SemanticRoutes
from tests.unit.route.drive import ask, lineup_of, watch
from tests.unit.route.faulty import WORDS, Faulty
from tests.unit.route.words import WordEmbedder

TEXT = "".join(WORDS)
ROUTES = """
margin = 0.05
other = ["write some code now", "write a poem now", "write some poem"]

[route.climate]
policy = "vehicle-first"
deadline_ms = 4000
first_token_ms = 1500
failover = "declare"
budget_usd = 0.5
tools = ["set_temperature"]
examples = ["make it warm inside", "make it cold inside", "warm the cabin inside"]

[route.phone]
privacy = "local_only"
personal = true
examples = ["call my sister please", "ring my mother please", "call my brother please"]

[route.manual]
cache = true
examples = ["explain what this lamp means", "explain how this button works", "explain what this button means"]
"""


class Car:
    """A router with a routes file, in virtual time; ``said`` is what its engines were asked."""

    def __init__(self, folder: Path, text: str = ROUTES) -> None:
        self.file = folder / "routes.toml"
        self.write(text)
        self.embedder = WordEmbedder()
        self.metrics = Metrics()
        self.v, self.c = Faulty("v"), Faulty("c", "cloud")

    def write(self, text: str) -> None:
        self.file.write_text(text, encoding="utf-8")

    async def start(self) -> HybridEngine:
        clock = LoopClock()
        self.routes = await SemanticRoutes.start(self.file, self.embedder, ["v", "c"], self.metrics, clock)
        self.lineup = lineup_of(self.v, self.c, metrics=self.metrics)
        return HybridEngine(self.lineup, semantic=self.routes)

    async def answer(self, hybrid: HybridEngine, request: ChatRequest) -> Any:
        return await watch(hybrid.generate(request, Deadline.never(LoopClock())), self.lineup)

    def ruled(self, request: ChatRequest) -> tuple[ChatRequest, Any]:
        async def main() -> tuple[ChatRequest, Any]:
            await self.start()
            return await self.routes.rule(request, Deadline.never(LoopClock()))

        return run_virtual(main())

    def counted(self, route: str) -> float:
        return self.metrics.registry.get_sample_value("codriver_semantic_route_total", {"route": route}) or 0.0


def say(*texts: str, **more: Any) -> ChatRequest:
    return ask(messages=[Message(role="user", content=text) for text in texts], **more)


@pytest.fixture
def car(tmp_path: Path) -> Car:
    return Car(tmp_path)


async def test_routes_are_shown_to_those_who_watch_without_their_examples(car: Car) -> None:
    await car.start()
    phone, climate = (next(one for one in car.routes.shown() if one["name"] == name) for name in ("phone", "climate"))
    assert phone == {"name": "phone", "examples": 3, "privacy": "local_only", "personal": True}
    assert (climate["policy"], climate["deadline_ms"], climate["tools"]) == (
        "vehicle-first",
        4000,
        ("set_temperature",),
    )
    await car.routes.aclose()


def test_a_route_fills_in_what_the_client_left_open(car: Car) -> None:
    request, ruling = car.ruled(say("make the cabin warm inside"))
    options = request.codriver
    assert options == RequestOptions(
        policy="vehicle-first", deadline_ms=4000, first_token_ms=1500, failover="declare", budget_usd=0.5
    )
    assert ruling.told["semantic"]["route"] == "climate"
    assert 0.5 < ruling.told["semantic"]["score"] <= 1.0
    assert car.counted("climate") == 1


def test_what_the_client_set_stays(car: Car) -> None:
    own = {
        "policy": "cloud-only",
        "deadline_ms": 900.0,
        "first_token_ms": 90.0,
        "failover": "restart",
        "budget_usd": 0.0,
    }
    request, _ = car.ruled(say("make the cabin warm inside", codriver=own))
    assert request.codriver == RequestOptions(**own)  # type: ignore[arg-type]
    request, _ = car.ruled(say("make the cabin warm inside", codriver={"engine": "c"}))
    assert request.codriver is not None
    assert (request.codriver.engine, request.codriver.policy) == ("c", None)


def test_privacy_only_gets_stricter(car: Car) -> None:
    request, _ = car.ruled(say("call my sister please", codriver={"privacy": "any"}))
    assert request.codriver is not None and request.codriver.privacy == "local_only"
    loose = ROUTES.replace('policy = "vehicle-first"\n', 'policy = "vehicle-first"\nprivacy = "any"\n')
    car.write(loose)
    request, _ = car.ruled(say("make it warm inside", codriver={"privacy": "local_only"}))
    assert request.codriver is not None and request.codriver.privacy == "local_only"


def test_a_personal_request_never_reaches_the_cloud(car: Car) -> None:
    async def main() -> None:
        hybrid = await car.start()
        got = await car.answer(hybrid, say("ring my brother please", codriver={"policy": "cloud-first"}))
        assert (got.text, got.extension["engine"]) == (TEXT, "v")
        assert got.extension["semantic"]["route"] == "phone"
        # The conversation goes on with something harmless, and what was said before is still in it.
        got = await car.answer(
            hybrid, say("ring my brother please", "make it warm inside", codriver={"policy": "cloud-first"})
        )
        assert got.extension["semantic"]["route"] == "climate"
        got = await car.answer(hybrid, say("ring my brother please", "hm", codriver={"policy": "cloud-first"}))
        assert got.extension["semantic"] == {"route": None, "score": pytest.approx(0.0, abs=0.2)}
        assert car.c.calls == 0
        await car.answer(hybrid, say("explain what this lamp means", codriver={"policy": "cloud-first"}))
        assert car.c.calls == 1

    run_virtual(main())


def test_a_picture_after_something_personal_stays_in_the_vehicle(car: Car) -> None:
    picture = Message(role="user", content=[ImagePart(image_url=ImageUrl(url="data:,x"))])
    request, ruling = car.ruled(ask(messages=[Message(role="user", content="call my sister please"), picture]))
    assert request.codriver is not None and request.codriver.privacy == "local_only"
    assert ruling.told["semantic"]["route"] is None
    request, _ = car.ruled(ask(messages=[picture]))
    assert request.codriver is None


@pytest.mark.parametrize("text", ["write some code", "blue elephants", "please call explain this"])
def test_it_abstains_when_it_is_not_sure(car: Car, text: str) -> None:
    _, ruling = car.ruled(say(text))
    assert ruling.told["semantic"]["route"] is None
    assert car.counted("none") == 1


def test_between_two_routes_the_stricter_privacy_holds(car: Car) -> None:
    request, ruling = car.ruled(say("please call explain this"))
    assert ruling.told["semantic"]["route"] is None
    assert request.codriver is not None and request.codriver.privacy == "local_only"
    car.write(ROUTES.replace("margin = 0.05", "margin = 0.0"))
    request, ruling = car.ruled(say("please call explain this"))
    assert ruling.told["semantic"]["route"] == "manual"
    assert request.codriver is not None and request.codriver.privacy == "local_only"


@pytest.mark.parametrize("trouble", ["slow", "failing"])
def test_when_the_embedder_fails_the_strictest_class_holds(car: Car, trouble: str) -> None:
    async def main() -> None:
        hybrid = await car.start()
        if trouble == "slow":
            car.embedder.takes_s = 0.2
        else:
            car.embedder.error = EngineUnavailable("closed")
        got = await car.answer(hybrid, say("make it warm inside", codriver={"policy": "cloud-first"}))
        assert got.text == TEXT
        assert (got.extension["engine"], car.c.calls) == ("v", 0)
        code = DeadlineExceeded.code if trouble == "slow" else EngineUnavailable.code
        assert got.extension["semantic"] == {"route": None, "failed": code}
        assert got.took_s < 0.06 + 0.1 + 12 * 0.05
        assert car.counted("failed") == 1

    run_virtual(main())


def test_a_file_without_private_routes_fails_open(tmp_path: Path) -> None:
    car = Car(tmp_path, ROUTES.replace('privacy = "local_only"\n', ""))

    async def main() -> None:
        hybrid = await car.start()
        car.embedder.error = EngineUnavailable("closed")
        got = await car.answer(hybrid, say("call my sister please", codriver={"policy": "cloud-first"}))
        assert got.extension["engine"] == "c"

    run_virtual(main())


def test_only_the_tools_named_are_left_in_struct_and_body(car: Car) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "make it warm inside"}],
        "tools": [
            {"type": "function", "function": {"name": name}, "vendor": 7} for name in ("set_temperature", "call_number")
        ],
        "tool_choice": {"type": "function", "function": {"name": "call_number"}},
    }
    request, _ = car.ruled(parse_chat(json.dumps(body).encode()))
    assert [tool.function.name for tool in request.tools or ()] == ["set_temperature"]
    assert request.tool_choice is None
    sent = json.loads(upstream_body(request, {}))
    assert sent["tools"] == [{"type": "function", "function": {"name": "set_temperature"}, "vendor": 7}]
    assert "tool_choice" not in sent
    body["tools"] = body["tools"][1:]
    body |= {"tool_choice": "required", "parallel_tool_calls": True}
    request, _ = car.ruled(parse_chat(json.dumps(body).encode()))
    assert set(json.loads(upstream_body(request, {}))) == {"messages"}
    kept = ask(messages=[Message(role="user", content="explain what this means")], tools=[Tool(FunctionSpec("x"))])
    assert car.ruled(kept)[0].tools == kept.tools


def test_a_sentence_is_read_once_and_a_long_one_by_its_ends(car: Car) -> None:
    async def main() -> None:
        await car.start()
        car.embedder.seen.clear()
        for _ in range(3):
            await car.routes.rule(say("make it warm inside"), Deadline.never(LoopClock()))
        assert car.embedder.seen == ["make it warm inside"]
        car.embedder.seen.clear()
        await car.routes.rule(say("a" * 5000 + "z" * 5000), Deadline.never(LoopClock()))
        assert car.embedder.seen == ["a" * 400 + " " + "z" * 400]

    run_virtual(main())


async def test_the_file_is_read_anew_and_a_broken_one_is_not_taken(car: Car, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    routes = await SemanticRoutes.start(car.file, car.embedder, ["v", "c"], car.metrics, clock)

    async def route_of(text: str) -> object:
        ruling = (await routes.rule(say(text), Deadline.never(clock)))[1]
        return ruling.told["semantic"]["route"]  # type: ignore[index]

    def change(text: str, stamp: int) -> None:
        car.write(text)
        os.utime(car.file, (stamp, stamp))

    assert await route_of("make it warm inside") == "climate"
    change(ROUTES.replace("[route.climate]", "[route.heating]"), 1)
    assert await route_of("make it warm inside") == "climate"  # less than a second after the last look
    await clock.advance(1.1)
    await route_of("make it warm inside")
    await clock.advance(0.1)
    assert await route_of("make it warm inside") == "heating"
    change("[route.heating]\nexamples = 3", 2)
    with caplog.at_level(logging.INFO, logger="codriver.route"):
        for _ in range(3):
            await clock.advance(1.1)
            assert await route_of("make it warm inside") == "heating"
        reasons = [record.reason for record in caplog.records if record.levelno == logging.ERROR]  # type: ignore[attr-defined]
        assert len(reasons) == 1
        assert "route 'heating': not valid in 'examples': Expected `array`, got `int`" in reasons[0]
        car.file.unlink()
        for _ in range(3):
            await clock.advance(1.1)
            assert await route_of("make it warm inside") == "heating"
    told = [record.reason for record in caplog.records if record.levelno == logging.ERROR]  # type: ignore[attr-defined]
    assert len(told) == 2
    assert "does not exist" in told[1]
    change(ROUTES, 3)
    await clock.advance(1.1)
    await route_of("make it warm inside")
    await clock.advance(0.1)
    assert await route_of("make it warm inside") == "climate"
    await routes.aclose()


async def test_a_broken_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        await SemanticRoutes.start(tmp_path / "none.toml", WordEmbedder(), ["v"])
    car = Car(tmp_path, ROUTES.replace('policy = "vehicle-first"', 'engine = "moon"'))
    with pytest.raises(BadConfigValue, match="'engine' is 'moon'; allowed: v"):
        await SemanticRoutes.start(car.file, car.embedder, ["v"])


def test_texts_are_neither_counted_nor_told(car: Car) -> None:
    async def main() -> None:
        hybrid = await car.start()
        got = await car.answer(hybrid, say("call my zanzibar sister please"))
        assert "zanzibar" not in json.dumps(got.extension)
        assert b"zanzibar" not in car.metrics.render()[0]

    run_virtual(main())


def test_a_vehicle_without_a_file_changes_nothing() -> None:
    async def main() -> None:
        lineup = lineup_of(Faulty("v"))
        got = await watch(HybridEngine(lineup).generate(ask(), Deadline.never(LoopClock())), lineup)
        assert "semantic" not in got.extension

    run_virtual(main())


async def test_many_requests_at_once_share_one_look(car: Car) -> None:
    clock = ManualClock()
    routes = await SemanticRoutes.start(car.file, car.embedder, ["v", "c"], car.metrics, clock)
    await clock.advance(2)
    os.utime(car.file, (5, 5))
    car.embedder.seen.clear()
    await asyncio.gather(*(routes.rule(say("make it warm inside"), Deadline.never(clock)) for _ in range(20)))
    assert len(set(car.embedder.seen)) == 1  # vectors of examples that did not change are kept
    await routes.aclose()
