"""The stock ``openai`` client against a real gateway: nothing in it may notice that this is not OpenAI."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health, TextOnly
from codriver.core.errors import CodriverError, EngineBusy, Forbidden, PromptTooLong, UpstreamError
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta
from codriver.engines.null import Null
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.observe.metrics import Metrics

KEY = "test-key"
ASK: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "set_temperature",
        "parameters": {
            "type": "object",
            "properties": {"celsius": {"type": "number"}},
            "required": ["celsius"],
        },
    },
}
FAILURES: dict[str, CodriverError] = {
    "busy": EngineBusy("The engine is busy."),
    "forbidden": Forbidden("This vehicle may not ask that."),
    "long": PromptTooLong("The prompt is too long."),
    "broken": UpstreamError("The server answered with an error."),
}


class Failing(TextOnly):
    """Raises its error, after one chunk where ``late`` is set."""

    def __init__(self, error: CodriverError, late: ChatChunk | None = None) -> None:
        self.card = EngineCard(id="failing", locality="vehicle")
        self._error, self._late = error, late

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        if self._late is not None:
            yield self._late
        raise self._error

    def health(self) -> Health:
        return Health("ready")

    async def aclose(self) -> None: ...


async def _serve(ready: threading.Event, found: dict[str, Any]) -> None:
    first = ChatChunk(id="c", created=1, model="m", choices=[ChunkChoice(delta=Delta(content="Hel"))])
    engines: dict[str, Any] = {"auto": Null(), "cut": Failing(FAILURES["broken"], late=first)}
    engines |= {name: Failing(error) for name, error in FAILURES.items()}
    config = GatewayConfig(port=0, api_keys=(KEY,))
    listening = await serve(Gateway(engines, "auto", config, Metrics()), config)
    found["url"], found["loop"], found["stop"] = listening.urls[0], asyncio.get_running_loop(), asyncio.Event()
    ready.set()
    await found["stop"].wait()
    await listening.aclose()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway in a thread of its own, so that the synchronous client can be used."""
    ready, found = threading.Event(), {}
    thread = threading.Thread(target=lambda: asyncio.run(_serve(ready, found)))
    thread.start()
    assert ready.wait(10)
    yield found["url"] + "/v1"
    found["loop"].call_soon_threadsafe(found["stop"].set)
    thread.join(10)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as made:
        yield made


def test_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="auto", messages=ASK)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="auto", messages=ASK, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stream_with_usage(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    *chunks, last = client.chat.completions.create(model="auto", messages=ASK, stream=True, stream_options=options)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None


def test_the_streaming_accumulator(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="auto", messages=ASK) as stream:
        final = stream.get_final_completion()
    assert (
        final.choices[0].message.content
        == client.chat.completions.create(model="auto", messages=ASK).choices[0].message.content
    )


async def test_the_asynchronous_client(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
        answer = await client.chat.completions.create(model="auto", messages=ASK)
        stream = await client.chat.completions.create(model="auto", messages=ASK, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call(client: openai.OpenAI, stream: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "set_temperature"}}
    if stream:
        with client.chat.completions.stream(model="auto", messages=ASK, tools=[TOOL], tool_choice=choice) as events:
            message: Any = events.get_final_completion().choices[0].message
    else:
        answer = client.chat.completions.create(model="auto", messages=ASK, tools=[TOOL], tool_choice=choice)
        message = answer.choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "set_temperature"
    assert "celsius" in json.loads(call.function.arguments)


def test_a_json_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="auto", messages=ASK, response_format=wanted)
    assert isinstance(json.loads(answer.choices[0].message.content or "")["ok"], bool)


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="auto", messages=ASK, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert logprobs.content[0].logprob <= 0


def test_codriver_options_by_extra_body(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="auto", messages=ASK, extra_body={"codriver": {"policy": "auto"}})
    assert answer.choices[0].finish_reason == "stop"


def test_text_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="auto", prompt="Once", max_tokens=3)
    chunks = list(client.completions.create(model="auto", prompt="Once", max_tokens=3, stream=True))
    assert answer.object == "text_completion"
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_embeddings_are_the_same_in_both_encodings(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="auto", input=["a", "b"])
    plain = client.embeddings.create(model="auto", input=["a", "b"], encoding_format="float")
    assert len(packed.data) == 2
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-6)


def test_models(client: openai.OpenAI) -> None:
    assert "auto" in [model.id for model in client.models.list()]
    assert client.models.retrieve("auto").id == "auto"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [
        ("aut", openai.NotFoundError, "model_not_found"),
        ("busy", openai.InternalServerError, "engine_busy"),
        ("forbidden", openai.PermissionDeniedError, "forbidden"),
        ("long", openai.BadRequestError, "context_length_exceeded"),
        ("broken", openai.InternalServerError, "upstream_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_become_the_right_exception(
    client: openai.OpenAI, model: str, kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model=model, messages=ASK, stream=stream)
    assert caught.value.code == code
    assert caught.value.request_id


def test_a_wrong_key(url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="auto", messages=ASK)
    assert caught.value.code == "invalid_api_key"


def test_a_malformed_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="auto", messages=ASK, extra_body={"temperature": "hot"})
    assert caught.value.param == "temperature"


def test_a_stream_that_is_cut_raises(client: openai.OpenAI) -> None:
    seen = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in client.chat.completions.create(model="cut", messages=ASK, stream=True):
            seen.append(chunk)
    assert len(seen) == 1
    assert caught.value.code == "upstream_error"
