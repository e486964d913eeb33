"""The stock ``anthropic`` client against a real gateway: nothing in it may notice that this is not Anthropic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from .served import KEY, engines, served

ASK: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "name": "set_temperature",
    "description": "Set the cabin's temperature.",
    "input_schema": {"type": "object", "properties": {"celsius": {"type": "number"}}, "required": ["celsius"]},
}
KNOWN = engines()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(KNOWN) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as made:
        yield made


def create(client: anthropic.Anthropic, **more: Any) -> Any:
    return client.messages.create(**{"model": "auto", "max_tokens": 64, "messages": ASK, **more})


def test_whole(client: anthropic.Anthropic) -> None:
    message = create(client, system="Be brief.", metadata={"user_id": "u"})
    (block,) = message.content
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    assert block.type == "text"
    assert block.text
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


def test_stream_is_the_whole(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="auto", max_tokens=64, messages=ASK) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    whole = create(client)
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert [block.text for block in final.content if block.type == "text"] == [whole.content[0].text]
    assert final.stop_reason == "end_turn"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        whole.usage.input_tokens,
        whole.usage.output_tokens,
    )


def test_the_token_limit_is_told(client: anthropic.Anthropic) -> None:
    assert create(client, max_tokens=2).stop_reason == "max_tokens"


async def test_the_asynchronous_client(url: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=url, auth_token=KEY, api_key=None, max_retries=0) as client:
        message: Any = await client.messages.create(model="auto", max_tokens=64, messages=ASK)
        async with client.messages.stream(model="auto", max_tokens=64, messages=ASK) as stream:
            text = await stream.get_final_text()
    assert text == message.content[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_its_result(client: anthropic.Anthropic, stream: bool) -> None:
    asked: Any = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "set_temperature"}}
    message: Any
    if stream:
        with client.messages.stream(model="auto", max_tokens=64, messages=ASK, **asked) as events:
            message = events.get_final_message()
    else:
        message = create(client, **asked)
    (call,) = message.content
    assert message.stop_reason == "tool_use"
    assert (call.type, call.name) == ("tool_use", "set_temperature")
    assert "celsius" in call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
    turns = [*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert create(client, messages=turns, tools=[TOOL]).stop_reason == "end_turn"


def test_a_json_schema(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    message = create(client, extra_body={"output_config": {"format": {"type": "json_schema", "schema": schema}}})
    assert '"ok"' in message.content[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_who_answered_is_told(client: anthropic.Anthropic, stream: bool) -> None:
    control = {"codriver": {"policy": "auto"}}
    answer = create(client, model="who", stream=stream, extra_body=control)
    last = list(answer)[-1] if stream else answer
    assert last.codriver["engine"] == "who"


@pytest.mark.parametrize(
    ("model", "kind", "name"),
    [
        ("aut", anthropic.NotFoundError, "not_found_error"),
        ("busy", anthropic.InternalServerError, "overloaded_error"),
        ("long", anthropic.BadRequestError, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_become_the_right_exception(
    client: anthropic.Anthropic, model: str, kind: type[anthropic.APIStatusError], name: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        create(client, model=model, stream=stream)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == name
    assert body["error"]["message"]


def test_a_wrong_key(url: str) -> None:
    with (
        anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        create(client)


def test_a_stream_that_is_cut_raises(client: anthropic.Anthropic) -> None:
    seen: list[str] = []
    with pytest.raises(anthropic.APIStatusError, match="answered with an error"):
        for event in create(client, model="cut", stream=True):
            seen.append(event.type)
    assert "content_block_delta" in seen
    assert "message_delta" not in seen
    assert "message_stop" not in seen


def test_a_whole_answer_that_is_cut_raises(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.InternalServerError, match="answered with an error"):
        create(client, model="cut")


def test_a_client_that_leaves_stops_the_engine(client: anthropic.Anthropic) -> None:
    engine = KNOWN["waits"]
    engine.closed.clear()
    stream = create(client, model="waits", stream=True)
    assert next(event for event in stream if event.type == "content_block_delta").delta.text == "Hel"
    stream.close()
    assert engine.closed.wait(5)
