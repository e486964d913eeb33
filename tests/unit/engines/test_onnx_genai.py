"""The engine against a real model: what the contract suite does not ask."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.errors import (
    BadModelFile,
    EngineDied,
    EngineUnavailable,
    MissingFile,
    PromptTooLong,
    UnsupportedParameter,
)
from codriver.core.messages import ChatRequest, JsonSchema, Message, RequestOptions, ResponseFormat
from codriver.engines.onnx_genai import OnnxGenai, OnnxGenaiConfig, why_not

needed = [name for name in ("onnxruntime_genai", "onnx", "tokenizers") if importlib.util.find_spec(name) is None]
if needed:
    pytest.skip("needs the extra: pip install 'codriver[onnx]'", allow_module_level=True)
pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def folder(model_file: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from codriver.optimize.formats.export import export

    target = tmp_path_factory.mktemp("genai") / "smollm2"
    export(model_file("smollm2.gguf"), "onnx-genai", target, lambda step: None)
    return target


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[OnnxGenai]:
    opened = await OnnxGenai.start(OnnxGenaiConfig(model=folder, slots=2, context_tokens=1024, threads=1))
    yield opened
    await opened.aclose()


def user(text: str, **members: Any) -> ChatRequest:
    settings = {"temperature": 0.0, "max_tokens": 8, "stream": True, **members}
    return ChatRequest(messages=[Message(role="user", content=text)], **settings)


async def answer(engine: OnnxGenai, request: ChatRequest) -> Answer:
    collected = Answer()
    async for chunk in engine.generate(request, Deadline.after(60)):
        collected.add(chunk)
    return collected


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"n": 2}, "'n': it gives one answer per request"),
        ({"logit_bias": {"1": 2.0}}, "'logit_bias': it cannot weigh single tokens"),
        ({"presence_penalty": 0.5}, "'presence_penalty': it has no penalties"),
        ({"frequency_penalty": 0.5}, "'frequency_penalty': it has no penalties"),
        ({"codriver": RequestOptions(lora=[{"id": 0}])}, r"does not support (this )?'codriver.lora'"),
        (
            {"response_format": ResponseFormat(type="json_schema", json_schema=JsonSchema(schema={"type": "odd"}))},
            "its schemas may use: additionalProperties",
        ),
        ({"response_format": ResponseFormat(type="json_object"), "continue_from": "{"}, "cannot go on inside a JSON"),
    ],
)
async def test_what_it_cannot_do_is_refused_and_harms_nobody(
    engine: OnnxGenai, members: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UnsupportedParameter, match=sentence):
        await answer(engine, user("x", **members))
    assert (await answer(engine, user("Hello"))).complete


async def test_a_seed_repeats_an_answer_and_another_gives_another(engine: OnnxGenai) -> None:
    told = [
        (await answer(engine, user("Tell me a story.", temperature=1.2, seed=seed, max_tokens=16))).text
        for seed in (5, 5, 6)
    ]
    assert told[0] == told[1] != told[2]


async def test_the_likeliest_tokens_are_told_in_order(engine: OnnxGenai) -> None:
    got = await answer(engine, user("Hello", logprobs=True, top_logprobs=3))
    logprobs = got.completion().choices[0].logprobs
    assert logprobs is not None and logprobs.content
    for token in logprobs.content:
        values = [one.logprob for one in token.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert token.logprob == pytest.approx(values[0])  # greedy takes the likeliest


async def test_the_count_decides_what_is_too_long(engine: OnnxGenai) -> None:
    with pytest.raises(PromptTooLong, match=r"has 15[0-9]{2} tokens; 'vehicle' has a context of 1024 tokens"):
        await answer(engine, user("word " * 1500))


async def test_leaving_stops_the_work_at_the_next_step(engine: OnnxGenai) -> None:
    chunks = engine.generate(user("Write a long story.", max_tokens=500), Deadline.after(60))
    async for chunk in chunks:
        if chunk.text():
            break
    await chunks.aclose()  # type: ignore[attr-defined]
    assert engine.health().queue == 0
    assert (await answer(engine, user("Hello"))).complete
    assert engine._steps is not None and not engine._steps._work  # a story left to itself would still be told


async def test_closing_ends_what_is_under_way(folder: Path) -> None:
    opened = await OnnxGenai.start(OnnxGenaiConfig(model=folder, slots=1, context_tokens=512, threads=1))
    running = asyncio.ensure_future(answer(opened, user("Write a long story.", max_tokens=400)))
    while not (opened._steps and opened._steps._work):  # noqa: ASYNC110 - there is nothing to wait for but the thread
        await asyncio.sleep(0.001)
    await opened.aclose()
    with pytest.raises(EngineDied, match="stopped before its answer was complete"):
        await running
    with pytest.raises(EngineUnavailable, match="is down: it was closed"):
        await answer(opened, user("Hello"))


async def test_a_folder_that_is_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"genai_config\.json does not exist.*export MODEL --to onnx-genai"):
        why_not(tmp_path)
    settings = tmp_path / "genai_config.json"
    settings.write_text("{")
    with pytest.raises(BadModelFile, match=r"genai_config\.json is no JSON"):
        why_not(tmp_path)
    settings.write_text(json.dumps({"model": {"type": "llama", "decoder": {"filename": "model.onnx"}}}))
    with pytest.raises(MissingFile, match=r"has no file 'model\.onnx'"):
        why_not(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert why_not(tmp_path) is None
    with pytest.raises(EngineUnavailable, match=r"ONNX Runtime GenAI could not load .*tokenizer\.json"):
        await OnnxGenai.start(OnnxGenaiConfig(model=tmp_path))
    settings.write_text(json.dumps({"model": {"type": "whisper", "encoder": {}, "decoder": {}}}))
    with pytest.raises(EngineUnavailable, match="is of the type 'whisper', which is no decoder of text alone"):
        await OnnxGenai.start(OnnxGenaiConfig(model=tmp_path))
