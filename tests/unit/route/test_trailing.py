"""A trailing assistant message begins the answer, whatever the server behind takes it for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, EngineCard
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, parse_chat
from codriver.core.wire import encode
from codriver.engines.null import Null, NullConfig
from codriver.route.trailing import GoesOn

PART = "The next charger is in Ulm, "


class Server(Null):
    """Says ``text`` in pieces of four characters and remembers what it was asked."""

    def __init__(self, text: str, prefill: bool) -> None:
        super().__init__(NullConfig(id="cloud", locality="cloud"))
        capabilities = frozenset[Capability]({"chat", "prefill"} if prefill else {"chat"})
        self.card = EngineCard("cloud", "cloud", capabilities=capabilities)
        self.said, self.asked = text, ChatRequest(messages=[])

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self.asked = request
        for at in range(0, len(self.said), 4):
            yield ChatChunk(choices=[ChunkChoice(delta=Delta(content=self.said[at : at + 4]))], raw=b"as it came")
        yield ChatChunk(choices=[ChunkChoice(finish_reason="stop")], raw=b"as it came")


def body(*messages: dict[str, object], **members: object) -> ChatRequest:
    asked = {"role": "user", "content": "Where?"}
    return parse_chat(encode({"model": "cloud", "stream": True, "messages": [asked, *messages], **members}))


BEGUN = {"role": "assistant", "content": PART}


async def answered(server: Server, request: ChatRequest) -> str:
    answer = Answer()
    async for chunk in GoesOn(server).generate(request, Deadline.never()):
        answer.add(chunk)
    assert answer.complete
    return answer.text


async def test_a_server_that_can_is_told_to_go_on() -> None:
    server = Server("ten kilometres away.", prefill=True)
    assert await answered(server, body(BEGUN)) == "ten kilometres away."
    assert server.asked.continue_from == PART
    assert [message.role for message in server.asked.messages] == ["user"]
    assert PART.encode() not in (server.asked.raw or b"")


@pytest.mark.parametrize(
    "said", ["ten kilometres away.", "is in Ulm, ten kilometres away.", f"{PART}ten kilometres away."]
)
async def test_another_is_asked_in_words_and_what_it_repeats_is_taken_off(said: str) -> None:
    server = Server(said, prefill=False)
    assert await answered(server, body(BEGUN)) == "ten kilometres away."
    assert [message.role for message in server.asked.messages] == ["user", "assistant", "user"]
    assert server.asked.messages[1].text() == PART
    assert "Go on with your answer from exactly where it stops." in server.asked.messages[2].text()
    assert b"exactly where it stops" in (server.asked.raw or b"")


async def test_what_else_the_messages_hold_survives() -> None:
    server = Server("ten kilometres away.", prefill=False)
    earlier = {"role": "assistant", "content": "Yes?", "reasoning_content": "They greet."}
    request = body(earlier, {"role": "user", "content": "Where?"}, BEGUN, max_completion_tokens=9, seed=4)
    assert await answered(server, request) == "ten kilometres away."
    sent = json.loads(server.asked.raw or b"")
    assert sent["messages"][1] == earlier
    assert (sent["max_completion_tokens"], sent["seed"], "max_tokens" in sent) == (9, 4, False)


async def test_what_a_caller_has_already_set_apart_comes_after_the_trailing_message() -> None:
    """As the Messages API does with a last turn of the assistant; two of them are one beginning."""
    for prefill in (True, False):
        server = Server("ten kilometres away.", prefill)
        request = replace(body(BEGUN), continue_from="some ", raw=None)
        assert await answered(server, request) == "ten kilometres away."
        given = server.asked.continue_from if prefill else server.asked.messages[1].text()
        assert given == f"{PART}some "
        assert len(server.asked.messages) == (1 if prefill else 3)


async def test_repeats_alone_are_changed() -> None:
    server = Server("in Ulm, ten kilometres away.", prefill=False)
    chunks = [chunk async for chunk in GoesOn(server).generate(body(BEGUN, logprobs=True), Deadline.never())]
    assert "".join(chunk.text() for chunk in chunks) == "ten kilometres away."
    assert [chunk.raw == b"as it came" for chunk in chunks] == [False, False, True, True, True, True, True, True]
    assert all(choice.logprobs is None for chunk in chunks[:2] for choice in chunk.choices)


CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "request_",
    [
        body(),
        body(BEGUN, {"role": "user", "content": "And then?"}),
        body({"role": "assistant", "content": ""}),
        body({"role": "assistant", "content": PART, "tool_calls": [CALL]}),
        body(BEGUN, continue_final_message=True, add_generation_prompt=False),
        body(BEGUN, add_generation_prompt=True),
        body({**BEGUN, "prefix": True}),
        body(BEGUN, tools=[TOOL]),
        body(BEGUN, response_format={"type": "json_object"}),
        body(BEGUN, n=2),
        parse_chat(encode({"model": "cloud", "messages": [BEGUN]})),
    ],
    ids=["user last", "a turn that is over", "empty", "tool call", "vLLM goes on", "vLLM begins anew",
         "Mistral goes on", "tools", "JSON", "two answers", "nothing asked"],
)  # fmt: skip
async def test_other_requests_pass_as_they_are(request_: ChatRequest) -> None:
    server = Server(PART, prefill=False)
    assert await answered(server, request_) == PART
    assert server.asked is request_
