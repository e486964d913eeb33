"""The engine against the real model: what the contract suite does not ask."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.errors import EngineDied, EngineUnavailable, PromptTooLong, UnsupportedParameter
from codriver.core.messages import ChatRequest, JsonSchema, Message, RequestOptions, ResponseFormat
from codriver.engines.openvino import OpenVino, OpenVinoConfig
from tests.unit.engines.gguf_files import write_gguf

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]
if importlib.util.find_spec("openvino_genai") is None:
    pytest.skip("needs the extra: pip install 'codriver[openvino]'", allow_module_level=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_file: Callable[[str], Path]) -> AsyncIterator[OpenVino]:
    opened = await OpenVino.start(OpenVinoConfig(model=model_file("smollm2.gguf"), slots=2, context_tokens=1024))
    yield opened
    await opened.aclose()


def user(text: str, **members: Any) -> ChatRequest:
    settings = {"temperature": 0.0, "max_tokens": 8, "stream": True, **members}
    return ChatRequest(messages=[Message(role="user", content=text)], **settings)


async def answer(engine: OpenVino, request: ChatRequest) -> Answer:
    collected = Answer()
    async for chunk in engine.generate(request, Deadline.after(60)):
        collected.add(chunk)
    return collected


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"n": 2}, "'n': it gives one answer per request"),
        ({"logit_bias": {"1": 2.0}}, "'logit_bias': it cannot weigh single tokens"),
        ({"logprobs": True, "top_logprobs": 3}, "log-probability of the chosen token only"),
        ({"codriver": RequestOptions(lora=[{"id": 0}])}, r"does not support (this )?'codriver.lora'"),
        (
            {"response_format": ResponseFormat(type="json_schema", json_schema=JsonSchema(schema={"type": "odd"}))},
            "its schemas may use: additionalProperties",
        ),
        ({"response_format": ResponseFormat(type="json_object"), "continue_from": "{"}, "cannot go on inside a JSON"),
    ],
)
async def test_what_it_cannot_do_is_refused_and_harms_nobody(
    engine: OpenVino, members: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UnsupportedParameter, match=sentence):
        await answer(engine, user("x", **members))
    assert (await answer(engine, user("Hello"))).complete


async def test_the_count_decides_what_is_too_long(engine: OpenVino) -> None:
    with pytest.raises(PromptTooLong, match=r"has 15[0-9]{2} tokens; 'vehicle' has a context of 1024 tokens"):
        await answer(engine, user("word " * 1500))


async def test_leaving_stops_the_work_at_the_next_step(engine: OpenVino) -> None:
    chunks = engine.generate(user("Write a long story.", max_tokens=500), Deadline.after(60))
    async for chunk in chunks:
        if chunk.text():
            break
    await chunks.aclose()  # type: ignore[attr-defined]
    assert engine.health().queue == 0
    assert (await answer(engine, user("Hello"))).complete
    assert engine._steps is not None and not engine._steps._work  # a story left to itself would still be told


async def test_closing_ends_what_is_under_way(model_file: Callable[[str], Path]) -> None:
    opened = await OpenVino.start(OpenVinoConfig(model=model_file("smollm2.gguf"), slots=1, context_tokens=512))
    running = asyncio.ensure_future(answer(opened, user("Write a long story.", max_tokens=400)))
    while not (opened._steps and opened._steps._work):  # noqa: ASYNC110 - there is nothing to wait for but the thread
        await asyncio.sleep(0.001)
    await opened.aclose()
    with pytest.raises(EngineDied, match="stopped before its answer was complete"):
        await running
    with pytest.raises(EngineUnavailable, match="is down: it was closed"):
        await answer(opened, user("Hello"))


async def test_a_file_it_cannot_convert_is_refused_before_loading(tmp_path: Path) -> None:
    tensors = [("a", (256,), 10, bytes(84))]
    file = write_gguf(tmp_path / "k.gguf", {"general.architecture": "llama"}, tensors)
    with pytest.raises(EngineUnavailable, match=r"k\.gguf holds Q2_K tensors.*Use the llama_cpp engine"):
        await OpenVino.start(OpenVinoConfig(model=file))
