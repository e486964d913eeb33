"""The cloud is killed at every token of an answer, with real engines: what the client has is one consistent answer.

The cloud is llama.cpp behind a real HTTP server on loopback, which drops the connection in mid-stream; the vehicle is
llama.cpp in this process with the same model, so that the answer without a death is known to the token.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import pytest_asyncio

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, EngineCard, TextOnly
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, JsonSchema, Message, ResponseFormat
from codriver.core.plan import Attempt, AttemptPlan
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.route.config import BreakerConfig, RouteConfig
from codriver.route.execute import Run
from codriver.route.lineup import Lineup
from tests.contract.upstream import Upstream, serve
from tests.unit.route.drive import Got, collect

if importlib.util.find_spec("xllamacpp") is None:
    pytest.skip("needs the wheel xllamacpp", allow_module_level=True)

from codriver.engines.llama_cpp import LlamaCpp
from codriver.engines.llama_cpp_config import LlamaCppConfig

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

TOKENS = 24
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 16},
        "km": {"type": "integer", "minimum": 0, "maximum": 400},
        "plug": {"enum": ["CCS", "Typ 2"]},
        "open": {"type": "boolean"},
    },
    "required": ["city", "km", "plug", "open"],
    "additionalProperties": {"type": "string", "maxLength": 20},
}
# As a cloud writes that knows nothing of the vehicle's grammar: another order, line breaks, a member more.
FOREIGN = '{\n  "open": false,\n  "note": "caf\\u00e9 \\"Süd\\"",\n  "plug": "Typ 2",\n  "km": 12,\n  "city": "Köln"\n}'
PLAN = AttemptPlan((Attempt("cloud", "cloud", "test", "at_once"), Attempt("vehicle", "vehicle", "test")))


class Mortal(TextOnly):
    """``engine``, whose server drops the connection after ``lives`` chunks with text."""

    def __init__(self, engine: Engine) -> None:
        self.card = engine.card
        self.lives = 0
        self._engine = engine

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        lives = self.lives
        async with aclosing(self._engine.generate(request, deadline)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.text():
                    if not lives:
                        raise ConnectionResetError("killed")
                    lives -= 1
                yield chunk


class Written(TextOnly):
    """A cloud that writes ``text``, a character a chunk."""

    card = EngineCard("written", "cloud")

    def __init__(self, text: str) -> None:
        self._text = text

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        for letter in self._text:
            yield ChatChunk(choices=[ChunkChoice(delta=Delta(content=letter))])
        yield ChatChunk(choices=[ChunkChoice(delta=Delta(), finish_reason="stop")])


class Unable(TextOnly):
    """``engine`` without the capabilities ``lacks``; ``said`` is what it answered last."""

    def __init__(self, engine: Engine, *lacks: str) -> None:
        self.card = replace(engine.card, capabilities=engine.card.capabilities - set(lacks))
        self.said = ""
        self._engine = engine

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self.said = ""
        async with aclosing(self._engine.generate(request, deadline)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                self.said += chunk.text()
                yield chunk


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vehicle(model_file: Callable[[str], Path]) -> AsyncIterator[LlamaCpp]:
    config = LlamaCppConfig(model=model_file("smollm2.gguf"), id="vehicle", context_tokens=1000, slots=2, threads=1)
    engine = await LlamaCpp.start(config)
    yield engine
    await engine.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(vehicle: LlamaCpp) -> AsyncIterator[Upstream]:
    async with serve(Mortal(vehicle)) as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(server: Upstream) -> AsyncIterator[OpenAIServer]:
    engine = OpenAIServer(OpenAIConfig(url=server.url))
    yield engine
    await engine.aclose()


def ask(text: str, **members: Any) -> ChatRequest:
    messages = [Message(role="user", content=text)]
    return ChatRequest(messages=messages, **{"stream": True, "temperature": 0, "max_tokens": TOKENS, **members})


TEXT = ask("Describe a charging station in two sentences.")
FORM = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=SCHEMA))
JSON = ask("Name a charging station's city, its distance in km, its plug, and whether it is open.", max_tokens=60)
JSON.response_format = FORM


async def pieces(engine: Engine, request: ChatRequest) -> list[str]:
    async with aclosing(engine.generate(request, Deadline.after(60))) as chunks:  # type: ignore[type-var]
        return [chunk.text() async for chunk in chunks if chunk.text()]


async def killed(request: ChatRequest, cloud: Engine, vehicle: Engine) -> Got:
    """What the client gets, which is sure to be one answer that says once that it is whole."""
    lineup = Lineup({"cloud": cloud, "vehicle": vehicle}, breaker_config=BreakerConfig(failures=10_000))
    got = Got()
    await collect(Run(lineup, RouteConfig(), PLAN, request, Deadline.after(60)).chunks(), got)
    assert got.error is None
    assert len(got.finishes) == 1
    assert len({chunk.id for chunk in got.chunks}) == 1
    return got


def part_of(got: Got, whole: list[str], kill: int) -> str:
    """What the client had when the cloud died."""
    part = "".join(whole[:kill])
    assert got.text.startswith(part)
    assert [f["at_chars"] for f in got.extension["failovers"]] == [len(part)]
    return part


async def test_plain_text_goes_on_as_if_nothing_had_happened(
    vehicle: LlamaCpp, cloud: OpenAIServer, server: Upstream
) -> None:
    whole = await pieces(vehicle, TEXT)
    assert len(whole) >= TOKENS - 4
    same = 0
    for kill in range(1, len(whole)):
        server.engine.lives = kill  # type: ignore[attr-defined]
        got = await killed(TEXT, cloud, vehicle)
        part_of(got, whole, kill)
        same += got.text == "".join(whole)
    print(f"\n  plain text: {len(whole) - 1} kills, {same} answers the same to the character")
    assert same >= 0.9 * (len(whole) - 1)  # where two words are equally likely, a batch of another size decides


async def test_text_without_prefill_says_nothing_twice_at_the_seam(
    vehicle: LlamaCpp, cloud: OpenAIServer, server: Upstream
) -> None:
    unable = Unable(vehicle, "prefill", "json_resume")
    whole, took_off = await pieces(vehicle, TEXT), 0
    for kill in range(1, len(whole)):
        server.engine.lives = kill  # type: ignore[attr-defined]
        got = await killed(TEXT, cloud, unable)
        part = part_of(got, whole, kill)
        rest = got.text[len(part) :]
        assert unable.said.endswith(rest)
        took_off += rest != unable.said
        assert not any(rest.startswith(part[-size:]) for size in range(8, len(part) + 1)), (part, rest)
    print(f"\n  continuation prompt: {len(whole) - 1} kills, a repetition was taken off {took_off} times")


async def test_json_is_valid_wherever_the_cloud_died(vehicle: LlamaCpp, cloud: OpenAIServer, server: Upstream) -> None:
    whole, same = await pieces(vehicle, JSON), 0
    for kill in range(1, len(whole)):
        server.engine.lives = kill  # type: ignore[attr-defined]
        got = await killed(JSON, cloud, vehicle)
        part_of(got, whole, kill)
        assert jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(got.text)), got.text
        assert got.finishes == ["stop"]
        same += got.text == "".join(whole)
    print(f"\n  JSON: {len(whole) - 1} kills, all valid, {same} answers the same to the character")


async def test_json_is_held_where_the_vehicle_could_not_finish_it(
    vehicle: LlamaCpp, cloud: OpenAIServer, server: Upstream
) -> None:
    server.engine.lives = 9  # type: ignore[attr-defined]
    got = await killed(JSON, cloud, Unable(vehicle, "json_resume"))
    assert "failovers" not in got.extension
    assert got.text == "".join(await pieces(vehicle, JSON))


async def _foreign(vehicle: LlamaCpp, kills: range) -> None:
    async with serve(Mortal(Written(FOREIGN))) as upstream:
        cloud = OpenAIServer(OpenAIConfig(url=upstream.url))
        for kill in kills:
            upstream.engine.lives = kill  # type: ignore[attr-defined]
            # Each of its chunks counts as a token.
            got = await killed(msgspec.structs.replace(JSON, max_tokens=400), cloud, vehicle)
            part_of(got, list(FOREIGN), kill)
            assert jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(got.text)), got.text
        await cloud.aclose()


async def test_json_of_another_hand_is_finished(vehicle: LlamaCpp) -> None:
    await _foreign(vehicle, range(5, len(FOREIGN), 24))


@pytest.mark.slow
async def test_json_of_another_hand_is_finished_from_every_character(vehicle: LlamaCpp) -> None:
    await _foreign(vehicle, range(1, len(FOREIGN)))
