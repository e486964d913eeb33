"""Chunks become the whole they stand for."""

from __future__ import annotations

from typing import Any

import msgspec

from codriver.core.answer import Answer
from codriver.core.messages import (
    ChatChunk,
    ChunkChoice,
    Delta,
    FunctionDelta,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> ChatChunk:
    choice = ChunkChoice(index=index, delta=Delta(**delta), finish_reason=finish)
    return ChatChunk(id="1", created=7, model="m", choices=[choice])


def answer(*chunks: ChatChunk) -> Answer:
    made = Answer()
    for each in chunks:
        made.add(each)
    return made


def test_text_pieces_and_the_end() -> None:
    made = answer(chunk(role="assistant", content=""), chunk(content="a"), chunk(content="b"))
    assert (made.text, made.text_pieces, made.complete, made.finish_reason) == ("ab", 2, False, None)
    made.add(chunk(finish="stop"))
    assert (made.complete, made.finish_reason) == (True, "stop")
    done = made.completion()
    assert (done.id, done.created, done.model) == ("1", 7, "m")
    assert done.choices[0].message.content == "ab"
    assert done.usage is msgspec.UNSET


def test_an_answer_without_chunks_is_empty_and_not_complete() -> None:
    made = Answer()
    assert (made.text, made.text_pieces, made.complete, made.tool_calls_begun) == ("", 0, False, False)
    assert made.finish_reason is None
    assert made.completion().choices == []


def test_choices_are_kept_apart_and_all_must_end() -> None:
    made = answer(chunk(content="a"), chunk(1, content="x"), chunk(finish="stop"), chunk(1, content="y"))
    assert not made.complete
    made.add(chunk(1, finish="length"))
    assert made.complete
    assert [(c.index, c.message.content, c.finish_reason) for c in made.completion().choices] == [
        (0, "a", "stop"), (1, "xy", "length"),
    ]  # fmt: skip


def test_tool_calls_grow_by_their_index() -> None:
    def call(index: int, id: Any = msgspec.UNSET, name: str | None = None, arguments: str | None = None) -> ChatChunk:
        return chunk(
            tool_calls=[ToolCallDelta(index=index, id=id, function=FunctionDelta(name=name, arguments=arguments))]
        )

    made = answer(
        call(1, "c2", "g", ""), call(0, "c1", "f", '{"a'), call(0, arguments='":1}'), call(1, None, None, "{}"),
        chunk(tool_calls=[ToolCallDelta(index=0)]), chunk(finish="tool_calls"),
    )  # fmt: skip
    assert made.tool_calls_begun
    message = made.completion().choices[0].message
    assert message.content is None
    assert [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("c1", "f", '{"a":1}'), ("c2", "g", "{}"),
    ]  # fmt: skip


def test_reasoning_refusal_logprobs_and_usage() -> None:
    spoken = chunk(content="x")
    spoken.choices[0].logprobs = Logprobs([TokenLogprob("x", -0.5)])
    last = ChatChunk(usage=Usage(1, 2, 3), codriver={"engine": "v"})
    made = answer(chunk(reasoning_content="so "), chunk(reasoning_content="so"), spoken, chunk(finish="stop"), last)
    done = made.completion()
    assert done.choices[0].message.reasoning_content == "so so"
    assert done.choices[0].logprobs.content[0].logprob == -0.5
    assert (done.usage, done.codriver) == (Usage(1, 2, 3), {"engine": "v"})
    refused = answer(chunk(refusal="no"), chunk(finish="stop")).completion().choices[0].message
    assert (refused.refusal, refused.content) == ("no", None)
    assert answer(chunk(finish="stop")).completion().choices[0].message.content == ""


def test_a_restart_forgets_what_came_before() -> None:
    mark = chunk(role="assistant", content="")
    mark.codriver = {"restart": True, "discard_chars": 3}
    made = answer(chunk(content="old"), mark, chunk(content="new"), chunk(finish="stop"))
    assert (made.text, made.text_pieces, made.chunks) == ("new", 1, 4)
    assert made.completion().id == "1"
