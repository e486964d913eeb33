"""The stock ``openai`` client's Responses API against a real gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from .served import KEY, engines, served

TOOL: Any = {
    "type": "function",
    "name": "set_temperature",
    "parameters": {"type": "object", "properties": {"celsius": {"type": "number"}}, "required": ["celsius"]},
    "strict": False,
}
KNOWN = engines()


class Climate(pydantic.BaseModel):
    celsius: int
    fan: bool


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(KNOWN) as found:
        yield found + "/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as made:
        yield made


def test_whole(client: openai.OpenAI) -> None:
    response = client.responses.create(model="auto", input="hi", instructions="Be brief.", store=False)
    assert (response.object, response.status, response.store) == ("response", "completed", False)
    assert response.output_text
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.instructions == "Be brief."


def test_stream_is_the_whole(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="auto", input="hi", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert last.response.output_text == client.responses.create(model="auto", input="hi").output_text
    assert last.response.usage.output_tokens > 0


def test_the_streaming_accumulator(client: openai.OpenAI) -> None:
    with client.responses.stream(model="auto", input="hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text


async def test_the_asynchronous_client(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
        response = await client.responses.create(model="auto", input="hi")
    assert response.output_text


def test_parse(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="auto", input="hi", text_format=Climate)
    assert isinstance(response.output_parsed, Climate)


def test_parse_in_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="auto", input="hi", text_format=Climate) as stream:
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Climate)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_its_result(client: openai.OpenAI, stream: bool) -> None:
    choice: Any = {"type": "function", "name": "set_temperature"}
    asked: Any = {"model": "auto", "input": "hi", "tools": [TOOL], "tool_choice": choice}
    response: Any
    if stream:
        with client.responses.stream(**asked) as events:
            kinds = [event.type for event in events]
            response = events.get_final_response()
        assert "response.function_call_arguments.delta" in kinds
        assert "response.function_call_arguments.done" in kinds
    else:
        response = client.responses.create(**asked)
    (call,) = response.output
    assert (call.type, call.name) == ("function_call", "set_temperature")
    assert "celsius" in json.loads(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    history: Any = [{"role": "user", "content": "hi"}, call.model_dump(exclude_none=True), result]
    assert client.responses.create(model="auto", input=history, tools=[TOOL]).output_text


def test_logprobs(client: openai.OpenAI) -> None:
    response: Any = client.responses.create(
        model="auto", input="hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    assert response.output[0].content[0].logprobs[0].logprob <= 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_token_limit_is_told(client: openai.OpenAI, stream: bool) -> None:
    answer: Any = client.responses.create(model="auto", input="hi", max_output_tokens=2, stream=stream)
    if stream:
        *_, last = answer
        assert last.type == "response.incomplete"
        answer = last.response
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_who_answered_is_told(client: openai.OpenAI, stream: bool) -> None:
    control = {"codriver": {"policy": "auto"}}
    answer: Any = client.responses.create(model="who", input="hi", stream=stream, extra_body=control)
    response = list(answer)[-1].response if stream else answer
    assert response.codriver["engine"] == "who"


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [
        ("aut", openai.NotFoundError, "model_not_found"),
        ("busy", openai.InternalServerError, "engine_busy"),
        ("long", openai.BadRequestError, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_become_the_right_exception(
    client: openai.OpenAI, model: str, kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.responses.create(model=model, input="hi", stream=stream)
    assert caught.value.code == code


def test_a_previous_response_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"codriver\.session") as caught:
        client.responses.create(model="auto", input="hi", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_a_stream_that_is_cut_fails(client: openai.OpenAI) -> None:
    events: list[Any] = list(client.responses.create(model="cut", input="hi", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert events[-1].response.error.code == "upstream_error"
    assert "response.completed" not in [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_cut_stream_has_no_final_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="cut", input="hi") as stream, pytest.raises(RuntimeError):
        stream.get_final_response()


def test_a_client_that_leaves_stops_the_engine(client: openai.OpenAI) -> None:
    engine = KNOWN["waits"]
    engine.closed.clear()
    stream: Any = client.responses.create(model="waits", input="hi", stream=True)
    assert next(event for event in stream if event.type == "response.output_text.delta").delta == "Hel"
    stream.close()
    assert engine.closed.wait(5)
