"""The Engine contract. Every engine passes every test of what its card claims, and refuses the rest by name."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import pytest

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, Engine
from codriver.core.errors import (
    CodriverError,
    DeadlineExceeded,
    EngineUnavailable,
    PromptTooLong,
    RequestError,
    UnsupportedModality,
    UnsupportedParameter,
)
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    EmbedRequest,
    FunctionSpec,
    ImagePart,
    ImageUrl,
    JsonSchema,
    Message,
    ResponseFormat,
    StreamOptions,
    TensorRequest,
    Tool,
)
from tests.contract.cases import PROMPT, Find, Open

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONGEST_S = 60.0
SCHEMA = {
    "type": "object",
    "properties": {"domain": {"type": "string", "enum": ["climate", "media"]}, "on": {"type": "boolean"}},
    "required": ["domain", "on"],
    "additionalProperties": False,
}


def ask(text: str = PROMPT, **members: Any) -> ChatRequest:
    settings: dict[str, Any] = {"stream": True, "temperature": 0.0, "max_tokens": 12, "seed": 1}
    if members.get("stream", True):
        settings["stream_options"] = StreamOptions(include_usage=True)
    return ChatRequest(messages=[Message(role="user", content=text)], **(settings | members))


def need(engine: Engine, *capabilities: Capability) -> None:
    for capability in capabilities:
        if not engine.card.can(capability):
            pytest.skip(f"the card of '{engine.card.id}' does not claim {capability}")


async def read(engine: Engine, request: ChatRequest) -> list[ChatChunk]:
    return [chunk async for chunk in engine.generate(request, Deadline.after(LONGEST_S))]


async def answer(engine: Engine, request: ChatRequest) -> Answer:
    collected = Answer()
    for chunk in await read(engine, request):
        collected.add(chunk)
    return collected


# ---------------------------------------------------------------- the shape of an answer


async def test_a_stream_begins_with_the_role_and_ends_with_one_finish_reason(engine: Engine) -> None:
    need(engine, "chat")
    chunks = await read(engine, ask())
    with_choice = [chunk for chunk in chunks if chunk.choices]
    assert with_choice[0].choices[0].delta.role == "assistant"
    assert [chunk.finish_reason is not None for chunk in with_choice] == [False] * (len(with_choice) - 1) + [True]
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id
    assert chunks[0].model


async def test_the_text_is_the_same_streamed_and_whole(engine: Engine) -> None:
    need(engine, "chat")
    streamed, whole = await answer(engine, ask()), await answer(engine, ask(stream=False))
    assert streamed.complete and whole.complete
    assert streamed.text == whole.text != ""
    assert streamed.completion().choices[0].message.content == streamed.text


@pytest.mark.parametrize("stream", [True, False])
async def test_the_token_limit_is_kept_and_usage_is_told(engine: Engine, stream: bool) -> None:
    need(engine, "chat")
    got = await answer(engine, ask(max_tokens=5, stream=stream))
    assert got.finish_reason == "length"
    assert got.usage is not None
    assert 0 < got.usage.completion_tokens <= 5
    assert got.usage.prompt_tokens > 0
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


async def test_a_stop_text_ends_the_answer_before_it(engine: Engine) -> None:
    need(engine, "chat")
    free = (await answer(engine, ask())).text
    mark = free.split()[2]
    got = await answer(engine, ask(stop=[mark]))
    assert got.finish_reason == "stop"
    assert got.text.strip() == free[: free.index(mark)].strip()


async def test_several_messages_are_taken(engine: Engine) -> None:
    need(engine, "chat")
    request = ask()
    system = Message(role="system", content="You are brief.")
    request.messages = [
        system,
        Message(role="user", content="Hi."),
        Message(role="assistant", content="Hello."),
        *request.messages,
    ]
    assert (await answer(engine, request)).complete


# ---------------------------------------------------------------- ends that come early


async def test_leaving_in_the_middle_is_prompt_and_the_engine_answers_again(engine: Engine) -> None:
    need(engine, "chat")
    chunks = engine.generate(ask(max_tokens=400), Deadline.after(LONGEST_S))
    await anext(chunks)
    began = time.perf_counter()
    await chunks.aclose()  # type: ignore[attr-defined]
    assert time.perf_counter() - began < 2.0
    assert (await answer(engine, ask())).complete


async def test_cancelling_the_reader_stops_the_work(engine: Engine) -> None:
    need(engine, "chat")
    task = asyncio.create_task(read(engine, ask(max_tokens=400)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await answer(engine, ask())).complete
    assert engine.health().state == "ready"


async def test_an_expired_deadline_raises(engine: Engine) -> None:
    need(engine, "chat")
    with pytest.raises(DeadlineExceeded):
        async for _ in engine.generate(ask(), Deadline.after(-1.0)):
            pass
    assert (await answer(engine, ask())).complete


async def test_four_at_once(engine: Engine) -> None:
    need(engine, "chat")
    alone = (await answer(engine, ask(max_tokens=6))).text
    together = await asyncio.gather(*(answer(engine, ask(max_tokens=6)) for _ in range(4)))
    assert all(got.complete and got.text for got in together)
    # Batched sums round differently, so a real model may choose another word; not in all four.
    assert alone in [got.text for got in together]


# ---------------------------------------------------------------- what must not be attempted


async def test_what_the_card_does_not_claim_is_refused_by_name(engine: Engine) -> None:
    tool = Tool(function=FunctionSpec(name="f"))
    asked: list[tuple[Capability, dict[str, Any], str]] = [
        ("tools", {"tools": [tool]}, "tools"),
        ("json_schema", {"response_format": ResponseFormat(type="json_object")}, "response_format"),
        ("logprobs", {"logprobs": True}, "logprobs"),
    ]
    need(engine, "chat")
    for capability, members, param in asked:
        if not engine.card.can(capability):
            with pytest.raises(UnsupportedParameter, match=f"'{engine.card.id}' does not support '{param}'"):
                await read(engine, ask(**members))
    if not engine.card.can("prefill"):
        with pytest.raises(UnsupportedParameter, match=engine.card.id):
            await read(engine, ask(continue_from="one, "))


async def test_an_image_for_a_model_without_eyes(engine: Engine) -> None:
    if "image" in engine.card.modalities:
        pytest.skip("this engine reads images")
    picture = ImagePart(image_url=ImageUrl(url="data:image/png;base64,AAAA"))
    request = ChatRequest(messages=[Message(role="user", content=[picture])], stream=True)
    with pytest.raises(UnsupportedModality, match=engine.card.id):
        await read(engine, request)


async def test_other_kinds_of_work(engine: Engine) -> None:
    if not engine.card.can("embeddings"):
        with pytest.raises(UnsupportedModality, match=engine.card.id):
            await engine.embed(EmbedRequest(input="x"), Deadline.after(LONGEST_S))
    if not engine.card.can("tensors"):
        with pytest.raises(UnsupportedModality, match=engine.card.id):
            await engine.infer(TensorRequest(inputs=()), Deadline.after(LONGEST_S))
    if not engine.card.can("chat"):
        with pytest.raises(RequestError, match=engine.card.id):
            await read(engine, ask())


async def test_a_prompt_beyond_the_context(engine: Engine) -> None:
    need(engine, "chat")
    if engine.card.id == "recorded":
        pytest.skip("a recording has no context to exceed")
    # Too long by a quarter in words: past the card's rough check, so the engine's own count decides.
    words = "word " * int(1.25 * (engine.card.context_tokens or 1000))
    with pytest.raises(PromptTooLong):
        await read(engine, ask(words))
    assert (await answer(engine, ask())).complete


# ---------------------------------------------------------------- what the card may claim


@pytest.mark.parametrize("stream", [True, False])
async def test_going_on_from_a_partial_answer_does_not_repeat_it(engine: Engine, stream: bool) -> None:
    need(engine, "prefill")
    whole = (await answer(engine, ask(max_tokens=16))).text
    given = whole[: whole.index(" ", len(whole) // 2)]  # at a word's end: a cut word would be spelled in other tokens
    got = await answer(engine, ask(max_tokens=16, continue_from=given, stream=stream))
    assert got.text
    assert not got.text.lstrip().startswith(given[:12])
    assert (given + got.text).startswith(whole[: len(given) + 4])


@pytest.mark.parametrize("stream", [True, False])
async def test_one_logprob_per_token(engine: Engine, stream: bool) -> None:
    need(engine, "logprobs")
    got = await answer(engine, ask(max_tokens=8, logprobs=True, top_logprobs=1, stream=stream))
    logprobs = got.completion().choices[0].logprobs
    assert logprobs is not None and logprobs.content and got.usage is not None
    assert len(logprobs.content) == got.usage.completion_tokens
    assert all(token.logprob <= 0 and math.isfinite(token.logprob) for token in logprobs.content)
    assert "".join(token.token for token in logprobs.content) == got.text
    assert all(token.top_logprobs for token in logprobs.content)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_demanded_tool_is_called_with_arguments_that_parse(engine: Engine, stream: bool) -> None:
    need(engine, "tools")
    spec = FunctionSpec(name="set_switch", description="Switch something on or off.", parameters=SCHEMA)
    request = ask(
        "Turn the heating on.", tools=[Tool(function=spec)], tool_choice="required", max_tokens=64, stream=stream
    )
    choice = (await answer(engine, request)).completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.id and call.function.name == "set_switch"
    check(json.loads(call.function.arguments))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_schema_is_kept(engine: Engine, stream: bool) -> None:
    need(engine, "json_schema")
    wanted = ResponseFormat(type="json_schema", json_schema=JsonSchema(name="switch", schema=SCHEMA, strict=True))
    got = await answer(engine, ask("Turn the heating on.", response_format=wanted, max_tokens=64, stream=stream))
    check(json.loads(got.text))


def check(instance: Any) -> None:
    assert isinstance(instance, dict) and set(instance) == {"domain", "on"}
    assert instance["domain"] in ("climate", "media") and isinstance(instance["on"], bool)


async def test_a_plain_completion(engine: Engine) -> None:
    need(engine, "completions")
    request = ChatRequest(prompt="One, two, three,", stream=True, max_tokens=6, temperature=0.0)
    got = await answer(engine, request)
    assert got.complete and got.text


async def test_embeddings_are_unit_vectors_in_order(engine: Engine) -> None:
    need(engine, "embeddings")
    texts = ["a warm day", "the price of copper", "a warm day"]
    made = await engine.embed(EmbedRequest(input=texts), Deadline.after(LONGEST_S))
    assert len(made.vectors) == 3 and len({len(vector) for vector in made.vectors}) == 1
    for vector in made.vectors:
        assert math.fsum(value * value for value in vector) == pytest.approx(1.0, abs=1e-4)
    near = math.fsum(a * b for a, b in zip(made.vectors[0], made.vectors[2], strict=True))
    far = math.fsum(a * b for a, b in zip(made.vectors[0], made.vectors[1], strict=True))
    assert near > 0.999 > far
    assert made.tokens >= 3 and made.model
    with pytest.raises(DeadlineExceeded):
        await engine.embed(EmbedRequest(input=texts), Deadline.after(-1.0))


# ---------------------------------------------------------------- life


async def test_a_started_engine_is_ready_and_idle(engine: Engine) -> None:
    health = engine.health()
    assert (health.state, health.queue) == ("ready", 0)


async def test_closing_twice_is_harmless_and_final(case: Open, model_file: Find) -> None:
    async with case(model_file) as engine:
        await engine.aclose()
        await engine.aclose()
        assert engine.health().state == "down"
        with pytest.raises(EngineUnavailable if engine.card.can("chat") else CodriverError):
            await read(engine, ask())
        if engine.card.can("embeddings"):
            with pytest.raises(EngineUnavailable):
                await engine.embed(EmbedRequest(input="x"), Deadline.after(LONGEST_S))
