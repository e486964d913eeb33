"""Requests are parsed once, and a bad one is told which member is at fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codriver.core.errors import MalformedBody
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    Message,
    RequestOptions,
    TextPart,
    parse_chat,
    parse_embed,
)


def body(**members: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **members}).encode()


def test_a_request_keeps_its_bytes_and_what_it_does_not_know() -> None:
    raw = body(model="m", min_p=0.1)
    request = parse_chat(raw)
    assert (request.model, request.raw) == ("m", raw)
    assert request.messages == [Message(role="user", content="hi")]


def test_internal_members_cannot_be_sent_from_outside() -> None:
    request = parse_chat(body(**{"__raw__": "eA==", "__prompt__": "x", "__continue_from__": "y"}))
    assert request.prompt is None
    assert request.continue_from is None
    assert request.raw.startswith(b'{"messages"')


@pytest.mark.parametrize(
    ("sent", "sentence", "param"),
    [
        (b"{", "not valid JSON", None),
        (b"\xff", "not valid", None),
        (b"[]", "not valid", None),
        (b'{"x":' + b"[" * 100_000, "not valid JSON", None),
        (b"{}", "at least one message is needed", "messages"),
        (body(messages=[]), "at least one message is needed", "messages"),
        (body(messages=[{"role": "robot", "content": "x"}]), "'messages[0].role'", "messages[0].role"),
        (body(max_tokens="many"), "'max_tokens'", "max_tokens"),
        (body(stream=1), "'stream'", "stream"),
        (body(codriver={"polcy": "auto"}), "'codriver'", "codriver"),
        (body(codriver={"policy": "fastest"}), "'codriver.policy'", "codriver.policy"),
        (body(codriver={"policy": "fastest"}), "Allowed: auto, vehicle-only, cloud-only,", "codriver.policy"),
        (body(messages=[{"role": "robot"}]), "Allowed: system, developer, user,", "messages[0].role"),
        (body(user="ab").replace(b"ab", b"a\xff"), "it is not UTF-8: byte 0xff at position 60", None),
        (body(n=0), "'n' is 0, and must be from 1 to 128.", "n"),
        (body(n=129), "from 1 to 128", "n"),
        (body(top_p=1.5), "'top_p' is 1.5, and must be from 0 to 1.", "top_p"),
        (body(temperature=-1), "from 0 to 2", "temperature"),
        (body(temperature=2.1), "from 0 to 2", "temperature"),
        (body(max_tokens=0), "'max_tokens' is 0, and must be from 1 to", "max_tokens"),
        (body(max_completion_tokens=-1), "must be from 1 to", "max_completion_tokens"),
        (body(max_tokens=10**30), "must be from 1 to 2147483647", "max_tokens"),
        (body(presence_penalty=3), "from -2 to 2", "presence_penalty"),
        (body(frequency_penalty=-3), "from -2 to 2", "frequency_penalty"),
        (body(logprobs=True, top_logprobs=21), "from 0 to 20", "top_logprobs"),
        (body(top_logprobs=2), "'top_logprobs' needs 'logprobs' to be true.", "top_logprobs"),
        (body(stop=[str(i) for i in range(17)]), "at most 16 texts", "stop"),
        (body(stop=["a", ""]), "none of them empty", "stop"),
        (body(stop=""), "none of them empty", "stop"),
        (body(messages=[{"role": "user", "content": [{"type": "video"}]}]), "'messages[0].content[0].type'", None),
    ],
)
def test_a_bad_body_names_the_member(sent: bytes, sentence: str, param: str | None) -> None:
    with pytest.raises(MalformedBody) as caught:
        parse_chat(sent)
    assert sentence in caught.value.message
    if param:
        assert caught.value.param == param


def test_what_stands_at_the_ends_of_the_ranges_is_taken() -> None:
    sent = {"n": 1, "top_p": 0, "temperature": 2, "max_tokens": 1, "stop": ["x"] * 16, "presence_penalty": -2}
    assert parse_chat(body(**sent, logprobs=True, top_logprobs=20)).n == 1
    assert parse_chat(body(n=128, top_p=1, temperature=0, stop="x", frequency_penalty=2, max_tokens=None)).n == 128


def test_parts_modalities_and_text() -> None:
    parts = [
        {"type": "text", "text": "what is "},
        {"type": "image_url", "image_url": {"url": "data:,x"}},
        {"type": "text", "text": "this"},
        {"type": "input_audio", "input_audio": {"data": ""}},
    ]
    request = parse_chat(body(messages=[{"role": "system", "content": "s"}, {"role": "user", "content": parts}]))
    assert request.modalities() == {"text", "image", "audio"}
    assert request.text() == "s\nwhat is this"
    assert isinstance(request.messages[1].content[0], TextPart)
    assert ChatRequest(prompt="p").text() == "p"
    assert Message(role="assistant").text() == ""


def test_either_name_of_the_token_limit() -> None:
    assert parse_chat(body(max_tokens=5)).limit_tokens == 5
    assert parse_chat(body(max_tokens=5, max_completion_tokens=3)).limit_tokens == 3
    assert parse_chat(body()).limit_tokens is None


def test_options() -> None:
    request = parse_chat(body(codriver={"privacy": "local_only", "deadline_ms": 800}))
    assert request.codriver == RequestOptions(privacy="local_only", deadline_ms=800)


def test_embeddings() -> None:
    assert parse_embed(b'{"input": "x"}').texts() == ["x"]
    assert parse_embed(b'{"input": ["x", "y"]}').texts() == ["x", "y"]
    for bad in (b'{"input": []}', b'{"input": ""}', b'{"input": ["x", ""]}', b"{}", b'{"input": 1}'):
        with pytest.raises(MalformedBody):
            parse_embed(bad)


def test_a_chunks_text_and_end() -> None:
    assert ChatChunk().text() == ""
    assert ChatChunk().finish_reason is None
    chunk = ChatChunk(choices=[ChunkChoice(delta=Delta(content="x"), finish_reason="stop")])
    assert (chunk.text(), chunk.finish_reason) == ("x", "stop")
