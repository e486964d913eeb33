"""Bodies that two parsers could read differently, whichever API they speak."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.core.errors import MalformedBody
from codriver.gateway.parsing import refuse_ambiguous

from .serving import HELLO, Scripted, ask, running

TURNS = b'"messages":[{"role":"user","content":"hi"}]'
BODIES = {
    "/v1/chat/completions": b"{" + TURNS,
    "/v1/completions": b'{"prompt":"hi"',
    "/v1/embeddings": b'{"input":"hi"',
    "/v1/responses": b'{"input":"hi"',
    "/v1/messages": b'{"max_tokens":5,' + TURNS,
    "/api/chat": b'{"stream":false,' + TURNS,
    "/api/generate": b'{"prompt":"hi"',
    "/api/embed": b'{"input":"hi"',
    "/api/show": b'{"name":""',
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("more", "twice"),
    [
        (b',"model":"auto","model":"auto"', "model"),
        (b', "model" : "auto", "unknown": [1], "mod\\u0065l":"auto"', "model"),
        (b',"unknown":1,"unknown":{"a":1}', "unknown"),
        (b',"codriver":{"privacy":"local_only"},"codriver":{}', "codriver"),
        (b',"codriver":{"session":"a","session":"a"}', "codriver.session"),
    ],
)
async def test_a_body_that_says_a_member_twice_is_refused(path: str, more: bytes, twice: str) -> None:
    engine = Scripted(*HELLO)
    async with running(engine) as server:
        once = await ask(server.port, path, BODIES[path] + b',"model":"auto","unknown":{"a":{"a":1}}}')
        assert once.status == 200, once.body
        engine.requests.clear()
        reply = await ask(server.port, path, BODIES[path] + more + b"}")
    assert (reply.status, engine.requests) == (400, [])
    said = f"The request body says '{twice}' more than once; say it once."
    error = json.loads(reply.body)
    assert said in (error["error"] if path.startswith("/api/") else error["error"]["message"])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80"])
async def test_a_body_that_is_not_utf8_anywhere_is_refused(path: str, bad: bytes) -> None:
    """Also in a member that nobody here reads, and in its name: it would go upstream."""
    async with running(Scripted(*HELLO)) as server:
        for more in (b',"unknown":"%b"}', b',"%b":1}', b',"unknown":{"%b":1}}'):
            reply = await ask(server.port, path, BODIES[path] + more % bad)
            assert reply.status == 400
            assert b"The request body is not valid JSON: it is not UTF-8: byte 0x%02x" % bad[0] in reply.body


members = st.text(max_size=3)
values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5), lambda one: st.lists(one) | st.dictionaries(members, one)
)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(members, values), max_size=6),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]),
    st.booleans(),
)
def test_a_duplicate_is_found_however_it_is_written(pairs: Any, separators: tuple[str, str], ascii_only: bool) -> None:
    between, after = separators
    told = (json.dumps(name, ensure_ascii=ascii_only) + after + json.dumps(value) for name, value in pairs)
    body = ("{" + between.join(told) + "}").encode()
    names = [name for name, _ in pairs]
    if "codriver" in names:
        return
    if len(set(names)) == len(names):
        refuse_ambiguous(body)
        return
    with pytest.raises(MalformedBody, match="more than once"):
        refuse_ambiguous(body)


def test_many_members_take_no_longer_than_their_bytes() -> None:
    body = ("{" + ",".join(f'"member {number}":0' for number in range(100_000)) + ',"member 7":0}').encode()
    with pytest.raises(MalformedBody, match="'member 7' more than once"):
        refuse_ambiguous(body)
