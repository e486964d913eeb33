"""The engine against the real model: what the contract suite does not ask."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.errors import (
    BadConfigValue,
    BadModelFile,
    EngineDied,
    EngineUnavailable,
    MissingFile,
    PromptTooLong,
    UnsupportedParameter,
)
from codriver.core.messages import (
    ChatRequest,
    JsonSchema,
    Message,
    RequestOptions,
    ResponseFormat,
    Tool,
)

if importlib.util.find_spec("xllamacpp") is None:
    pytest.skip("needs the wheel xllamacpp", allow_module_level=True)

from codriver.engines.llama_cpp import LlamaCpp
from codriver.engines.llama_cpp_config import LlamaCppConfig
from tests.unit.engines.gguf_files import write_gguf, write_lora

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

Find = Callable[[str], Path]
RULES = "You are the voice of the car. " + " ".join(f"Rule {n}: be short and kind." for n in range(24))
PREFIX: tuple[dict[str, Any], ...] = ({"role": "system", "content": RULES},)
HEAT: dict[str, Any] = {
    "name": "set_temperature",
    "description": "Set the cabin temperature.",
    "parameters": {"type": "object", "properties": {"celsius": {"type": "integer"}}, "required": ["celsius"]},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_file: Find, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCpp]:
    adapter = write_lora(tmp_path_factory.mktemp("lora") / "ones.gguf")
    config = LlamaCppConfig(model=model_file("smollm2.gguf"), batch_tokens=64, lora=(f"ones={adapter}",))
    opened = await LlamaCpp.start(config)
    yield opened
    await opened.aclose()


def user(text: str, **members: Any) -> ChatRequest:
    return ChatRequest(
        messages=[Message(role="user", content=text)],
        **{"temperature": 0.0, "max_tokens": 8, "stream": True, **members},
    )


async def answer(engine: LlamaCpp, request: ChatRequest) -> Answer:
    collected = Answer()
    async for chunk in engine.generate(request, Deadline.after(60)):
        collected.add(chunk)
    return collected


def cached(collected: Answer) -> int:
    assert collected.usage and collected.usage.prompt_tokens_details
    return collected.usage.prompt_tokens_details.cached_tokens


async def counted(engine: LlamaCpp) -> tuple[float, float]:
    """Prompt tokens read and answer tokens made by the server so far."""
    assert engine._server is not None
    lines = (await engine._server.call("GET", "/metrics")).splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
    return values["llamacpp:prompt_tokens_total"], values["llamacpp:tokens_predicted_total"]


async def settled(engine: LlamaCpp) -> tuple[float, float]:
    """The same, once every slot is idle."""
    while await working(engine):
        pass
    return await counted(engine)


async def working(engine: LlamaCpp) -> bool:
    assert engine._server is not None
    return any(slot["is_processing"] for slot in await engine._server.call("GET", "/slots"))


async def test_four_streams_all_progress(engine: LlamaCpp) -> None:
    order: list[int] = []

    async def run(number: int) -> None:
        async for chunk in engine.generate(user(f"Story {number}!", max_tokens=24), Deadline.after(60)):
            if chunk.text():
                order.append(number)

    await asyncio.gather(*(run(number) for number in range(4)))
    firsts, lasts = [order.index(n) for n in range(4)], [len(order) - order[::-1].index(n) for n in range(4)]
    assert max(firsts) < min(lasts)  # every stream began before any had ended


async def test_leaving_stops_the_work_within_a_token(engine: LlamaCpp) -> None:
    _, before = await settled(engine)
    chunks = engine.generate(user("Write a long story about a car.", max_tokens=400), Deadline.after(60))
    seen = 0
    async for chunk in chunks:
        seen += bool(chunk.text())
        if seen == 5:
            break
    await chunks.aclose()  # type: ignore[attr-defined]
    _, after = await settled(engine)
    assert after - before <= seen + 2  # the token under way, and the one llama.cpp notices the closed socket at


async def test_leaving_a_long_prompt_stops_within_a_batch(engine: LlamaCpp) -> None:
    before, _ = await settled(engine)
    task = asyncio.ensure_future(answer(engine, user("four five " * 900)))
    while not await working(engine):
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    after, _ = await settled(engine)
    assert after - before <= 6 * 64  # of 1800: a few batches of 64 pass while this test looks on


async def test_busy_is_counted(engine: LlamaCpp) -> None:
    tasks = [asyncio.ensure_future(answer(engine, user(f"Tale {n}.", max_tokens=30))) for n in range(6)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    health = engine.health()
    assert (health.state, health.queue) == ("busy", 6)
    assert health.eta_s > 0
    await asyncio.gather(*tasks)
    assert engine.health().queue == 0


async def test_an_adapter_acts_only_where_it_is_named(engine: LlamaCpp) -> None:
    plain = (await answer(engine, user("Say hello."))).text
    asked = [RequestOptions(lora=[{"name": "ones", "scale": 4.0}]), RequestOptions(lora=[{"id": 0, "scale": 4.0}])]
    changed = [(await answer(engine, user("Say hello.", codriver=options))).text for options in asked]
    assert changed[0] == changed[1] != plain
    assert (await answer(engine, user("Say hello."))).text == plain
    with pytest.raises(UnsupportedParameter, match=r"has no adapter 'other'\. Loaded: ones"):
        await answer(engine, user("x", codriver=RequestOptions(lora=[{"name": "other"}])))


@pytest.mark.parametrize("spoils", ["refused", "left"])
async def test_an_adapter_leaves_nothing_behind_a_request_that_was_not_read(
    model_file: Find, tmp_path: Path, spoils: str
) -> None:
    """The one slot holds what an adapter computed; the next request ends before its prompt is read."""
    adapter = write_lora(tmp_path / "ones.gguf")
    config = LlamaCppConfig(model=model_file("smollm2.gguf"), slots=1, lora=(f"ones={adapter}",), openings=0)
    engine = await LlamaCpp.start(config)
    try:
        plain = (await answer(engine, user("Say hello."))).text
        with_adapter = RequestOptions(lora=[{"name": "ones", "scale": 4.0}])
        assert (await answer(engine, user("Say hello.", codriver=with_adapter))).text != plain
        if spoils == "refused":
            form = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema={"type": "nonsense"}))
            with pytest.raises(UnsupportedParameter, match="The JSON schema cannot be enforced"):
                await answer(engine, user("x", response_format=form))
        else:
            task = asyncio.ensure_future(answer(engine, user("four five " * 600)))
            while not await working(engine):
                pass
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert (await answer(engine, user("Say hello."))).text == plain
    finally:
        await engine.aclose()


async def test_json_is_compact_and_closed(engine: LlamaCpp) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    form = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=schema))
    assert (await answer(engine, user("Lights on!", response_format=form, max_tokens=40))).text in (
        '{"on": true}',
        '{"on": false}',
    )
    whole = (await answer(engine, user("Lights on!", response_format=form, continue_from='{"on"', max_tokens=40))).text
    assert whole.replace(" ", "") in (":true}", ":false}")


async def test_a_schema_that_cannot_be_kept_is_refused(engine: LlamaCpp) -> None:
    form = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema={"type": "nonsense"}))
    with pytest.raises(UnsupportedParameter, match="The JSON schema cannot be enforced"):
        await answer(engine, user("x", response_format=form))


async def test_a_continued_answer_is_the_same_answer(engine: LlamaCpp) -> None:
    question = "Name three colours and describe them."
    whole = (await answer(engine, user(question, max_tokens=24))).text
    pieces: list[str] = []
    async for chunk in engine.generate(user(question, max_tokens=24), Deadline.after(60)):
        pieces.append(chunk.text())
        if len([piece for piece in pieces if piece]) == 8:
            break
    given = "".join(pieces)
    rest = (await answer(engine, user(question, continue_from=given, max_tokens=16))).text
    assert (given + rest)[: len(whole)] == whole[: len(given + rest)]


async def test_a_demanded_call_comes_without_thoughts(engine: LlamaCpp) -> None:
    """As with a template that knows tools and thinks: what is asked of llama.cpp then must be taken by it."""
    dialect, engine._dialect = engine._dialect, replace(engine._dialect, native_tools=True, thinks=True)
    try:
        request = user("Set the temperature to 21 degrees.", tool_choice="required", max_tokens=40)
        request.tools = [msgspec.convert({"type": "function", "function": HEAT}, Tool)]
        (only,) = (await answer(engine, request)).completion().choices
    finally:
        engine._dialect = dialect
    assert only.finish_reason == "tool_calls" and only.message.tool_calls
    assert only.message.tool_calls[0].function.name == "set_temperature"


async def test_the_count_decides_what_is_too_long(engine: LlamaCpp) -> None:
    with pytest.raises(PromptTooLong, match=r"has 3[0-9]{3} tokens; 'vehicle' has a context of 2048 tokens"):
        await answer(engine, user("word " * 3000))
    with pytest.raises(UnsupportedParameter, match="one answer per request"):
        await answer(engine, user("x", n=2))


async def test_closing_ends_streams_and_leaves_nothing(model_file: Find) -> None:
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config = LlamaCppConfig(model=model_file("smollm2.gguf"), slots=1, context_tokens=512)
    one, other = await asyncio.gather(LlamaCpp.start(config), LlamaCpp.start(config))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == signals
    assert one._server is not None
    folder = one._server.folder
    assert folder.stat().st_mode & 0o077 == 0
    running = asyncio.ensure_future(answer(one, user("Write a long story.", max_tokens=400)))
    waiting = asyncio.ensure_future(answer(one, user("And another.", max_tokens=400)))
    await asyncio.sleep(0.2)
    await one.aclose()
    await one.aclose()
    with pytest.raises(EngineDied, match="stopped before its answer was complete"):
        await running
    with pytest.raises(EngineUnavailable, match="is down: it was closed"):
        await waiting
    assert not folder.exists()
    assert (await answer(other, user("Hello"))).complete  # a second engine in the process is not touched
    await other.aclose()
    assert not [thread for thread in threading.enumerate() if "llama" in thread.name]


async def test_ctrl_c_reaches_the_process(model_file: Find) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    opened = await LlamaCpp.start(LlamaCppConfig(model=model_file("smollm2.gguf"), slots=1, context_tokens=512))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stopped.wait(), 5)
        assert (await answer(opened, user("Hello"))).complete
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        await opened.aclose()


async def test_it_says_loading_until_it_is_ready(model_file: Find) -> None:
    opened = LlamaCpp(LlamaCppConfig(model=model_file("smollm2.gguf"), slots=1, context_tokens=512))
    assert opened.health().state == "loading"
    with pytest.raises(EngineUnavailable, match="still loading"):
        await answer(opened, user("Hello"))
    await opened.load()
    assert opened.health().state == "ready"
    await opened.aclose()


async def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="does not exist"):
        await LlamaCpp.start(LlamaCppConfig(model=tmp_path / "none.gguf"))
    (tmp_path / "text.gguf").write_text("hello, not a model")
    with pytest.raises(BadModelFile, match=r"text\.gguf is not a usable GGUF file: it does not begin with"):
        await LlamaCpp.start(LlamaCppConfig(model=tmp_path / "text.gguf"))
    hollow = write_gguf(tmp_path / "hollow.gguf", {"general.architecture": "llama"}, [])
    with pytest.raises(EngineUnavailable, match=r"hollow\.gguf could not be loaded"):
        await LlamaCpp.start(LlamaCppConfig(model=hollow))
    with pytest.raises(BadConfigValue, match="not of the form name=file"):
        await LlamaCpp.start(LlamaCppConfig(model=hollow, lora=("nothing",)))


# ---------------------------------------------------------------- tools where the template knows them


@pytest.mark.slow
async def test_a_template_that_knows_tools_gives_calls(model_file: Find) -> None:
    """Qwen2.5-Coder answers in prose where llama.cpp alone is asked for a call."""
    config = LlamaCppConfig(model=model_file("qwen.gguf"), slots=1, context_tokens=512)
    opened = await LlamaCpp.start(config)
    try:
        assert opened._dialect.native_tools
        named = {"type": "function", "function": {"name": "set_temperature"}}
        for choice in ("auto", "required", named):
            request = user("Set the temperature to 21 degrees.", tool_choice=choice, max_tokens=40)
            request.tools = [msgspec.convert({"type": "function", "function": HEAT}, Tool)]
            (only,) = (await answer(opened, request)).completion().choices
            assert only.finish_reason == "tool_calls" and only.message.tool_calls
            call = only.message.tool_calls[0].function
            assert (call.name, call.arguments) == ("set_temperature", '{"celsius": 21}')
            assert not only.message.content
        request.tool_choice = {"type": "function", "function": {"name": "fly"}}
        with pytest.raises(UnsupportedParameter, match=r"names 'fly', which 'tools' does not have\. It has: set_t"):
            await answer(opened, request)
    finally:
        await opened.aclose()


# ---------------------------------------------------------------- the declared prefix


def driver(text: str, **members: Any) -> ChatRequest:
    request = user(text, **members)
    request.messages.insert(0, Message(role="system", content=RULES))
    return request


async def test_the_prefix_outlives_a_restart_and_other_conversations(model_file: Find, tmp_path: Path) -> None:
    config = LlamaCppConfig(
        model=model_file("smollm2.gguf"), slots=2, context_tokens=1024, prefix=PREFIX, prefix_dir=tmp_path
    )
    first = await LlamaCpp.start(config)
    assert not first.prefix.restored and first.prefix.tokens > 200
    begun = await answer(first, driver("Who are you?"))
    assert cached(begun) >= first.prefix.tokens - 1
    # Strangers overwrite every slot ...
    await asyncio.gather(*(answer(first, user(f"Stranger {n}: " + "la " * 60)) for n in range(4)))
    # ... and the next conversations find the prefix in both all the same.
    again = await asyncio.gather(*(answer(first, driver(f"Number {n}?")) for n in range(2)))
    assert min(map(cached, again)) >= first.prefix.tokens - 1
    await first.aclose()

    second = await LlamaCpp.start(config)
    read, _ = await counted(second)
    assert second.prefix.restored
    back = await answer(second, driver("Who are you?"))
    assert cached(back) >= second.prefix.tokens - 1
    assert (await counted(second))[0] - read <= 12  # the question alone was computed
    assert back.text == begun.text
    await second.aclose()


async def test_a_damaged_or_foreign_prefix_is_computed_anew(model_file: Find, tmp_path: Path) -> None:
    def config(rules: str) -> LlamaCppConfig:
        prefix: tuple[dict[str, Any], ...] = ({"role": "system", "content": rules},)
        return LlamaCppConfig(
            model=model_file("smollm2.gguf"),
            slots=1,
            context_tokens=512,
            prefix=prefix,
            prefix_dir=tmp_path,
            prefix_files=2,
        )

    async def restored(rules: str) -> bool:
        opened = await LlamaCpp.start(config(rules))
        state = opened.prefix
        request = user("Hi")
        request.messages.insert(0, Message(role="system", content=rules))
        assert cached(await answer(opened, request)) >= state.tokens - 1
        await opened.aclose()
        return state.restored

    assert not await restored("Be brief.")
    (kept,) = tmp_path.glob("*.kv")
    damaged = bytearray(kept.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    kept.write_bytes(damaged)
    assert not await restored("Be brief.")
    assert await restored("Be brief.")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert not await restored("Be brief.")
    assert not await restored("Be long.")  # another prefix, another file
    assert not await restored("Be odd.")
    assert len(list(tmp_path.glob("*.kv"))) == 2  # bounded: the one used longest ago went
    assert not list(tmp_path.glob("*.tmp"))


async def test_a_prefix_that_is_no_message_is_refused(model_file: Find) -> None:
    bad: tuple[dict[str, Any], ...] = ({"role": "nobody", "content": "x"},)
    with pytest.raises(BadConfigValue, match="declared prefix is not valid"):
        LlamaCpp(LlamaCppConfig(model=model_file("smollm2.gguf"), prefix=bad))
