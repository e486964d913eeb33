"""Answers put right: placeholders cut anywhere, in text and in JSON, and what is held back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

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
from codriver.core.wire import encode_chunk
from codriver.route.personalise import Personaliser, Restorer

VALUES = {"<EMAIL_1>": "ann@example.org", "<EMAIL_12>": 'b"\\ü@x.org', "<NAME_1>": "Jürgen"}
TEXT = "a <b <EMAIL_1>, <<EMAIL_12> <EMAIL_3> <EMAIL_ <NAME_1><NAME_1> \\< <N"
PUT_RIGHT = 'a <b ann@example.org, <b"\\ü@x.org <EMAIL_3> <EMAIL_ JürgenJürgen \\< <N'


def restored(pieces: list[str], json: bool = False) -> str:
    restorer = Restorer(VALUES, json)
    return "".join(map(restorer.take, pieces)) + restorer.flush()


def test_a_placeholder_may_be_cut_anywhere() -> None:
    assert restored([TEXT]) == PUT_RIGHT
    for first in range(len(TEXT)):
        for second in range(first, len(TEXT)):
            assert restored([TEXT[:first], TEXT[first:second], TEXT[second:]]) == PUT_RIGHT
    assert restored(list(TEXT)) == PUT_RIGHT


def test_no_more_is_held_back_than_could_become_a_placeholder() -> None:
    restorer = Restorer(VALUES)
    longest = max(map(len, VALUES))
    for sign in TEXT:
        restorer.take(sign)
        assert len(restorer._held) < longest
    assert Restorer(VALUES).take("2 < 3 and <b>") == "2 < 3 and <b>"
    assert Restorer(VALUES).take("so <EMA") == "so "
    assert Restorer({}).take("so <EMA") == "so <EMA"


@pytest.mark.parametrize("written", ["<EMAIL_12>", "\\u003cEMAIL_12\\u003e", "\\u003CEMAIL_12\\u003E"])
def test_in_json_values_are_escaped_and_escaped_placeholders_are_known(written: str) -> None:
    text = f'{{"to": "{written}", "cc": "<NAME_1>\\n"}}'
    for at in range(len(text)):
        got = json.loads(restored([text[:at], text[at:]], json=True))
        assert got == {"to": VALUES["<EMAIL_12>"], "cc": "Jürgen\n"}


# ---------------------------------------------------------------- whole chunks


def said(content: str | None = None, finish: str | None = None, index: int = 0, **members: Any) -> ChatChunk:
    choice = ChunkChoice(index=index, delta=Delta(content=content, **members), finish_reason=finish)
    return ChatChunk(id="1", model="m", choices=[choice], raw=b'{"x":1}')


def shown(*chunks: ChatChunk, json: bool = False) -> list[ChatChunk]:
    personaliser = Personaliser(VALUES, json)
    return [made for chunk in chunks if (made := personaliser.take(chunk)) is not None]


def whole(chunks: list[ChatChunk]) -> Any:
    answer = Answer()
    for chunk in chunks:
        answer.add(chunk)
    return answer.completion()


def test_what_is_held_back_goes_out_with_the_finish_reason() -> None:
    got = shown(said("mail <EM"), said("AIL"), said("_1"), said(None, "stop"))
    assert [chunk.text() for chunk in got] == ["mail ", "<EMAIL_1"]
    assert got[-1].finish_reason == "stop"


def test_choices_reasoning_and_refusals_are_texts_of_their_own() -> None:
    got = shown(
        said("<NA", reasoning_content="of <EMAI"),
        said("<EMAIL_", index=1),
        said("ME_1>", reasoning_content="L_1>", refusal="no, <NAME_1>"),
        said("1>", "stop", index=1),
        said("", "stop"),
    )
    first, second = whole(got).choices
    assert (first.message.content, second.message.content) == ("Jürgen", "ann@example.org")
    assert (first.message.reasoning_content, first.message.refusal) == ("of ann@example.org", "no, Jürgen")


def call(index: int, arguments: str | None, **members: Any) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index=index, function=FunctionDelta(arguments=arguments), **members)])


def test_arguments_of_tool_calls_stay_json_wherever_they_are_cut() -> None:
    arguments = '{"to":"<EMAIL_12>","who":["<NAME_1>"]}'
    for at in range(len(arguments)):
        deltas = [
            Delta(tool_calls=[ToolCallDelta(index=0, id="c", function=FunctionDelta(name="NAME_1", arguments=""))]),
            call(0, arguments[:at]),
            call(1, '{"a":"<NAME'),
            call(0, arguments[at:]),
            call(1, '_1>"}'),
        ]
        chunks = [ChatChunk(choices=[ChunkChoice(delta=delta)]) for delta in deltas]
        calls = whole(shown(*chunks, said(None, "tool_calls"))).choices[0].message.tool_calls
        assert json.loads(calls[0].function.arguments) == {"to": VALUES["<EMAIL_12>"], "who": ["Jürgen"]}
        assert json.loads(calls[1].function.arguments) == {"a": "Jürgen"}
        assert calls[0].function.name == "Jürgen"


def test_cut_arguments_are_flushed_to_their_own_call() -> None:
    chunks = [ChatChunk(choices=[ChunkChoice(delta=call(index, '"<NA'))]) for index in (0, 1)]
    calls = whole(shown(*chunks, said(None, "length"))).choices[0].message.tool_calls
    assert [one.function.arguments for one in calls] == ['"<NA', '"<NA']


def test_asked_for_json_is_written_as_json() -> None:
    got = whole(shown(said('{"mail":"<EMAIL_12>"}', "stop"), json=True)).choices[0].message.content
    assert json.loads(got) == {"mail": VALUES["<EMAIL_12>"]}


def test_bytes_and_log_probabilities_do_not_pass() -> None:
    chunk = said("<NAME_1>", "stop")
    chunk.choices[0].logprobs = Logprobs([TokenLogprob("<NAME_1>", -0.1)])
    chunk.whole = True
    (got,) = shown(chunk)
    assert got.choices[0].logprobs is None
    body = msgspec.json.decode(encode_chunk(got))
    assert "x" not in body
    assert body["choices"][0]["delta"] == {"content": "Jürgen"}


def test_roles_and_usage_pass_and_what_is_empty_does_not() -> None:
    usage = ChatChunk(usage=Usage(1, 2, 3))
    got = shown(said("", role="assistant"), said("<"), said("N"), said("x"), said("", "stop"), usage)
    assert [chunk.text() for chunk in got] == ["", "<Nx", "", ""]
    assert got[-1].usage == Usage(1, 2, 3)
