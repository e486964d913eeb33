"""A car with everything that leaves it recorded: sockets to the cloud, log lines, spans, the metrics page.

``Cloud`` is a real server on loopback that keeps every byte it is sent and answers as a test says. ``Car`` is a gateway
with router, an engine on board that can fail, and two cloud engines. ``leaked`` looks for secrets in all that got out.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import urllib.parse
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from codriver.core.clock import SYSTEM_CLOCK
from codriver.core.engine import EngineCard, Health, TextOnly
from codriver.core.errors import EngineDied, EngineUnavailable
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, Logprobs, TokenLogprob
from codriver.core.plan import AttemptPlan
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.gateway import Gateway, GatewayConfig
from codriver.observe.logs import JsonLines, TextLines
from codriver.observe.metrics import Metrics
from codriver.privacy import PrivacyConfig
from codriver.privacy.detect import make_detector
from codriver.route.config import RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.pinned import PinnedEngine
from tests.unit.route.faulty import EVERY

DETECTOR = make_detector(PrivacyConfig(names=("Zaphira Quux",)))
STEP = 5  # characters of an echo that come in one chunk


def echo(texts: Iterable[str]) -> list[str]:
    """The answer of everybody here: what was said last, in pieces that cut every value and every placeholder."""
    text = "you said: " + list(texts)[-1]
    return [text[at : at + STEP] for at in range(0, len(text), STEP)]


class Cloud:
    """``fault``: a word and after how many pieces it strikes."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.fault: tuple[str, int] = ("none", 0)
        self.requests = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.received += head
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
                )
                body = await reader.readexactly(length)
                self.received += body
                self.requests += 1
                await self._answer(body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, after = self.fault
        asked = json.loads(body)
        if kind in ("400", "500"):
            # Servers like to quote what they were asked.
            told = json.dumps({"error": {"message": f"cannot read {body.decode()}"}}).encode()
            writer.write(b"HTTP/1.1 %s Bad\r\ncontent-type: application/json\r\n" % kind.encode())
            writer.write(b"content-length: %d\r\n\r\n" % len(told) + told)
            return
        pieces = self._left(asked)
        if not asked.get("stream"):
            whole = {"index": 0, "message": {"role": "assistant", "content": "".join(pieces)}, "finish_reason": "stop"}
            told = json.dumps({"id": "w", "created": 1, "model": "m", "choices": [whole]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(told) + told)
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for index, piece in enumerate([*pieces, None]):
            if kind != "none" and index == after:
                await self._strike(kind, body, reader, writer)
            event(writer, "" if piece is None else piece, "stop" if piece is None else None)
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        raise ConnectionError

    @staticmethod
    def _left(asked: dict[str, Any]) -> list[str]:
        if "prompt" in asked:
            return echo([str(asked["prompt"])])
        said = [m["content"] for m in asked["messages"] if m["role"] == "user" and isinstance(m["content"], str)]
        text = "".join(echo([one for one in said if not one.startswith("Go on with your answer")]))
        last = asked["messages"][-1]
        part = last["content"] if last["role"] == "assistant" and isinstance(last["content"], str) else ""
        rest = text[len(part) :] if text.startswith(part) else text
        return [rest[at : at + STEP] for at in range(0, len(rest), STEP)]

    async def _strike(self, kind: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if kind == "garbage":
            writer.write(b"data: {cannot read " + body + b"}\n\n")
        if kind == "error":
            writer.write(b"data: " + json.dumps({"error": {"message": body.decode()}}).encode() + b"\n\n")
        await writer.drain()
        if kind == "stall":
            await reader.read()
        raise ConnectionError


def event(writer: asyncio.StreamWriter, text: str, finish: str | None) -> None:
    choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": finish}
    told = {"id": "c", "created": 1, "model": "m", "choices": [choice]}
    writer.write(b"data: " + json.dumps(told).encode() + b"\n\n")


class Onboard(TextOnly):
    """The engine on board. ``fault``: as above; ``bug`` raises what no engine may raise, and quotes the request."""

    def __init__(self) -> None:
        self.card = EngineCard("v", "vehicle", "v", frozenset({"text", "image"}), EVERY)
        self.fault: tuple[str, int] = ("none", 0)
        self.logprob = -0.01

    async def generate(self, request: ChatRequest, deadline: Any) -> AsyncIterator[ChatChunk]:
        kind, after = self.fault
        if kind == "refuse":
            raise EngineUnavailable("refused", engine="v")
        if request.prompt is not None:
            pieces = echo([request.prompt])
        else:
            pieces = echo(m.text() for m in request.messages if m.role == "user")
        for index, piece in enumerate(pieces):
            if kind != "none" and index == after:
                if kind == "bug":
                    raise ValueError(f"cannot read {request}")
                raise EngineDied("died", engine="v")
            probable = Logprobs([TokenLogprob(piece, self.logprob)]) if request.logprobs else None
            yield self._chunk(Delta(content=piece), None, probable)
        yield self._chunk(Delta(), "stop", None)

    @staticmethod
    def _chunk(delta: Delta, finish: str | None, logprobs: Logprobs | None) -> ChatChunk:
        choice = ChunkChoice(delta=delta, finish_reason=finish, logprobs=logprobs)
        return ChatChunk(id="v", created=1, model="v", choices=[choice])

    def health(self) -> Health:
        return Health("ready")

    async def aclose(self) -> None: ...


class Drawn:
    """A decider that makes the plan a test has drawn, as far as the request's class allows one."""

    def __init__(self, plan: AttemptPlan, car: Car) -> None:
        self._plan, self._car = plan, car

    def plan(self, request: ChatRequest, deadline_s: float = 0.0) -> AttemptPlan:
        privacy = (request.codriver.privacy if request.codriver else None) or "any"
        attempts = [a for a in self._plan.attempts if privacy != "local_only" or a.locality == "vehicle"]
        if not attempts:
            raise EngineUnavailable("nobody is left")
        rest = [replace(a, start="after_failure") if a.start == "at_once" else a for a in attempts[1:]]
        first = replace(attempts[0], start="at_once")
        return AttemptPlan((first, *rest), self._plan.deadline_s, privacy=privacy)


class Car:
    """``ask`` puts a body to the gateway and gives the answer's status and bytes."""

    def __init__(
        self, port: int, config: RouteConfig, keys: tuple[str, ...] = (), classes: tuple[str, ...] = ()
    ) -> None:
        self.v = Onboard()
        url = f"http://127.0.0.1:{port}/v1"
        every = tuple(EVERY - {"prefill"})
        self.clouds = [
            OpenAIServer(OpenAIConfig(id="c", url=url, model="m", capabilities=every, prefill="llama_cpp", peer=True)),
            OpenAIServer(OpenAIConfig(id="d", url=url, model="m", capabilities=every)),
        ]
        self.metrics = Metrics()
        engines = {"v": self.v, **{cloud.card.id: cloud for cloud in self.clouds}}
        lineup = Lineup(engines, metrics=self.metrics)
        self.hybrid = HybridEngine(lineup, config, detector=DETECTOR)
        models = {"codriver": self.hybrid, **{n: PinnedEngine(self.hybrid, lineup, n, config.privacy) for n in engines}}
        settings = GatewayConfig(api_keys=keys, key_privacy=classes)
        self.gateway = Gateway(models, "codriver", settings, self.metrics, SYSTEM_CLOCK)

    def follow(self, plan: AttemptPlan) -> None:
        self.hybrid._decider = Drawn(plan, self)  # type: ignore[assignment]

    async def ask(self, path: str, body: bytes, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
        answer, status = bytearray(), 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            answer.extend(message.get("body", b""))

        scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
        await self.gateway(scope, receive, send)
        return status, bytes(answer)

    async def aclose(self) -> None:
        for cloud in self.clouds:
            await cloud.aclose()


class Outside:
    """Everything that got out, under the name of the way it took."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._logs = io.StringIO()
        self._spans = InMemorySpanExporter()
        self._handlers = [logging.StreamHandler(self._logs) for _ in range(2)]
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._spans))

    def __enter__(self) -> Outside:
        root = logging.getLogger()
        for handler, lines in zip(self._handlers, (JsonLines(), TextLines()), strict=True):
            handler.setFormatter(lines)
            root.addHandler(handler)
        self._levels = root.level, logging.getLogger("codriver").level
        root.setLevel(1)
        logging.getLogger("codriver").setLevel(1)
        self._before = trace._TRACER_PROVIDER
        trace._TRACER_PROVIDER = self._provider
        return self

    def __exit__(self, *_: object) -> None:
        trace._TRACER_PROVIDER = self._before
        root = logging.getLogger()
        root.setLevel(self._levels[0])
        logging.getLogger("codriver").setLevel(self._levels[1])
        for handler in self._handlers:
            root.removeHandler(handler)

    def ways(self, metrics: Metrics) -> dict[str, str]:
        return {
            "sockets": self._cloud.received.decode("utf-8", "replace"),
            "logs": self._logs.getvalue(),
            "spans": "".join(span.to_json() for span in self._spans.get_finished_spans()),
            "metrics": metrics.render()[0].decode(),
        }


def leaked(secrets: Iterable[str], ways: dict[str, str]) -> list[tuple[str, str]]:
    """Which secret got out which way: as it is, as JSON or a URL writes it, in base64, or with its spaces gone."""
    found = []
    for way, text in ways.items():
        plain = text.casefold()
        dense = "".join(plain.split())
        for secret in secrets:
            written = {secret, json.dumps(secret)[1:-1], urllib.parse.quote(secret)}
            in_base64 = base64.b64encode(secret.encode()).decode()[:-4]
            out = any(one.casefold() in plain for one in written) or "".join(secret.casefold().split()) in dense
            if out or (len(in_base64) > 8 and in_base64 in text):
                found.append((secret, way))
    return found
