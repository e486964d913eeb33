"""One request and its answer on the wire: reads the body under its limits, writes JSON or a stream of events.

Rule: a stream that was cut never looks complete. It ends with an error event and without ``[DONE]``.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from codriver.core.errors import BodyTooLarge, CodriverError, EngineError, MalformedBody, RateLimited
from codriver.core.messages import Usage
from codriver.observe.spans import NO_REQUEST_SPAN, RequestSpan

from .config import GatewayConfig
from .head import Head
from .refusals import Refusal, refusal_for

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_UNFIT = re.compile(r"[^\x21-\x7e]")
_JSON = (b"content-type", b"application/json")
STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client closed its connection: there is nobody to answer."""


class Exchange:
    """What a route needs to answer: ``head``, the route's name, the body, and the ways to answer.

    ``engine`` becomes a response header; ``caller`` tells API keys apart and is empty where there are none.
    ``limit_s``: how long the answer may take, from ``arrived_s`` on. ``cut_by`` is set by whoever cancels the work,
    and is what the client is told; without it a cancelled exchange means that the client has gone. ``refusal`` is
    set by a stream that has a way of its own to say that it was cut. ``told`` is the last ``codriver`` extension
    that named an engine.
    """

    __slots__ = (
        "_receive", "_send", "allow", "arrived_s", "background", "caller", "close", "cut_by", "engine", "head",
        "limit_s", "method", "outcome", "path", "refusal", "route", "span", "status", "streaming", "told", "usage",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, arrived_s: float) -> None:
        self._receive, self._send = receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.route = "other"
        self.arrived_s = arrived_s
        self.head = Head(scope["headers"])
        self.allow = b""
        self.caller = ""
        self.background = False
        self.close = False
        self.cut_by: CodriverError | None = None
        self.limit_s = math.inf
        self.span: RequestSpan = NO_REQUEST_SPAN
        self.engine = ""
        self.status = 0
        self.streaming = False
        self.outcome: CodriverError | None = None
        self.usage: Usage | None = None
        self.refusal: Refusal | None = None
        self.told: object = None

    async def body(self, config: GatewayConfig) -> bytes:
        """The whole body. Errors: :class:`BodyTooLarge`, :class:`MalformedBody` when too slow, :class:`ClientGone`."""
        limit = config.body_limit_bytes
        if self.head.length > limit:
            raise _too_large(limit)
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body") and len(body) <= limit:
            return body
        try:
            async with asyncio.timeout(config.body_timeout_s):
                return await self._rest(message, limit)
        except TimeoutError:
            self.close = True
            raise MalformedBody(
                f"The request body was not complete within {config.body_timeout_s:g} seconds."
            ) from None

    async def _rest(self, message: Message, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self._receive()

    async def answer(self, body: bytes, status: int = 200, headers: Headers | None = None) -> None:
        """A whole JSON body; ``headers`` replace its content type."""
        await self._start(status, [*(headers or [_JSON]), (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self, headers: Sequence[tuple[bytes, bytes]] = STREAM) -> None:
        await self._start(200, list(headers))
        self.streaming = True

    async def event(self, payload: bytes) -> None:
        """One ``data:`` event."""
        await self._send({"type": "http.response.body", "body": b"data: " + payload + b"\n\n", "more_body": True})

    async def write(self, payload: bytes) -> None:
        """Bytes of the stream as they stand: whole events or lines."""
        await self._send({"type": "http.response.body", "body": payload, "more_body": True})

    async def end_stream(self, last: bytes) -> None:
        """``last`` are the final bytes as they stand: ``[DONE]``'s event, or an error's."""
        self.streaming = False
        await self._send({"type": "http.response.body", "body": last})

    async def refuse(self, error: CodriverError) -> None:
        """The error as a body with its status, or as an event where the stream has begun, as the path's API has it."""
        self.outcome = error
        refusal = self.refusal or refusal_for(self.path)
        if self.streaming:
            await self.end_stream(refusal.last_event(error))
        elif not self.status:
            await self.answer(refusal.body(error), error.status, [_JSON, *_hints(error, self)])

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        named = [*headers, (b"x-request-id", self.head.request_id)]
        if self.engine:
            # The name may come from a server upstream: nothing in it may end the header.
            named.append((b"x-codriver-engine", _UNFIT.sub("?", self.engine[:100]).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": named})


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {limit_bytes} bytes.")


def _hints(error: CodriverError, exchange: Exchange) -> Headers:
    """Headers that tell a client what to do next."""
    headers: Headers = []
    wait_s = error.retry_after_s if isinstance(error, (EngineError, RateLimited)) else None
    if wait_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(wait_s))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if exchange.allow:
        headers.append((b"allow", exchange.allow))
    if exchange.close:
        headers.append((b"connection", b"close"))
    return headers
