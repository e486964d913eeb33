"""Bytes to structs and back: nothing unknown is lost, nothing internal gets out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codriver.core.answer import Answer
from codriver.core.errors import MalformedBody, UpstreamMalformed
from codriver.core.messages import ChatChunk, ChunkChoice, Delta, Message, RequestOptions, parse_chat
from codriver.core.wire import (
    SseParser,
    changed,
    decode_chunk,
    decode_whole,
    encode,
    encode_chunk,
    splice,
    sse,
    upstream_body,
    with_extension,
)

EVENT = b'{"id":"1","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}],"extra":{"a":[1]}}'


# ---------------------------------------------------------------- events


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")), max_size=6), st.data())
def test_events_survive_any_cut(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b": comment\r\n\r\n" + b"".join(sse(payload) for payload in payloads)
    parser, got = SseParser(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += parser.feed(stream[:size])
        stream = stream[size:]
    assert got == payloads
    assert not parser.pending


def test_line_ends_comments_and_many_data_lines() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\r\ndata:b\r\n\r") == []
    assert parser.pending
    assert parser.feed(b"\n: ping\n\nevent: x\nid: 3\n\ndata: c\n\n") == [b"a\nb", b"c"]
    assert not parser.pending
    parser.feed(b"data: cut")
    assert parser.pending


def test_an_event_has_a_largest_size() -> None:
    with pytest.raises(UpstreamMalformed, match="larger than 10 bytes"):
        SseParser(limit_bytes=10).feed(b"data: 0123456789")
    with pytest.raises(UpstreamMalformed, match="larger than 10 bytes"):
        SseParser(limit_bytes=10).feed(b"data: 012345\ndata: 678901\n")
    with pytest.raises(UpstreamMalformed, match="larger than 10 bytes"):
        SseParser(limit_bytes=10).feed(b"data: 0123456789\n\n")  # also where it comes whole


def test_lines_without_data_take_room_too() -> None:
    parser = SseParser(limit_bytes=1000)
    with pytest.raises(UpstreamMalformed, match="larger than 1000 bytes"):
        for _ in range(1000):
            parser.feed(b"data:\n")


def test_a_line_that_comes_byte_by_byte_is_not_copied_each_time() -> None:
    parser = SseParser()
    began_s = time.process_time()
    for _ in range(1 << 20):
        parser.feed(b"x")
    assert time.process_time() - began_s < 10.0  # a copy each time takes minutes


# ---------------------------------------------------------------- chunks


def test_an_unchanged_chunk_goes_out_as_it_came() -> None:
    chunk = decode_chunk(EVENT)
    assert chunk.text() == "x"
    assert encode_chunk(chunk) is EVENT


@pytest.mark.parametrize("raw", [None, b"", msgspec.UNSET])
def test_a_changed_chunk_shows_nothing_internal(raw: object) -> None:
    chunk = msgspec.structs.replace(decode_chunk(EVENT), raw=raw, whole=True)
    assert "__" not in encode_chunk(chunk).decode()
    assert json.loads(encode_chunk(chunk))["choices"][0]["delta"] == {"content": "x"}


DEEP = b'{"id":"1","choices":[],"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"


@pytest.mark.parametrize("decode", [decode_chunk, decode_whole])
def test_what_is_nested_too_deeply_is_an_error(decode: Callable[[bytes], ChatChunk]) -> None:
    with pytest.raises(UpstreamMalformed, match="recursion"):
        decode(DEEP)


# What parsing skips in members that nobody knows, and what reading them stumbles over.
@pytest.mark.parametrize("odd", [b"1e999", b"9" * 5000, b'"\xff"'])
def test_what_is_wrong_in_an_unknown_member_is_told_when_the_bytes_are_changed(odd: bytes) -> None:
    chunk = decode_chunk(b'{"id":"1","choices":[],"codriver":{"engine":"far"},"x":' + odd + b"}")
    with pytest.raises(UpstreamMalformed, match="not valid JSON"):
        with_extension(chunk, {"engine": "here"})
    request = parse_chat(b'{"messages":[{"role":"user","content":"hi","x":' + odd + b"}]}")
    with pytest.raises(MalformedBody, match="not valid JSON"):
        upstream_body(request, {"model": "m"})
    with pytest.raises(MalformedBody, match="not valid JSON"):
        changed(request, max_tokens=5)


def test_what_is_no_chunk_is_an_error() -> None:
    for bad in (b"{", b"[]", b'{"choices": 3}', b"\xff"):
        with pytest.raises(UpstreamMalformed, match="not a chat completion chunk"):
            decode_chunk(bad)
        with pytest.raises(UpstreamMalformed, match="not a chat completion"):
            decode_whole(bad)


def test_the_extension_is_added_to_struct_and_bytes() -> None:
    chunk = with_extension(decode_chunk(EVENT), {"engine": "v"})
    assert chunk.codriver == {"engine": "v"}
    assert encode_chunk(chunk) == EVENT[:-1] + b',"codriver":{"engine":"v"}}'
    bare = with_extension(ChatChunk(choices=[ChunkChoice(delta=Delta(content="x"))]), {"engine": "v"})
    assert json.loads(encode_chunk(bare))["codriver"] == {"engine": "v"}


def test_another_codrivers_extension_is_kept_inside_ours() -> None:
    theirs = with_extension(decode_chunk(EVENT), {"engine": "far"})
    ours = with_extension(decode_chunk(encode_chunk(theirs)), {"engine": "near"})
    sent = encode_chunk(ours)
    assert sent.count(b'"codriver"') == 1
    assert json.loads(sent)["codriver"] == {"engine": "near", "upstream": {"engine": "far"}}
    assert json.loads(sent)["extra"] == {"a": [1]}


def test_splice_leaves_the_rest_alone() -> None:
    assert splice(b"{}", "k", 1) == b'{"k":1}'
    assert splice(b'{ "a": 1 }\n', "k", None) == b'{ "a": 1 ,"k":null}'


def test_a_whole_body_is_one_chunk_and_gives_the_same_answer() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    message = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call, call]}
    body = json.dumps(
        {
            "id": "1", "object": "chat.completion", "created": 5, "model": "m",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
    ).encode()  # fmt: skip
    chunk = decode_whole(body)
    assert chunk.whole is True
    assert chunk.raw is body
    answer = Answer()
    answer.add(chunk)
    done = json.loads(encode(answer.completion()))
    assert done["choices"][0]["message"] == {**message, "refusal": None}
    assert done["usage"]["total_tokens"] == 3
    assert answer.complete


# ---------------------------------------------------------------- requests

BODY = b'{"messages":[{"role":"user","content":"hi","name":"n","x":1}],"model":"m","stream":false,"min_p":0.1}'


def test_an_unchanged_request_goes_up_as_it_came() -> None:
    request = parse_chat(BODY)
    assert upstream_body(request, {"model": "m"}) is BODY
    assert upstream_body(request, {}) is BODY


def test_changes_and_drops_leave_the_rest_alone() -> None:
    sent = json.loads(upstream_body(parse_chat(BODY), {"model": "other", "seed": None}, drop=("stream",)))
    expected = {**json.loads(BODY), "model": "other", "seed": None}
    del expected["stream"]
    assert sent == expected


def test_our_own_members_are_not_sent_upstream() -> None:
    request = parse_chat(BODY[:-1] + b',"codriver":{"policy":"auto"}}')
    assert "codriver" not in json.loads(upstream_body(request, {}))
    built = msgspec.structs.replace(request, raw=None, continue_from="x", prompt=None)
    sent = json.loads(upstream_body(built, {"model": "z"}))
    assert set(sent) == {"messages", "model"}


def test_a_changed_request_changes_its_bytes_too() -> None:
    request = changed(parse_chat(BODY), stream=True, max_tokens=3, continue_from="part")
    assert (request.stream, request.max_tokens, request.continue_from) == (True, 3, "part")
    sent = json.loads(request.raw)
    assert (sent["stream"], sent["max_tokens"], sent["min_p"]) == (True, 3, 0.1)
    assert "continue_from" not in sent
    again = changed(request, max_tokens=None, messages=[Message(role="user", content="new")])
    assert "max_tokens" not in json.loads(again.raw)
    assert json.loads(again.raw)["messages"] == [{"role": "user", "content": "new"}]


def test_a_request_without_bytes_stays_without() -> None:
    request = msgspec.structs.replace(parse_chat(BODY), raw=None, codriver=RequestOptions())
    assert changed(request, stream=True).raw is None
