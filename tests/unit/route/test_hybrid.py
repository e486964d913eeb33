"""The router as an engine: breakers, privacy, sessions, embeddings, health over many requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health
from codriver.core.errors import EngineUnavailable, LinkDown, NoEngineLeft, UnsupportedModality
from codriver.core.messages import EmbedRequest, TensorRequest
from codriver.core.virtual import LoopClock, run_virtual
from codriver.engines.null import Null, NullConfig
from codriver.route.config import RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from tests.unit.route.drive import ask, lineup_of, through_router, watch
from tests.unit.route.faulty import EVERY, WORDS, Fault, Faulty, Weather

TEXT = "".join(WORDS)
CLOUD_FIRST = {"policy": "cloud-first"}


async def once(hybrid: HybridEngine, lineup: Lineup, **options: Any) -> Any:
    return await watch(hybrid.generate(ask(codriver=options), Deadline.never(LoopClock())), lineup)


def test_while_the_link_is_down_the_cloud_is_neither_tried_nor_blamed() -> None:
    async def main() -> None:
        link, c = Weather("down"), Faulty("c", "cloud", fault=Fault("stall"))
        lineup = lineup_of(Faulty("v"), c, link=link)
        hybrid = HybridEngine(lineup)
        for _ in range(10):
            got = await once(hybrid, lineup, **CLOUD_FIRST)
            assert got.text == TEXT
        assert c.calls == 0
        # Going down under the answer does not count against the engine either.
        for _ in range(5):
            link.become("up")
            task = asyncio.ensure_future(once(hybrid, lineup, **CLOUD_FIRST))
            await asyncio.sleep(0.5)
            link.become("down")
            assert (await task).text == TEXT
        assert c.calls == 5
        assert lineup.breakers["c"].state == "closed"
        with pytest.raises(LinkDown, match="was not tried"):
            raise (await once(hybrid, lineup, engine="c")).error

    run_virtual(main())


def test_a_dead_cloud_is_left_alone_and_probed_by_exactly_one_request() -> None:
    async def main() -> None:
        c = Faulty("c", "cloud", fault=Fault("die"))
        lineup = lineup_of(Faulty("v"), c)
        hybrid = HybridEngine(lineup)
        for _ in range(6):
            assert (await once(hybrid, lineup, **CLOUD_FIRST)).text == TEXT
        assert c.calls == 3
        c.fault, c.ttft_s = Fault(), 0.5
        await asyncio.sleep(3.0)
        assert lineup.breakers["c"].state == "half-open"
        many = await asyncio.gather(*(once(hybrid, lineup, **CLOUD_FIRST) for _ in range(8)))
        assert c.calls == 4
        assert sorted(got.extension["engine"] for got in many) == ["c"] + ["v"] * 7
        assert lineup.breakers["c"].state == "closed"

    run_virtual(main())


def test_a_client_with_tiny_time_limits_does_not_open_a_breaker_for_all() -> None:
    async def main() -> None:
        lineup = lineup_of(Faulty("v"))
        hybrid = HybridEngine(lineup)
        for _ in range(10):
            assert (await once(hybrid, lineup, deadline_ms=20)).error is not None
            assert (await once(hybrid, lineup, first_token_ms=20)).error is not None
        assert lineup.breakers["v"].state == "closed"
        assert (await once(hybrid, lineup)).text == TEXT

    run_virtual(main())


def test_a_silent_engine_opens_its_breaker_even_where_only_the_deadline_ended_the_wait() -> None:
    async def main() -> None:
        c = Faulty("c", "cloud", fault=Fault("stall"))
        lineup = lineup_of(Faulty("v"), c)
        hybrid = HybridEngine(lineup)
        for _ in range(5):
            assert (await once(hybrid, lineup, deadline_ms=6000, **CLOUD_FIRST)).text == TEXT
        assert c.calls == 3

    run_virtual(main())


def test_cancelled_requests_leave_the_breaker_as_it_was() -> None:
    async def main() -> None:
        v = Faulty("v")
        lineup = lineup_of(v)
        hybrid = HybridEngine(lineup)
        for _ in range(5):
            stream = hybrid.generate(ask(), Deadline.never(LoopClock()))
            assert (await watch(stream, lineup, cancel_s=0.3)).cancelled
        assert lineup.breakers["v"].state == "closed"
        assert v.open == 0

    run_virtual(main())


def test_a_local_conversation_never_reaches_the_cloud_later() -> None:
    async def main() -> None:
        v, c = Faulty("v"), Faulty("c", "cloud")
        lineup = lineup_of(v, c)
        hybrid = HybridEngine(lineup)
        await once(hybrid, lineup, session="s", privacy="local_only")
        await once(hybrid, lineup, session="s", **CLOUD_FIRST)
        await once(hybrid, lineup, session="s", policy="cloud-only")
        assert c.calls == 0
        got = await once(hybrid, lineup, session="s", engine="c")
        assert got.error.message == "The request is local_only and the engine 'c' is not in the vehicle."
        await once(hybrid, lineup, session="t", **CLOUD_FIRST)
        assert c.calls == 1
        assert [m.text() for m in v.requests[1].messages][1] == TEXT

    run_virtual(main())


def test_local_only_with_cloud_only_says_so() -> None:
    got = through_router(ask(codriver={"privacy": "local_only", "policy": "cloud-only"}), Faulty("v"))
    assert isinstance(got.error, NoEngineLeft)
    assert "its policy is cloud-only" in got.error.message


def test_a_router_told_not_to_look_knows_the_link_by_its_time_outs() -> None:
    c = Faulty("c", "cloud", fault=Fault("stall"))
    config = RouteConfig(link_aware=False, first_token_s=2.0)
    got = through_router(ask(codriver=CLOUD_FIRST), Faulty("v"), c, config=config, link=Weather("down"))
    assert got.text == TEXT
    assert c.calls == 1
    assert got.took_s > 2.0


def test_a_failed_cloud_engine_is_tried_again_although_it_says_down() -> None:
    c = Faulty("c", "cloud", state="down")
    assert through_router(ask(codriver=CLOUD_FIRST), Faulty("v"), c).extension["engine"] == "c"
    for state in ("down", "loading"):
        got = through_router(ask(), Faulty("v", state=state), Faulty("c", "cloud"))  # type: ignore[arg-type]
        assert got.extension["engine"] == "c"
    assert "still loading" in through_router(ask(), Faulty("v", state="loading")).error.message


def test_an_engine_that_shows_no_probabilities_is_judged_beforehand() -> None:
    v = Faulty("v", capabilities=EVERY - {"logprobs"})
    assert through_router(ask(), v, Faulty("c", "cloud")).extension["engine"] == "c"
    got = through_router(ask(codriver={"policy": "vehicle-first"}), v, Faulty("c", "cloud"))
    assert got.extension["engine"] == "v"


async def test_embeddings_come_from_the_vehicle_and_else_from_the_cloud() -> None:
    v, c = Null(NullConfig(id="v", dimensions=4)), Null(NullConfig(id="c", locality="cloud", dimensions=4))
    hybrid = HybridEngine(Lineup({"c": c, "v": v}))
    assert (await hybrid.embed(EmbedRequest("x"), Deadline.never())).model == "v"
    await v.aclose()
    assert (await hybrid.embed(EmbedRequest("x"), Deadline.never())).model == "c"
    await c.aclose()
    with pytest.raises(EngineUnavailable):
        await hybrid.embed(EmbedRequest("x"), Deadline.never())
    with pytest.raises(UnsupportedModality, match="No engine here runs tensor graphs"):
        await hybrid.infer(TensorRequest(()), Deadline.never())
    with pytest.raises(UnsupportedModality, match="No engine here makes embeddings"):
        await HybridEngine(Lineup({"f": Faulty("f")})).embed(EmbedRequest("x"), Deadline.never())


async def test_its_card_and_health_are_those_of_the_best() -> None:
    hybrid = HybridEngine(Lineup({"v": Faulty("v", state="loading"), "c": Faulty("c", "cloud")}))
    assert hybrid.card == EngineCard(
        "codriver", "vehicle", "codriver", capabilities=EVERY | {"context"}, context_tokens=4096
    )
    assert hybrid.health().state == "ready"
    assert HybridEngine(Lineup({})).health() == Health("down", reason="no engine is set up")
    await hybrid.aclose()
