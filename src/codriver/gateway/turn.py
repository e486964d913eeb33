"""One request on a connection and the answer to it: the ``receive`` and ``send`` of an ASGI application.

What is not said here is as in ASGI's HTTP specification, version 2.3. Rules: an answer of a known length leaves in one
write; an answer that was not ended never looks complete.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Sequence
from typing import Protocol

from .exchange import Message, Scope

STATUS_LINE = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_BODILESS = (204, 304)


class Wire(Protocol):
    """What a turn needs of its connection. ``fields`` are the header lines of every answer."""

    writable: asyncio.Event | None

    @property
    def fields(self) -> bytes: ...

    def write(self, data: bytes, last: bool = False) -> None: ...

    def read_on(self) -> None: ...

    def ended(self, turn: Turn) -> None: ...


class Turn:
    """``complete``: the request's body has come whole. ``over``: the answer is complete. ``gone``: the client left."""

    __slots__ = (
        "_chunked", "_continue", "_delivered", "_held", "_modern", "_owed", "_parts", "_waits", "_wire", "complete",
        "gone", "keep_alive", "over", "scope", "started", "unread",
    )  # fmt: skip

    def __init__(self, wire: Wire, scope: Scope, *, modern: bool, keep_alive: bool, expects_continue: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.unread = 0
        self.complete = self.gone = self.over = self.started = False
        self._wire = wire
        self._modern, self._continue = modern, expects_continue
        self._parts: list[bytes] = []
        self._delivered = False
        self._waits: asyncio.Future[None] | None = None
        self._chunked = False
        self._held = b""
        self._owed: int | None = None

    def more(self, data: bytes) -> None:
        """A piece of the body has come."""
        self._parts.append(data)
        self.unread += len(data)
        self.wake()

    def wake(self) -> None:
        """Let :meth:`receive` look again."""
        if self._waits is not None and not self._waits.done():
            self._waits.set_result(None)

    async def receive(self) -> Message:
        if self._continue and not self.started:
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._continue = False
        while not (self._parts or self.over or self.gone or (self.complete and not self._delivered)):
            self._wire.read_on()
            self._waits = asyncio.get_running_loop().create_future()
            await self._waits
        if self.over or self.gone:
            return {"type": "http.disconnect"}
        parts, self._parts, self.unread = self._parts, [], 0
        self._delivered = self.complete
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    async def send(self, message: Message) -> None:
        if self._wire.writable is not None:
            await self._wire.writable.wait()
        if self.gone:
            return
        if not self.started:
            self._start(message["status"], message.get("headers", ()))
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._chunked:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += b"0\r\n\r\n"
        elif self.scope["method"] == "HEAD":
            body = b""
        elif self._owed is not None:
            self._owed -= len(body)
            if self._owed < 0 or (self._owed and not more):
                raise RuntimeError("the answer is not as long as its content-length says")
        if self._held:
            body, self._held = self._held + body, b""
        if body or not more:
            self._wire.write(body, last=not more)
        if not more:
            self.over = True
            self.wake()
            self._wire.ended(self)

    def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.started = True
        lines = [STATUS_LINE[status], self._wire.fields]
        for name, value in headers:
            if name == b"content-length":
                self._owed = int(value)
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            if b"\n" in value or b"\r" in value:
                raise RuntimeError("a header's value has more than one line")
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._owed is None and status not in _BODILESS and self.scope["method"] != "HEAD":
            # An HTTP/1.0 client knows no chunks: the end of the connection ends its answer.
            self._chunked = self._modern
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if self._owed is None:
            self._wire.write(head)
        else:
            self._held = head
