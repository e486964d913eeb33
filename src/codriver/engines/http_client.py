"""One HTTP/1.1 connection to a server: an asyncio protocol, one exchange at a time.

Limits: no pipelining, no request body that streams, no upgrade, no redirects, no cookies. The rules kept here: a reader
that stops stops the server too (reading is paused above ``HIGH_WATER_BYTES``), and a connection that said anything it
was not asked for is not used again.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from .http_answer import Answer, Disconnected, HttpFailure, NotHttp

HIGH_WATER_BYTES = 256 << 10
# Up to this size a body is copied behind its head, for one write instead of two.
_ONE_WRITE_BYTES = 64 << 10
_DRAIN_S = 1.0


class Owner(Protocol):
    """Who keeps connections: told when one may serve again, and when one is gone."""

    def give_back(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """``ask``, then ``read`` until it gives nothing, then ``release``; or ``abort`` at any time.

    ``answer`` is that of the last ``ask``. ``used``: another exchange went before it here.
    """

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: Answer | None = None
        self.used = self.open = False
        self.idle_since_s = 0.0
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drain: asyncio.TimerHandle | None = None
        self._error: HttpFailure | None = None
        self._busy = self._paused = False

    async def ask(self, head: bytes, body: bytes | None, bodyless: bool = False) -> Answer:
        """Send a request; the answer, whose head has come. ``bodyless``: it has no body whatever it says (HEAD).

        Errors: :class:`Disconnected`, :class:`NotHttp`.
        """
        answer = self.answer = Answer(bodyless)
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Disconnected("closed before the request was sent")
        self._busy = True
        if body is None:
            transport.write(head)
        elif len(body) <= _ONE_WRITE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        while not answer.head_done:
            await self._wait()
        return answer

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end. Errors: :class:`Disconnected`, :class:`NotHttp`."""
        assert self.answer is not None
        while not self.answer.held_bytes:
            if self.answer.complete:
                return b""
            await self._wait()
        piece = self.answer.take()
        self._resume()
        return piece

    def release(self) -> None:
        """Done with the answer. What is left of its body is read away in the background, for a second at most."""
        assert self.answer is not None
        self.answer.take()
        if self.answer.complete or self._error is not None:
            self._end()
            return
        self.answer.discard = True
        self._drain = self._loop.call_later(_DRAIN_S, self.abort)
        self._resume()

    def abort(self) -> None:
        """Close at once: the server sees a disconnect."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _end(self) -> None:
        """The exchange is over: back to the owner, or closed where the connection cannot be trusted with another."""
        self._stop_drain()
        answer, transport = self.answer, self._transport
        trusted = self.open and answer is not None and answer.keep and not answer.spoiled
        # Nothing may be left to write: a server may answer before it has read all of the request.
        if not trusted or transport is None or transport.get_write_buffer_size():
            self.abort()
            return
        self._resume()
        self._busy = False
        self.used = True
        self._owner.give_back(self)

    def _stop_drain(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self.open = True

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if not self._busy or answer is None or self._error is not None:  # nothing was asked, or nobody listens any more
            self.abort()
            return
        try:
            answer.feed(data)
        except NotHttp as error:
            self._error = error
            self.abort()
        if answer.complete and self._drain is not None:
            self._end()
        elif answer.held_bytes > HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """After the end of input, too: the default ``eof_received`` lets the transport close itself."""
        in_order = exc is None and self.open  # and not by us
        self._transport = None
        self.open = False
        self._stop_drain()
        complete = self.answer is not None and self.answer.close(in_order)
        if not complete and self._error is None:
            self._error = Disconnected("closed before the answer was complete")
            self._error.__cause__ = exc
        self._wake()
        self._owner.forget(self)
