"""A trailing assistant message begins the answer, whatever the server behind takes it for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

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
        yield ChatChunk(choices=[ChunkChoice(finish_reason="stop")])


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


CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}


@pytest.mark.parametrize(
    "request_",
    [
        body(),
        body(BEGUN, {"role": "user", "content": "And then?"}),
        body({"role": "assistant", "content": ""}),
        body({"role": "assistant", "content": PART, "tool_calls": [CALL]}),
        body(BEGUN, continue_final_message=True, add_generation_prompt=False),
        body(BEGUN, add_generation_prompt=True),
    ],
    ids=["user last", "a turn that is over", "empty", "tool call", "vLLM goes on", "vLLM begins anew"],
)
async def test_other_requests_pass_as_they_are(request_: ChatRequest) -> None:
    server = Server(PART, prefill=False)
    assert await answered(server, request_) == PART
    assert server.asked is request_
