"""The asking side of a drive: one request, streamed, with its times on the asking side's own clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from codriver.core.answer import Answer
from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import UpstreamMalformed
from codriver.core.wire import DONE, SseParser, decode_chunk

from .drive_outcomes import Fate, Where
from .drive_settings import CloudPrice
from .grading import grade
from .workload import WorkItem

# How long past its deadline a request is still listened to, so that "late" can be told from "never".
_LISTEN_ON_S = 0.5
_DONE = DONE[len(b"data: ") :].strip()


@dataclass
class Reply:
    """What came back. ``error`` is a stable code; empty for a whole answer."""

    answer: Answer = field(default_factory=Answer)
    ttft_s: float | None = None
    total_s: float = 0.0
    error: str = ""
    ended: bool = False


class DriveClient:
    """Sends work items to one Codriver. ``aclose`` ends its connections."""

    def __init__(self, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._url = url
        self._clock = clock
        # Each request its own connection if need be: the asking side must never queue.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def ask(self, item: WorkItem) -> Reply:
        """The reply, whatever became of it. It is not waited for longer than the item's deadline and a moment."""
        return await self._ask(request_body(item), item.deadline_s + _LISTEN_ON_S)

    async def ask_slowly(self, item: WorkItem, model: str, within_s: float, extra: dict[str, Any]) -> Reply:
        """The same request to a model by its own name, with time enough; ``extra`` are further members of the body."""
        body = {**request_body(item), "model": model, "codriver": {"deadline_ms": 1e3 * within_s}, **extra}
        body["codriver"]["first_token_ms"] = 1e3 * within_s
        return await self._ask(body, within_s + _LISTEN_ON_S)

    async def _ask(self, body: dict[str, Any], within_s: float) -> Reply:
        reply = Reply()
        began_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(within_s):
                await self._exchange(body, reply, began_s)
        except TimeoutError:
            reply.error = "deadline_exceeded"
        except (aiohttp.ClientError, OSError):
            reply.error = "connection_lost"
        except UpstreamMalformed as error:
            reply.error = error.code
        reply.total_s = self._clock.monotonic_s() - began_s
        return reply

    async def _exchange(self, body: dict[str, Any], reply: Reply, began_s: float) -> None:
        async with self._session.post(f"{self._url}/chat/completions", json=body) as response:
            if response.status != 200:
                reply.error = _code(await response.read(), f"http_{response.status}")
                return
            parser = SseParser()
            async for received in response.content.iter_any():
                for payload in parser.feed(received):
                    self._take(payload, reply, began_s)
        if not reply.error and not (reply.ended and reply.answer.complete):
            reply.error = "cut"

    def _take(self, payload: bytes, reply: Reply, began_s: float) -> None:
        if payload == _DONE:
            reply.ended = True
            return
        if payload.startswith(b'{"error"'):
            reply.error = _code(payload, "cut")
            return
        chunk = decode_chunk(payload)
        if reply.ttft_s is None and (chunk.text() or (chunk.choices and chunk.choices[0].delta.tool_calls)):
            reply.ttft_s = self._clock.monotonic_s() - began_s
        reply.answer.add(chunk)

    async def get_text(self, url: str) -> str:
        """A page of the server, for its metrics. Raises what aiohttp raises."""
        async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=2.0)) as response:
            return await response.text()

    async def aclose(self) -> None:
        await self._session.close()


def request_body(item: WorkItem) -> dict[str, Any]:
    """The OpenAI body of a work item, with its deadlines in the ``codriver`` extension."""
    body: dict[str, Any] = {
        "model": "codriver",
        "messages": item.messages,
        "max_tokens": item.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "codriver": {
            "deadline_ms": 1e3 * item.deadline_s,
            "first_token_ms": 1e3 * item.first_token_s,
        },
    }
    if item.privacy != "any":
        body["codriver"]["privacy"] = item.privacy
    if item.context:
        body["codriver"]["context"] = list(item.context)
    if (form := item.response_format()) is not None:
        body["response_format"] = form
    return body


def fate_of(item: WorkItem, at_s: float, reply: Reply, price: CloudPrice, never_cloud: bool = False) -> Fate:
    """The request's fate: graded, placed and priced from what the reply tells.

    A failed answer does not tell its attempts; then the cloud counts as called unless ``never_cloud`` or the link was
    known to be down.
    """
    answer = reply.answer
    told = answer.codriver if isinstance(answer.codriver, dict) else {}
    attempts: list[dict[str, Any]] = [dict(one) for one in _listed(told, "attempts")]
    cloud = [one for one in attempts if one.get("engine") == "cloud" and not _skipped(one)]
    called = bool(cloud) or (not attempts and not never_cloud and reply.error != "link_down")
    prompt_tokens = answer.usage.prompt_tokens if answer.usage else _tokens(item)
    cost_usd = sum(price.cost_usd(prompt_tokens, int(one.get("tokens", 0))) for one in cloud)
    if called and not cloud:
        cost_usd = price.cost_usd(prompt_tokens, answer.chunks)
    outcome = reply.error or ("in time" if reply.total_s <= item.deadline_s else "late")
    verdict = grade(item, answer.text if not reply.error else "")
    return Fate(
        item=item.id,
        kind=item.kind,
        source=item.source,
        at_s=at_s,
        deadline_s=item.deadline_s,
        outcome=outcome,
        where=_where(told, reply),
        ttft_ms=None if reply.ttft_s is None else 1e3 * reply.ttft_s,
        total_ms=1e3 * reply.total_s,
        correct=verdict.correct,
        graded=item.grade != "answered",
        why=verdict.why,
        cloud_called=called,
        cost_usd=cost_usd,
        failovers=len(_listed(told, "failovers")),
        link=str(told.get("link", "")),
        attempts=attempts,
        text=answer.text,
        privacy=item.privacy,
    )


def _tokens(item: WorkItem) -> int:
    """An estimate of the prompt's."""
    return sum(map(len, (*(message["content"] for message in item.messages), *item.context))) // 4


def _where(told: dict[str, Any], reply: Reply) -> Where:
    if reply.error:
        return "nobody"
    if any(one.get("policy") != "restart" for one in _listed(told, "failovers")):
        return "mixed"
    place = told.get("locality")
    return place if place in ("vehicle", "cloud") else "nobody"


def _listed(told: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = told.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _skipped(attempt: dict[str, Any]) -> bool:
    return str(attempt.get("outcome", "")).startswith("skipped")


def _code(body: bytes, otherwise: str) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["code"] or otherwise)
    except (msgspec.DecodeError, KeyError, TypeError):
        return otherwise
