"""One client's connection: HTTP/1.1 as httptools parses it, limits on the head, slow clients, and cancellation.

Requests are answered in their order, one at a time, each by a task that is cancelled when the client leaves. Rule: no
timer per request. One sweep over all connections (:meth:`Connection.sweep`) finds the slow and the idle ones.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

from codriver.core.errors import RequestError
from codriver.core.wire import encode

from .config import GatewayConfig
from .exchange import Receive, Scope, Send
from .turn import STATUS_LINE, Turn

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_LINGER_S = 2.0
# Of a request's body that nobody has read yet; above it the client is not read from.
_UNREAD_BYTES = 64 << 10
# Held until the loop's turn ends at the most, so that back-pressure still reaches the application.
_HELD_BYTES = 64 << 10


@dataclass
class Shared:
    """What the connections of one server have in common. ``fields``: the header lines of every answer."""

    app: Application
    limits: GatewayConfig
    fields: bytes
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class _TooMany(Exception):
    """Stops the parser: the rest of a flood of headers is not even read."""


class Connection(asyncio.Protocol):
    """Made by the listening socket for each client."""

    transport: asyncio.Transport

    def __init__(self, shared: Shared) -> None:
        self._shared, self._limits = shared, shared.limits
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        # What comes after a last request must not cost the answer to it.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.writable: asyncio.Event | None = None
        self._read_paused = False
        # What was written in this turn of the loop: every write to the transport costs a system call or a buffer.
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._flush_planned = False
        # Turns in their order: the one being answered, those behind it, and the one whose request is still coming.
        self._answering: Turn | None = None
        self._behind: deque[Turn] = deque()
        self._incoming: Turn | None = None
        self._task: asyncio.Task[None] | None = None
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        # Reading: the client owes us the rest of a request. Begun: the first byte of one has come.
        self._reading = self._in_head = True
        self._begun = self._refused = self._last = False
        self._head_bytes = 0
        self._since_s = 0.0
        self._closing_since_s: float | None = None

    # ------------------------------------------------------------ asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._since_s = self._loop.time()
        self._shared.connections.add(self)
        if len(self._shared.connections) > self._limits.max_connections:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        for turn in (self._answering, self._incoming):
            if turn is not None:
                turn.gone = True
                turn.wake()
        self._behind.clear()
        self.resume_writing()
        if self._task is not None:
            self._task.cancel()
        # The parser and the turns refer to this object: without them it goes at once, and what it holds with it, not
        # when the collector comes round. A flood of headers would fill the memory until then.
        self._parser = self._incoming = self._answering = None

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # A client that offers HTTP/2 or WebSocket is answered over HTTP/1.1.
        except httptools.HttpParserError:
            self._refuse(400, "This is not a valid HTTP/1.1 request.")
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_limit_bytes:
                self._refuse_head()

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if writable is not None:
            writable.set()

    # ------------------------------------------------------------ httptools' callbacks

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", []
        self._expects_continue = False
        self._reading = self._in_head = self._begun = True
        self._head_bytes = 0
        self._since_s = self._loop.time()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))
        if len(self._headers) > self._limits.head_limit_count:
            self._refuse_head()
            raise _TooMany

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._in_head = False
        size = len(self._url) + sum([len(name) + len(value) for name, value in self._headers])
        if size > self._limits.head_limit_bytes or len(self._headers) > self._limits.head_limit_count:
            self._refuse_head()
            return
        version = self._parser.get_http_version()
        turn = Turn(
            self,
            self._scope(version),
            modern=version == "1.1",
            keep_alive=version == "1.1" and self._parser.should_keep_alive(),
            expects_continue=self._expects_continue,
        )
        self._incoming = turn
        if self._answering is None:
            self._answer(turn)
        else:
            self._pause_reading()
            self._behind.append(turn)

    def on_body(self, body: bytes) -> None:
        turn = self._incoming
        if turn is not None and not turn.over and not self._refused:
            turn.more(body)
            if turn.unread > _UNREAD_BYTES:
                self._pause_reading()

    def on_message_complete(self) -> None:
        self._reading = False
        turn, self._incoming = self._incoming, None
        if turn is not None and not self._refused:
            turn.complete = True
            turn.wake()
            if turn.over:
                self._since_s = self._loop.time()

    # ------------------------------------------------------------ turns

    @property
    def fields(self) -> bytes:
        return self._shared.fields

    def read_on(self) -> None:
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()

    def write(self, data: bytes, last: bool = False) -> None:
        """Written once a turn of the loop, or at once what is the ``last`` of an answer or would hold much memory."""
        self._held.append(data)
        self._held_bytes += len(data)
        if last or self._held_bytes > _HELD_BYTES:
            self._flush()
        elif not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._turn_ended)

    def ended(self, turn: Turn) -> None:
        """The answer of the turn in hand is complete: the next, or wait for one."""
        self._answering = None
        if self._last or not turn.keep_alive:
            self._close()
        elif not self.transport.is_closing():
            if not self._reading:
                self._since_s = self._loop.time()
            self.read_on()
            if self._behind:
                self._answer(self._behind.popleft())

    def shutdown(self) -> None:
        """Close once the answer in hand is complete."""
        self._last = True
        if self._answering is None:
            self._close()
        else:
            self._answering.keep_alive = False

    def sweep(self, now_s: float) -> None:
        """Close the connection if its client takes too long to send a request, or to leave after a refusal."""
        age_s = now_s - self._since_s
        limits = self._limits
        if self._refused and self._answering is None and age_s > _LINGER_S:
            self.transport.abort()
        elif self.transport.is_closing():
            # Closed, but its client does not read what is still to be written.
            self._closing_since_s = self._closing_since_s or now_s
            if now_s - self._closing_since_s > _LINGER_S:
                self.transport.abort()
        elif not self._reading:
            if self._answering is None and age_s > limits.idle_timeout_s:
                self.transport.close()
        elif self._in_head and age_s > limits.head_timeout_s:
            if self._begun:
                self._refuse(408, f"The request's headers were not complete within {limits.head_timeout_s:g} seconds.")
            else:
                self.transport.close()
        elif not self._in_head and age_s > limits.head_timeout_s + limits.body_timeout_s + 1.0:
            # The application has answered already; this is a client that goes on sending.
            self.transport.abort()

    def _scope(self, version: str) -> Scope:
        url = httptools.parse_url(self._url)
        path = (url.path or b"/").decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        return {
            "type": "http",
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "path": path,
            "query_string": url.query or b"",
            "headers": self._headers,
        }

    def _answer(self, turn: Turn) -> None:
        self._answering = turn
        self._task = task = self._loop.create_task(self._run(turn))
        self._shared.tasks.add(task)

    async def _run(self, turn: Turn) -> None:
        # A connection may begin its next turn before this task has ended.
        task: Any = asyncio.current_task(self._loop)
        try:
            await self._shared.app(turn.scope, turn.receive, turn.send)
        finally:
            self._shared.tasks.discard(task)
            if self._task is task:
                self._task = None
            if not turn.over:
                self._close()

    def _turn_ended(self) -> None:
        self._flush_planned = False
        self._flush()

    def _flush(self) -> None:
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            self.transport.write(held[0] if len(held) == 1 else b"".join(held))

    def _close(self) -> None:
        self._flush()
        self.transport.close()

    def _pause_reading(self) -> None:
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    # ------------------------------------------------------------ refusing

    def _refuse_head(self) -> None:
        limits = self._limits
        self._refuse(
            431, f"The headers are larger than {limits.head_limit_bytes} bytes or more than {limits.head_limit_count}."
        )

    def _refuse(self, status: int, sentence: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._in_head = self._reading = False
        self._since_s = self._loop.time()
        turn = self._answering
        if turn is not None and (turn.complete or turn.started):
            # What came after a good request is at fault: the answer to that one still leaves.
            turn.keep_alive = False
            if not turn.complete:
                self._close()
            return
        if turn is not None and self._task is not None:
            turn.gone = turn.over = True
            self._answering = None
            self._task.cancel()
        body = encode(RequestError(sentence).body())
        fields = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.write(STATUS_LINE[status] + fields + body, last=True)
        # Closing while the client still sends would reset the connection, and the answer would be lost with it: what
        # comes is dropped until the client closes or the sweep does.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
