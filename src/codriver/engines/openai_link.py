"""One HTTP exchange with a remote server: pool, TLS, deadline, and what the link's observer is told.

The rule kept here: every exchange ends - by its answer, by its deadline (one timer, however many reads), or by being
left, which closes the connection at once so that the server stops working.
"""

from __future__ import annotations

import asyncio
import functools
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import aiohttp
from yarl import URL

from codriver.core.clock import SYSTEM_CLOCK
from codriver.core.deadline import Deadline
from codriver.core.engine import LinkObserver
from codriver.core.errors import DeadlineExceeded, UpstreamMalformed

from . import openai_errors

T = TypeVar("T")
_DRAIN_S = 1.0
_ERROR_BODY_BYTES = 64 << 10
_CONNECTION_ERRORS = (aiohttp.ClientError, OSError, ssl.SSLError, TimeoutError)


class Expiry:
    """A deadline over many awaits for the price of one timer: when it fires, the await under way is cancelled.

    Never held open across a ``yield``: between two awaits it only remembers that it fired.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._fired = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | asyncio.Task[None] | None = None
        if math.isinf(deadline.at_s):
            return
        if deadline.clock is SYSTEM_CLOCK:
            self._timer = asyncio.get_running_loop().call_later(deadline.remaining_s(), self._fire)
        else:
            self._timer = asyncio.ensure_future(self._sleep(deadline))

    async def _sleep(self, deadline: Deadline) -> None:
        await deadline.clock.sleep(deadline.remaining_s())
        self._fire()

    def _fire(self) -> None:
        self._fired = True
        if self._task is not None:
            self._task.cancel()

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await ``work()``. Errors: :class:`DeadlineExceeded`."""
        if self.passed():
            raise DeadlineExceeded("The deadline passed before the answer was complete.")
        task = self._task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        try:
            return await work()
        except asyncio.CancelledError:
            # As asyncio.timeout does: a cancellation from outside, too, must still come through.
            if self.passed() and task.uncancel() <= cancelling:
                raise DeadlineExceeded("The deadline passed before the answer was complete.") from None
            raise
        finally:
            self._task = None

    def passed(self) -> bool:
        return self._fired

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


# Whether the connection that this task's request went over had served another one before.
_reused: ContextVar[bool] = ContextVar("reused", default=False)


class _Noting(aiohttp.BaseConnector):
    """Notes in ``_reused`` where each connection comes from. (aiohttp's tracing says it too, for 25 µs a request.)"""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: WeakSet[object] = WeakSet()

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        _reused.set(protocol in self._known)
        self._known.add(protocol)
        return connection


class _TcpConnector(_Noting, aiohttp.TCPConnector):
    pass


class _UnixConnector(_Noting, aiohttp.UnixConnector):
    pass


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is. ``origin`` ends without a slash; ``unix_socket`` replaces its host and port."""

    origin: str
    unix_socket: Path | None = None
    tls: ssl.SSLContext | None = None
    connect_s: float = 5.0
    keepalive_s: float = 60.0

    def connector(self, limit: int) -> aiohttp.BaseConnector:
        if self.unix_socket is not None:
            return _UnixConnector(str(self.unix_socket), limit=limit, keepalive_timeout=self.keepalive_s)
        return _TcpConnector(limit=limit, ssl=self.tls or True, keepalive_timeout=self.keepalive_s, ttl_dns_cache=60)

    def __str__(self) -> str:
        return str(self.unix_socket or self.origin)


class Exchange:
    """An answer that began with 2xx; its body is still coming."""

    def __init__(self, response: aiohttp.ClientResponse, expiry: Expiry, link: Link) -> None:
        self._content = response.content
        self._expiry = expiry
        self._link = link
        self.content_type = response.content_type

    async def whole(self, limit_bytes: int) -> bytes:
        """The body in one. Errors: as :meth:`read`, and :class:`UpstreamMalformed` when it is too large."""
        body = bytearray()
        while piece := await self.read():
            body += piece
            if len(body) > limit_bytes:
                raise UpstreamMalformed(
                    f"The answer of '{self._link.engine}' is larger than {limit_bytes} bytes.", engine=self._link.engine
                )
        return bytes(body)

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end. Errors: :class:`EngineDied`, :class:`DeadlineExceeded`."""
        try:
            piece = await self._expiry.wait(self._content.readany)
        except _CONNECTION_ERRORS as error:
            died = openai_errors.cut_short(self._link.engine)
            self._link.observer.failed(died.message)
            raise died from error
        if piece:
            self._link.observer.received(len(piece))
        return piece


class Link:
    """The connections to one server. ``headers`` go with every request (they hold the key: never printed)."""

    def __init__(self, engine: str, place: Place, headers: dict[str, str], observer: LinkObserver) -> None:
        self.engine = engine
        self.observer = observer
        self._place = place
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None
        self._drains: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def exchange(
        self, method: str, path: str, body: bytes | None, deadline: Deadline, headers: dict[str, str]
    ) -> AsyncIterator[Exchange]:
        """Send and give the answer; leaving before its end closes the connection.

        Errors: whatever :mod:`.openai_errors` makes of the answer or of its absence, and :class:`DeadlineExceeded`.
        """
        if deadline.expired():
            raise DeadlineExceeded("The deadline passed before the request was sent.")
        expiry = Expiry(deadline)
        response: aiohttp.ClientResponse | None = None
        self.observer.sent()
        try:
            response = await self._send(method, path, body, expiry, headers)
            self.observer.received(sum(len(name) + len(value) + 4 for name, value in response.raw_headers))
            if not 200 <= response.status < 300:
                raise await self._refused(response, expiry, deadline.clock.wall_s())
            yield Exchange(response, expiry, self)
            self._release(response)
            response = None
        finally:
            expiry.end()
            if response is not None:
                response.close()
            self.observer.settled()

    async def aclose(self) -> None:
        for drain in list(self._drains):
            drain.cancel()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _send(
        self, method: str, path: str, body: bytes | None, expiry: Expiry, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        session = self._open()
        ask = functools.partial(
            session.request,
            method,
            URL(self._place.origin + path, encoded=True),
            data=body,
            headers=headers,
            allow_redirects=False,
        )
        try:
            while True:
                _reused.set(False)
                try:
                    return await expiry.wait(ask)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    # A kept connection that the server had closed meanwhile says nothing about the server. Each such
                    # one leaves the pool, so this ends with a fresh connection at the latest.
                    if not _reused.get():
                        raise
        except _CONNECTION_ERRORS as error:
            mapped = openai_errors.connection_error(error, self.engine, str(self._place))
            if openai_errors.blames_link(error):
                self.observer.failed(mapped.message)
            raise mapped from error

    async def _refused(self, response: aiohttp.ClientResponse, expiry: Expiry, wall_s: float) -> Exception:
        body = b""
        try:
            while len(body) < _ERROR_BODY_BYTES and (piece := await expiry.wait(response.content.readany)):
                self.observer.received(len(piece))
                body += piece
        except _CONNECTION_ERRORS:
            pass  # the status line alone says enough
        return openai_errors.refusal(response.status, response.headers, body, self.engine, wall_s)

    def _open(self) -> aiohttp.ClientSession:
        """The session, made on first use: it belongs to the running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._place.connector(limit=0),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._place.connect_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent",),
                read_bufsize=1 << 18,
            )
        return self._session

    def _release(self, response: aiohttp.ClientResponse) -> None:
        """Give the connection back to the pool, where the body's end is still on its way in the background."""
        if response.content.at_eof():
            response.release()
            return
        drain = asyncio.ensure_future(_drain(response))
        self._drains.add(drain)
        drain.add_done_callback(self._drains.discard)


async def _drain(response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(_DRAIN_S):
            while await response.content.readany():
                pass
    except _CONNECTION_ERRORS:
        pass  # nobody waits for this connection; it is closed below
    finally:
        if response.content.at_eof() and response.content.exception() is None:
            response.release()
        else:
            response.close()
