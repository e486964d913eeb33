"""The stock ``ollama`` client against a real gateway: nothing in it may notice that this is not Ollama."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from .served import KEY, engines, served

ASK: Any = [{"role": "user", "content": "hi"}]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
KNOWN = engines()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(KNOWN) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=url, headers={"Authorization": f"Bearer {KEY}"}) as made:
        yield made


def test_chat(client: ollama.Client) -> None:
    answer = client.chat(model="auto", messages=ASK, options={"temperature": 0, "seed": 1, "num_ctx": 2048})
    assert answer.message.role == "assistant"
    assert answer.message.content
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert answer.total_duration is not None
    assert answer.total_duration > 0
    assert answer.eval_count


def test_chat_in_a_stream(client: ollama.Client) -> None:
    parts = list(client.chat(model="auto:latest", messages=ASK, stream=True))
    text = "".join(part.message.content or "" for part in parts)
    assert text == client.chat(model="auto", messages=ASK).message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    last = parts[-1]
    durations = (last.total_duration, last.prompt_eval_duration, last.eval_duration)
    assert all(isinstance(duration, int) for duration in durations)
    assert last.prompt_eval_count


async def test_the_asynchronous_client(url: str) -> None:
    async with ollama.AsyncClient(host=url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        parts = [part async for part in await client.chat(model="auto", messages=ASK, stream=True)]
    assert parts[-1].done


def test_generate(client: ollama.Client) -> None:
    whole = client.generate(model="auto", prompt="Once", system="Be brief.")
    parts = list(client.generate(model="auto", prompt="Once", stream=True))
    assert whole.response
    assert "".join(part.response or "" for part in parts) == whole.response
    assert parts[-1].done_reason == "stop"


def test_generate_raw_with_a_limit(client: ollama.Client) -> None:
    answer = client.generate(model="auto", prompt="Once", raw=True, options={"num_predict": 2})
    assert answer.done_reason == "length"


def test_a_model_is_loaded_already(client: ollama.Client) -> None:
    assert client.generate(model="auto").done_reason == "load"
    assert client.chat(model="auto").done_reason == "load"


@pytest.mark.parametrize("stream", [False, True])
def test_formats(client: ollama.Client, stream: bool) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    forms: list[Any] = [schema, "json"]
    for form in forms:
        answer: Any = client.chat(model="auto", messages=ASK, format=form, stream=stream)
        text = "".join(part.message.content for part in answer) if stream else answer.message.content
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_offered_and_their_results_taken(client: ollama.Client, stream: bool) -> None:
    def set_temperature(celsius: float) -> str:
        """Set the cabin's temperature.

        Args:
            celsius: Degrees.
        """
        return f"{celsius}"

    call = {"function": {"name": "set_temperature", "arguments": {"celsius": 21}}}
    turns: Any = [
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_name": "set_temperature"},
    ]
    answer: Any = client.chat(model="who", messages=turns, tools=[set_temperature], stream=stream)
    text = "".join(part.message.content for part in answer) if stream else answer.message.content
    assert text == "Hi."
    sent = KNOWN["who"].requests[-1]
    assert sent.tools[0].function.name == "set_temperature"
    assert sent.messages[2].tool_call_id == sent.messages[1].tool_calls[0].id


def test_images_reach_the_engine(client: ollama.Client) -> None:
    client.chat(model="who", messages=[{"role": "user", "content": "What is it?", "images": [PNG]}])
    assert KNOWN["who"].requests[-1].modalities() == {"text", "image"}


def test_control_by_headers(url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "x-codriver-privacy": "local_only"}
    with ollama.Client(host=url, headers=headers) as client:
        client.chat(model="who", messages=ASK)
    assert KNOWN["who"].requests[-1].codriver.privacy == "local_only"


def test_embeddings(client: ollama.Client) -> None:
    answer = client.embed(model="auto", input=["a", "b"])
    assert len(answer.embeddings) == 2
    assert answer.prompt_eval_count == 2


def test_models(client: ollama.Client) -> None:
    assert "auto" in [model.model for model in client.list().models]
    shown = client.show("auto")
    assert "completion" in (shown.capabilities or [])
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("none")
    assert caught.value.status_code == 404


@pytest.mark.parametrize(("model", "status"), [("aut", 404), ("busy", 503), ("long", 400)])
@pytest.mark.parametrize("stream", [False, True])
def test_errors_become_the_right_exception(client: ollama.Client, model: str, status: int, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        list(client.chat(model=model, messages=ASK, stream=stream))
    assert caught.value.status_code == status
    assert not caught.value.error.startswith("{")


def test_a_wrong_key(url: str) -> None:
    with ollama.Client(host=url) as client, pytest.raises(ollama.ResponseError, match="API key") as caught:
        client.chat(model="auto", messages=ASK)
    assert caught.value.status_code == 401


def test_a_stream_that_is_cut_raises(client: ollama.Client) -> None:
    seen = []
    with pytest.raises(ollama.ResponseError, match="answered with an error"):
        for part in client.chat(model="cut", messages=ASK, stream=True):
            seen.append(part)
    assert [part.done for part in seen] == [False]


def test_a_client_that_leaves_stops_the_engine(client: ollama.Client) -> None:
    engine = KNOWN["waits"]
    engine.closed.clear()
    stream: Any = client.chat(model="waits", messages=ASK, stream=True)
    assert next(stream).message.content == "Hel"
    stream.close()
    assert engine.closed.wait(5)
