"""The null engine: what it answers, and in what time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from codriver.core.answer import Answer
from codriver.core.clock import ManualClock
from codriver.core.deadline import Deadline
from codriver.core.errors import DeadlineExceeded, PromptTooLong, UnsupportedModality
from codriver.core.messages import (
    ChatRequest,
    EmbedRequest,
    FunctionSpec,
    JsonSchema,
    Message,
    ResponseFormat,
    TensorRequest,
    Tool,
)
from codriver.engines.null import Null, NullConfig, smallest


def ask(text: str = "hello", **members: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=text)], **members)


async def answer(engine: Null, request: ChatRequest) -> Answer:
    collected = Answer()
    async for chunk in engine.generate(request, Deadline.never()):
        collected.add(chunk)
    return collected


async def test_its_text_word_by_word_with_the_claimed_probability() -> None:
    engine = Null(NullConfig(text="one two three", logprob=-0.5))
    got = await answer(engine, ask(stream=True, logprobs=True, top_logprobs=1))
    assert got.text == "one two three"
    content = got.completion().choices[0].logprobs.content  # type: ignore[union-attr]
    assert [(token.token, token.logprob) for token in content] == [("one", -0.5), (" two", -0.5), (" three", -0.5)]
    assert content[1].top_logprobs[0].bytes == list(b" two")


async def test_each_word_takes_its_time_on_the_injected_clock() -> None:
    clock = ManualClock()
    engine = Null(NullConfig(text="a b c", per_token_ms=100), clock)
    task = asyncio.create_task(answer(engine, ask(stream=True)))
    await clock.advance(0.29)
    assert not task.done()
    assert engine.health().queue == 1
    await clock.advance(0.02)
    assert (await task).text == "a b c"
    assert engine.health().queue == 0


async def test_a_deadline_ends_it_in_the_middle() -> None:
    clock = ManualClock()
    engine = Null(NullConfig(text="a b c", per_token_ms=100), clock)
    seen: list[str] = []

    async def read() -> None:
        async for chunk in engine.generate(ask(stream=True), Deadline.after(0.25, clock)):
            seen.append(chunk.text())

    task = asyncio.create_task(read())
    await clock.advance(0.3)
    with pytest.raises(DeadlineExceeded):
        await task
    assert "".join(seen) == "a b"


async def test_limits_stops_and_continuation() -> None:
    engine = Null(NullConfig(text="alpha beta gamma delta"))
    got = await answer(engine, ask(max_tokens=2))
    assert (got.text, got.finish_reason) == ("alpha beta", "length")
    got = await answer(engine, ask(stream=True, stop=["gam", "zzz"]))
    assert (got.text, got.finish_reason) == ("alpha beta ", "stop")
    got = await answer(engine, ask(stream=True, continue_from="alpha be"))
    assert got.text == "ta gamma delta"
    got = await answer(engine, ask(stream=True, continue_from="something else"))
    assert got.text == "alpha beta gamma delta"


async def test_a_required_tool_is_called_and_an_offered_one_is_not() -> None:
    parameters = {
        "type": "object",
        "properties": {"degrees": {"type": "integer", "minimum": 16}, "seat": {"enum": ["left", "right"]}},
        "required": ["degrees", "seat"],
    }
    tools = [Tool(FunctionSpec(name="open_roof")), Tool(FunctionSpec(name="set_heat", parameters=parameters))]
    choice = {"type": "function", "function": {"name": "set_heat"}}
    call = (await answer(Null(), ask(stream=True, tools=tools, tool_choice=choice))).completion().choices[0]
    assert call.finish_reason == "tool_calls"
    assert call.message.tool_calls[0].function.name == "set_heat"  # type: ignore[index, union-attr]
    arguments = call.message.tool_calls[0].function.arguments  # type: ignore[index, union-attr]
    assert json.loads(arguments) == {"degrees": 16, "seat": "left"}
    first = (await answer(Null(), ask(tools=tools, tool_choice="required"))).completion().choices[0]
    assert first.message.tool_calls[0].function.name == "open_roof"  # type: ignore[index, union-attr]
    assert (await answer(Null(), ask(tools=tools))).finish_reason == "stop"


async def test_a_json_schema_gets_its_smallest_instance() -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    wanted = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=schema))
    assert json.loads((await answer(Null(), ask(stream=True, response_format=wanted))).text) == {"on": False}
    assert json.loads((await answer(Null(), ask(response_format=ResponseFormat(type="json_object")))).text) == {}


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"const": 3}, 3),
        ({"type": ["string", "null"], "minLength": 2}, "xx"),
        ({"type": "array", "items": {"type": "number", "minimum": 1.5}, "minItems": 2}, [1.5, 1.5]),
        ({"anyOf": [{"type": "integer", "maximum": -4}, {"type": "null"}]}, -4),
        ({"properties": {"a": {}}, "required": ["a"]}, {"a": None}),
    ],
)
def test_smallest(schema: dict[str, Any], instance: object) -> None:
    assert smallest(schema) == instance


async def test_embeddings_depend_on_the_text_alone() -> None:
    made = await Null().embed(EmbedRequest(input=["a", "b", "a"]), Deadline.never())
    again = await Null().embed(EmbedRequest(input="a", dimensions=8), Deadline.never())
    assert made.vectors[0] == made.vectors[2] != made.vectors[1]
    assert len(again.vectors[0]) == 8


async def test_what_it_cannot_do_is_refused_in_words() -> None:
    with pytest.raises(PromptTooLong, match=r"The prompt has 3 tokens; 'null' takes 2\."):
        await answer(Null(NullConfig(context_tokens=2)), ask("one two three"))
    with pytest.raises(UnsupportedModality, match="does not run tensor graphs"):
        await Null().infer(TensorRequest(inputs=()), Deadline.never())
