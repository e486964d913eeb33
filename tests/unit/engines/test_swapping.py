"""A swap cuts no answer, takes no more than two engines, and a model that does not load changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from codriver.core.clock import ManualClock
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import EngineUnavailable
from codriver.core.messages import ChatRequest, EmbedRequest, Message
from codriver.engines.null import Null, NullConfig
from codriver.engines.swapping import SwappingEngine

REQUEST = ChatRequest(messages=[Message(role="user", content="hello")])


def made(name: str, clock: ManualClock | None = None) -> Null:
    config = NullConfig(id=name, text="one two three four", per_token_ms=10.0 if clock else 0.0)
    return Null(config, clock) if clock else Null(config)


async def said(engine: Engine) -> str:
    parts = [
        choice.delta.content or ""
        async for chunk in engine.generate(REQUEST, Deadline.never())
        for choice in chunk.choices
    ]
    return "".join(parts)


def loading(engine: Engine) -> Callable[[], asyncio.Future[Engine]]:
    def load() -> asyncio.Future[Engine]:
        found: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
        found.set_result(engine)
        return found

    return load


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_answer_under_way_ends_where_it_began_and_new_ones_go_to_the_new() -> None:
    clock = ManualClock()
    first, second = made("first", clock), made("second")
    engine = SwappingEngine(first)
    under_way = asyncio.create_task(said(engine))
    await settle()
    await engine.swap(loading(second))
    assert engine.card.id == "second" and await said(engine) == "one two three four"
    assert not under_way.done() and first.health().state == "ready", "it is not closed under its answer"
    await clock.advance(0.05)
    assert await under_way == "one two three four"
    await settle()
    assert first.health().state == "down", "the last answer has gone"
    await engine.aclose()
    assert second.health().state == "down"


async def test_the_next_swap_waits_until_two_are_one_again() -> None:
    clock = ManualClock()
    engine = SwappingEngine(made("first", clock))
    under_way = asyncio.create_task(said(engine))
    await settle()
    await engine.swap(loading(made("second")))
    third = asyncio.create_task(engine.swap(loading(made("third"))))
    await settle()
    assert engine.card.id == "second" and not third.done()
    await clock.advance(0.05)
    await under_way
    await third
    assert engine.card.id == "third"
    await engine.aclose()


async def test_what_does_not_load_leaves_the_old_one() -> None:
    async def broken() -> Engine:
        raise EngineUnavailable("Memory is short.")

    engine = SwappingEngine(made("first"))
    with pytest.raises(EngineUnavailable, match="Memory is short"):
        await engine.swap(broken)
    assert engine.card.id == "first" and await said(engine) == "one two three four"
    await engine.aclose()


async def test_one_that_rests_refuses_by_its_reason_and_ends_what_it_began() -> None:
    clock = ManualClock()
    engine = SwappingEngine(made("first", clock))
    under_way = asyncio.create_task(said(engine))
    await settle()
    engine.rest("it rests while the computer is critical (90 °C)")
    assert engine.health().state == "down" and engine.health().reason.endswith("critical (90 °C)")
    with pytest.raises(EngineUnavailable, match=r"'first' takes no requests: it rests while .* critical \(90 °C\)\."):
        await said(engine)
    with pytest.raises(EngineUnavailable, match="takes no requests"):
        await engine.embed(EmbedRequest(model="first", input="hello"), Deadline.after(1))
    await clock.advance(0.05)
    assert await under_way == "one two three four"
    engine.work("the computer is warm")
    assert (engine.health().state, engine.health().reason) == ("ready", "the computer is warm")
    engine.work()
    assert engine.health().reason == ""
    await engine.aclose()


async def test_closing_does_not_wait_for_an_answer() -> None:
    first, second = made("first", ManualClock()), made("second")
    engine = SwappingEngine(first)
    under_way = asyncio.create_task(said(engine))
    await settle()
    await engine.swap(loading(second))
    await engine.aclose()
    assert first.health().state == second.health().state == "down"
    under_way.cancel()


async def test_llama_cpp_gives_way_to_another_within_an_answer(model_file: Callable[[str], Path]) -> None:
    pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp")
    from codriver.engines.llama_cpp import LlamaCpp
    from codriver.engines.llama_cpp_config import LlamaCppConfig

    file = model_file("smollm2.gguf")

    async def load() -> Engine:
        return await LlamaCpp.start(LlamaCppConfig(id="second", model=file, slots=1, threads=1, context_tokens=256))

    first = await LlamaCpp.start(LlamaCppConfig(id="first", model=file, slots=1, threads=2, context_tokens=256))
    engine = SwappingEngine(first)
    asked = ChatRequest(messages=[Message(role="user", content="Count to twenty.")], max_tokens=40, temperature=0.0)
    pieces, began = 0, asyncio.Event()
    ends: list[str] = []

    async def listen() -> None:
        nonlocal pieces
        async for chunk in engine.generate(asked, Deadline.after(120)):
            began.set()
            pieces += sum(bool(choice.delta.content) for choice in chunk.choices)
            ends.extend(filter(None, [chunk.finish_reason]))

    under_way = asyncio.create_task(listen())
    await began.wait()
    await engine.swap(load)
    assert engine.card.id == "second"
    await under_way
    assert ends[-1] in ("length", "stop") and pieces > 10
    text = [chunk async for chunk in engine.generate(asked, Deadline.after(120))]
    assert any(chunk.finish_reason for chunk in text)
    await engine.aclose()
    assert first.health().state == "down"
