"""Connections to one server: made where none is at hand, kept for the next request, closed when idle too long.

TCP with happy eyeballs over all of the name's addresses (IPv6 and IPv4), TLS, Unix sockets. No proxy of the environment
is honoured: traffic goes to the configured server and nowhere else.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohappyeyeballs

from .http_answer import CannotConnect, ConnectTimedOut, Disconnected
from .http_client import Connection

_EYEBALLS_S = 0.25  # RFC 8305's advice
_NAME_KEPT_S = 60.0
_MOST_IDLE = 100


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is. ``origin`` ends without a slash; ``unix_socket`` replaces its host and port."""

    origin: str
    unix_socket: Path | None = None
    tls: ssl.SSLContext | None = None
    connect_s: float = 5.0
    keepalive_s: float = 60.0

    @property
    def host(self) -> str:
        """The host's name as DNS and TLS want it: without brackets, and in ASCII."""
        name = urlsplit(self.origin).hostname or ""
        return name if name.isascii() else name.encode("idna").decode()

    @property
    def port(self) -> int:
        parts = urlsplit(self.origin)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def authority(self) -> str:
        """For the Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if urlsplit(self.origin).port is None else f"{host}:{self.port}"

    def context(self) -> ssl.SSLContext | None:
        """The TLS context to use, or ``None`` for plain HTTP."""
        if not self.origin.startswith("https:"):
            return None
        if self.tls is not None:
            return self.tls
        verifying = ssl.create_default_context()
        verifying.set_alpn_protocols(["http/1.1"])
        return verifying

    def __str__(self) -> str:
        return str(self.unix_socket or self.origin)


class Pool:
    """Belongs to the event loop of its first ``take``."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._tls = place.context()
        self._names = _Names(place.host, place.port)
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def exchange(self, head: bytes, body: bytes | None, bodyless: bool = False) -> Connection:
        """Send a request; the connection on which the head of its answer has come.

        A kept connection that the server had closed meanwhile says nothing about the server: as long as not a byte
        came back, the request goes out again. Each such one leaves the pool, so this ends with a fresh one at the
        latest. Errors: those of :mod:`.http_answer`.
        """
        loop = self._loop = self._loop or asyncio.get_running_loop()
        while True:
            connection = self._kept(loop) or await self._connect(loop)
            try:
                await connection.ask(head, body, bodyless)
                return connection
            except Disconnected:
                connection.abort()
                if not connection.used or (connection.answer and connection.answer.heard):
                    raise
            except BaseException:
                connection.abort()
                raise

    def give_back(self, connection: Connection) -> None:
        if len(self._idle) >= _MOST_IDLE:
            connection.abort()
            return
        assert self._loop is not None
        connection.idle_since_s = self._loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._place.keepalive_s, self._close_old)

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def aclose(self) -> None:
        """Close all connections, those in use too."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._idle.clear()
        for connection in tuple(self._all):
            connection.abort()
        await asyncio.sleep(0)  # the transports close their sockets in the loop's next turn

    def _kept(self, loop: asyncio.AbstractEventLoop) -> Connection | None:
        """The connection used last: the others may grow old and go."""
        oldest_s = loop.time() - self._place.keepalive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.idle_since_s > oldest_s:
                return connection
            connection.abort()
        return None

    def _close_old(self) -> None:
        """One timer for all of them, which runs while there are any."""
        assert self._loop is not None
        loop = self._loop
        oldest_s = loop.time() - self._place.keepalive_s
        old = [connection for connection in self._idle if connection.idle_since_s <= oldest_s]
        self._idle = [connection for connection in self._idle if connection.idle_since_s > oldest_s]
        for connection in old:
            connection.abort()
        self._sweep = None
        if self._idle:
            self._sweep = loop.call_at(self._idle[0].idle_since_s + self._place.keepalive_s, self._close_old)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Connection:
        """A new connection, TLS included. Errors: :class:`CannotConnect`, :class:`ConnectTimedOut`."""
        place = self._place
        connection = Connection(self, loop)
        tls: dict[str, Any] = {"ssl": self._tls, "server_hostname": place.host} if self._tls else {}
        try:
            async with asyncio.timeout(place.connect_s):
                if place.unix_socket is not None:
                    await loop.create_unix_connection(lambda: connection, str(place.unix_socket), **tls)
                else:
                    sock = await self._reach()
                    await loop.create_connection(lambda: connection, sock=sock, **tls)
        except TimeoutError as error:
            # ETIMEDOUT from the kernel is the same class; our own has no number.
            if error.errno is not None:
                raise CannotConnect(str(error)) from error
            raise ConnectTimedOut(f"no connection within {place.connect_s:g} s") from error
        # RuntimeError: what uvloop raises for a socket that was closed under it.
        except (OSError, RuntimeError) as error:
            raise CannotConnect(str(error)) from error
        if connection.open:  # else it is gone already, and nobody would take it off again
            self._all.add(connection)
        return connection

    async def _reach(self) -> socket.socket:
        try:
            addresses = await self._names.addresses()
            sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_EYEBALLS_S)
        except OSError:
            self._names.forget()  # the server may have moved
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


class _Names:
    """The addresses of one name, asked for once at a time and kept for a minute.

    A lookup holds a thread until the resolver gives up, which on a dead link takes longer than a request lives: so
    those that wait share one, and it goes on when they leave.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._lookup: asyncio.Task[list[Any]] | None = None
        self._asked_s = 0.0

    async def addresses(self) -> list[Any]:
        """As ``getaddrinfo`` gives them. Errors: ``socket.gaierror``."""
        loop = asyncio.get_running_loop()
        lookup = self._lookup
        if lookup is None or (lookup.done() and loop.time() > self._asked_s + _NAME_KEPT_S):
            self._asked_s = loop.time()
            lookup = self._lookup = loop.create_task(self._ask(loop))
            lookup.add_done_callback(self._judge)
        return await asyncio.shield(lookup)

    async def _ask(self, loop: asyncio.AbstractEventLoop) -> list[Any]:
        return list(await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))

    def forget(self) -> None:
        """Ask again next time. A lookup under way goes on, and is shared still."""
        if self._lookup is not None and self._lookup.done():
            self._lookup = None

    def _judge(self, lookup: asyncio.Task[list[Any]]) -> None:
        """A failure is not kept. It is looked at here, because nobody may wait any more."""
        if lookup.cancelled() or lookup.exception() is not None:
            self._lookup = None
