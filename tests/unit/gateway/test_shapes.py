"""What all the other APIs share: an answer that is begun anew, sessions by key, the parts of a conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codriver.core.errors import EngineDied
from codriver.core.messages import ChatChunk, ChunkChoice, Delta
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup

from .serving import HELLO, Scripted, ask, chunk, running
from .shaped import Json, said

BODIES: dict[str, Json] = {
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}]},
    "/api/generate": {"prompt": "hi"},
}
ENDS = (b"response.completed", b"message_stop", b'"done":true')
ANEW = ChatChunk(
    choices=[ChunkChoice(delta=Delta(role="assistant", content=""))], codriver={"restart": True, "discard_chars": 3}
)
PATHS = pytest.mark.parametrize("path", BODIES)


@PATHS
async def test_a_stream_cannot_take_text_back(path: str) -> None:
    reply = await said(Scripted(chunk("Hel"), ANEW, *HELLO), path, BODIES[path] | {"stream": True})
    assert b"cannot take back what was sent" in reply.body
    assert not any(end in reply.body for end in ENDS)


@PATHS
async def test_a_whole_answer_is_the_one_begun_anew(path: str) -> None:
    reply = await said(Scripted(chunk("Wrong"), ANEW, *HELLO), path, BODIES[path] | {"stream": False})
    assert b"Hello" in reply.body
    assert b"Wrong" not in reply.body


@PATHS
async def test_a_session_has_a_history(path: str) -> None:
    engine = Scripted(*HELLO)
    body = BODIES[path] | {"codriver": {"session": "trip"}, "stream": False}
    async with running(HybridEngine(Lineup({"scripted": engine}))) as server:
        for _ in range(2):
            reply = await ask(server.port, path, json.dumps(body).encode())
    assert reply.status == 200
    assert [(m.role, m.content) for m in engine.requests[1].messages] == [
        ("user", "hi"),
        ("assistant", "Hello"),
        ("user", "hi"),
    ]


@PATHS
@pytest.mark.parametrize("stream", [False, True])
async def test_another_engine_goes_on_where_one_died(path: str, stream: bool) -> None:
    first = Scripted(chunk("Hel"), EngineDied("The engine died."), id="first")
    second = Scripted(chunk("lo"), chunk("", "stop"), id="second")
    body = BODIES[path] | {"stream": stream, "codriver": {"failover": "resume"}}
    async with running(HybridEngine(Lineup({"first": first, "second": second}))) as server:
        reply = await ask(server.port, path, json.dumps(body).encode())
    assert b'"failovers":[{"from":"first","to":"second"' in reply.body
    assert any(end in reply.body for end in (*ENDS, b'"status":"completed"', b'"end_turn"'))
    assert b'"Hel' in reply.body
    assert (b'"lo"' if stream else b'"Hello"') in reply.body


@PATHS
async def test_the_router_tells_who_answered(path: str) -> None:
    async with running(HybridEngine(Lineup({"scripted": Scripted(*HELLO)}))) as server:
        reply = await ask(server.port, path, json.dumps(BODIES[path] | {"stream": False}).encode())
    told: Any = json.loads(reply.body)["codriver"]
    assert told["engine"] == reply.headers["x-codriver-engine"] == "scripted"


@PATHS
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"\xff"', b"null"])
async def test_what_is_no_object_is_refused(path: str, body: bytes) -> None:
    reply = await said(Scripted(*HELLO), path, body)
    error = json.loads(reply.body)["error"]
    assert reply.status == 400
    assert "The request body is not valid" in (error if isinstance(error, str) else error["message"])


@PATHS
async def test_local_only_is_kept_from_an_engine_that_is_elsewhere(path: str) -> None:
    engine = Scripted(*HELLO)
    engine.card = type(engine.card)(id="cloud", locality="cloud")
    hidden = b'{"codriver":{"privacy":"local_only"},' + json.dumps(BODIES[path]).encode()[1:-1] + b"}"
    reply = await said(engine, path, hidden)
    assert reply.status == 403
    assert engine.requests == []
