"""Openings with the real model: found in every slot, never a wrong answer, no file left."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.messages import ChatRequest, Message, RequestOptions

if importlib.util.find_spec("xllamacpp") is None:
    pytest.skip("needs the wheel xllamacpp", allow_module_level=True)

from codriver.engines.llama_cpp import LlamaCpp
from codriver.engines.llama_cpp_config import LlamaCppConfig
from codriver.engines.llama_cpp_slots import history_of
from tests.unit.engines.gguf_files import write_lora

pytestmark = [pytest.mark.model, pytest.mark.asyncio]

Find = Callable[[str], Path]
RULES = "Turn what the driver says into a command of the car: climate, window, seat, radio or navigation."
SHOTS = (
    ("It is too cold in here.", "climate +2"),
    ("Open my window a little.", "window 20"),
    ("Play the news, please.", "radio 3"),
    ("My back hurts today.", "seat 4"),
)


def command(text: str, rules: str = RULES, **members: Any) -> ChatRequest:
    messages = [Message(role="system", content=rules)]
    for asked, told in SHOTS:
        messages += [Message(role="user", content=asked), Message(role="assistant", content=told)]
    messages.append(Message(role="user", content=text))
    return ChatRequest(messages=messages, **{"temperature": 0.0, "max_tokens": 2, "stream": True, **members})


@asynccontextmanager
async def running(file: Path, **members: Any) -> AsyncIterator[LlamaCpp]:
    engine = await LlamaCpp.start(LlamaCppConfig(model=file, **{"slots": 3, "context_tokens": 512, **members}))
    try:
        yield engine
    finally:
        await engine.aclose()


async def ask(engine: LlamaCpp, request: ChatRequest) -> Answer:
    collected = Answer()
    async for chunk in engine.generate(request, Deadline.after(60)):
        collected.add(chunk)
    return collected


async def learn(engine: LlamaCpp, rules: str = RULES, **members: Any) -> None:
    """Two requests that part, and the save behind them."""
    for text in ("Warm my seat.", "Close the roof."):
        await ask(engine, command(text, rules, **members))
    if engine._keeper._saving is not None:
        await engine._keeper._saving


async def strangers(engine: LlamaCpp, count: int) -> None:
    """Overwrite that many slots."""
    texts = [ChatRequest(messages=[Message(role="user", content=f"Hm {n}")], max_tokens=1) for n in range(count)]
    await asyncio.gather(*(ask(engine, request) for request in texts))


def cached(collected: Answer) -> int:
    assert collected.usage and collected.usage.prompt_tokens_details
    return collected.usage.prompt_tokens_details.cached_tokens


def kept(engine: LlamaCpp) -> list[Path]:
    assert engine._server is not None
    return sorted(engine._server.slot_folder.glob("*.kv"))


async def test_an_opening_is_found_in_every_slot(model_file: Find) -> None:
    texts = ("Louder, please.", "Play the news now, please.", "Open my window a little, please.")
    async with running(model_file("smollm2.gguf"), openings=0) as plain:
        await learn(plain)
        assert not kept(plain)
        right = [await ask(plain, command(text)) for text in texts]
        at_once = await asyncio.gather(*(ask(plain, command(f"{text} Now!")) for text in texts))
        assert sorted(map(cached, at_once))[0] < 50  # computed again
    async with running(model_file("smollm2.gguf")) as engine:
        await learn(engine)
        (file,) = kept(engine)
        assert engine._server is not None
        folder = engine._server.slot_folder
        assert folder.stat().st_mode & 0o077 == 0
        await strangers(engine, 3)
        answers = [await ask(engine, command(text)) for text in texts]
        assert [answer.text for answer in answers] == [answer.text for answer in right]
        await strangers(engine, 3)
        answers += await asyncio.gather(*(ask(engine, command(f"{text} Now!")) for text in texts))
        opening = engine._openings.find(history_of(command(texts[0])))
        assert opening is not None and opening.messages == 1 + 2 * len(SHOTS) and opening.state.tokens > 100
        assert min(map(cached, answers)) >= opening.state.tokens - 1
        assert kept(engine) == [file]
    assert not folder.exists()


async def test_saving_leaves_the_conversation_in_its_slot(model_file: Find) -> None:
    async with running(model_file("smollm2.gguf")) as engine:
        await ask(engine, command("Warm my seat."))
        second = command("Close the roof.")
        answer = await ask(engine, second)
        assert engine._keeper._saving is not None
        await engine._keeper._saving
        second.messages += [Message(role="assistant", content=answer.text), Message(role="user", content="Thanks.")]
        assert answer.usage is not None
        assert cached(await ask(engine, second)) >= answer.usage.prompt_tokens - 1


async def test_a_damaged_or_lost_file_only_costs_time(model_file: Find) -> None:
    async with running(model_file("smollm2.gguf"), slots=2) as engine:
        await learn(engine)
        right = await ask(engine, command("Louder, please."))
        for damaged in (lambda state: b"", lambda state: state[:9000], lambda state: state[:-4000] + bytes(4000)):
            (file,) = kept(engine)
            state = file.read_bytes()
            if not damaged(state):
                file.unlink()
            else:
                file.write_bytes(damaged(state))
            await strangers(engine, 2)
            answers = await asyncio.gather(*(ask(engine, command("Louder, please.")) for _ in range(2)))
            assert {answer.text for answer in answers} == {right.text}
            await learn(engine)  # it comes again, and is saved again
            assert [path.stat().st_size for path in kept(engine)] == [len(state)]


async def test_openings_are_bounded_and_short_ones_not_kept(model_file: Find) -> None:
    async with running(model_file("smollm2.gguf"), openings=1) as engine:
        await learn(engine)
        first = kept(engine)
        await learn(engine, rules="Be a parrot. Say it again.")
        assert len(kept(engine)) == 1 and kept(engine) != first
        for text in ("a", "b", "c"):
            short = command(text)
            short.messages[:-1] = [Message(role="system", content="Be brief.")]
            await ask(engine, short)
            if engine._keeper._saving is not None:
                await engine._keeper._saving
        assert len(kept(engine)) == 1


async def test_adapters_have_openings_of_their_own(model_file: Find, tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "ones.gguf")
    options = RequestOptions(lora=[{"name": "ones", "scale": 4.0}])
    async with running(model_file("smollm2.gguf"), slots=2, lora=(f"ones={adapter}",), openings=0) as plain:
        right = [(await ask(plain, command("Louder, please.", codriver=extra))).text for extra in (None, options)]
    async with running(model_file("smollm2.gguf"), slots=2, lora=(f"ones={adapter}",)) as engine:
        await learn(engine)
        await learn(engine, codriver=options)
        assert len(kept(engine)) == 2
        for _ in range(2):
            pairs = [ask(engine, command("Louder, please.", codriver=extra)) for extra in (None, options)]
            assert [answer.text for answer in await asyncio.gather(*pairs)] == right


async def test_closing_while_it_saves(model_file: Find) -> None:
    async with running(model_file("smollm2.gguf")) as engine:
        await ask(engine, command("Warm my seat."))
        await ask(engine, command("Close the roof."))
        saving = engine._keeper._saving
        assert saving is not None and not saving.done() and engine._server is not None
        folder = engine._server.slot_folder
        await asyncio.sleep(0)
    assert saving.done() and not folder.exists()
