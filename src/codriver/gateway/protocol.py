"""uvicorn's HTTP protocol with what it leaves out: limits on the head, slow clients, errors as JSON, and cancellation.

Rule: no timer per request. One sweep over all connections (:meth:`GuardedProtocol.sweep`) finds the slow ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from codriver.core.errors import RequestError
from codriver.core.wire import encode

from .config import GatewayConfig
from .cork import Cork
from .exchange import Receive, Scope, Send

_LINGER_S = 2.0


class GuardedProtocol(HttpToolsProtocol):
    """One connection. When it is lost, the task that answers on it is cancelled."""

    def __init__(self, config: Config, state: ServerState, limits: GatewayConfig) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self._limits = limits
        self._gateway: Any = self.app
        self.app = self._run
        self._task: asyncio.Task[Any] | None = None
        # Reading: the client owes us the rest of a request. Begun: the first byte of one has come.
        self._reading = self._in_head = self._begun = False
        self._refused = False
        self._closing_since_s: float | None = None
        self._head_bytes = 0
        self._since_s = 0.0

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._task = asyncio.current_task()
        try:
            await self._gateway(scope, receive, send)
        finally:
            self._task = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._cork = Cork(transport, self.loop)  # type: ignore[arg-type]
        super().connection_made(self._cork)  # type: ignore[arg-type]
        self._reading = self._in_head = True
        self._since_s = self.loop.time()
        if len(self.connections) > self._limits.max_connections:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_limit_bytes:
                self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = self._in_head = self._begun = True
        self._head_bytes = 0
        self._since_s = self.loop.time()

    def on_response_complete(self) -> None:
        self._cork.flush()
        super().on_response_complete()

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._in_head = False
        size = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
        if size > self._limits.head_limit_bytes or len(self.headers) > self._limits.head_limit_count:
            self._refuse_head()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None and not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading = False
        if self.cycle is not None and not self._refused:
            super().on_message_complete()

    def sweep(self, now_s: float) -> None:
        """Close the connection if its client takes too long to send a request, or to leave after a refusal."""
        age_s = now_s - self._since_s
        head_s = self._limits.head_timeout_s
        if self._refused and age_s > _LINGER_S:
            self.transport.abort()
        elif self.transport.is_closing():
            # Closed, but its client does not read what is still to be written.
            self._closing_since_s = self._closing_since_s or now_s
            if now_s - self._closing_since_s > _LINGER_S:
                self.transport.abort()
        elif not self._reading:
            return
        elif self._in_head and age_s > head_s:
            if self._begun:
                self._refuse(408, f"The request's headers were not complete within {head_s:g} seconds.")
            else:
                self.transport.close()
        elif not self._in_head and age_s > head_s + self._limits.body_timeout_s + 1.0:
            # The application has answered already; this is a client that goes on sending.
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is no HTTP."""
        self._refuse(400, "This is not a valid HTTP/1.1 request.")

    def _unsupported_upgrade_warning(self) -> None:
        """A client that offers HTTP/2 or WebSocket is answered over HTTP/1.1; nothing to warn of."""

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
        self._since_s = self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        body = encode(RequestError(sentence).body())
        fields = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + fields + body)
        # Closing while the client still sends would reset the connection, and the answer would be lost with it: what
        # comes is dropped until the client closes or the sweep does.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
