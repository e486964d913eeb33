"""Listening: a socket, TLS where it is due, and a graceful end. Rule: plain HTTP only on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import ipaddress
import signal
import socket
import ssl
import sys
import time
from email.utils import formatdate

from codriver.core.errors import BadConfigValue, CertificateError, PortInUse

from .app import Gateway
from .config import GatewayConfig
from .connection import Connection, Shared
from .tls import server_context

_BACKLOG = 2048
_M_MMAP_THRESHOLD = -3  # malloc.h


class Listening:
    """A running server. ``port`` is the real one where 0 was asked for."""

    def __init__(self, app: Gateway, config: GatewayConfig, server: asyncio.Server, shared: Shared) -> None:
        self._app, self._config, self._server, self._shared = app, config, server, shared
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        self._stopped = False
        self.port: int = server.sockets[0].getsockname()[1]

    @property
    def urls(self) -> tuple[str, ...]:
        """The base addresses for an OpenAI client, without ``/v1``."""
        scheme = "https" if self._config.tls_cert else "http"
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return (f"{scheme}://{host}:{self.port}",)

    @property
    def open_connections(self) -> int:
        return len(self._shared.connections)

    async def drain(self) -> None:
        """Stop accepting, let open answers end for ``drain_s``, cut the rest with an error event, close everything."""
        self._server.close()
        await self._app.drain(self._config.drain_s)
        await self._close()

    async def aclose(self) -> None:
        """Stop now: open answers are cut with an error event."""
        self._server.close()
        await self._app.drain(0)
        await self._close()

    async def until_signal(self) -> None:
        """Run until SIGTERM or SIGINT, then drain; a second signal cuts at once.

        Meanwhile the process is taken to be a server: see :func:`_as_a_server`.
        """
        loop = asyncio.get_running_loop()
        asked = asyncio.Semaphore(0)
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, asked.release)
        as_before = _as_a_server()
        try:
            await asked.acquire()
            again = loop.create_task(asked.acquire())
            drained = loop.create_task(self.drain())
            await asyncio.wait({again, drained}, return_when=asyncio.FIRST_COMPLETED)
            again.cancel()
            if not drained.done():
                await self._app.drain(0)
            await drained
        finally:
            as_before.close()
            for number in signals:
                loop.remove_signal_handler(number)

    async def _close(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._sweeper.cancel()
        for connection in list(self._shared.connections):
            connection.shutdown()
        # What is written last must leave the buffers before the transports go.
        for _ in range(100):
            if not self._shared.connections:
                break
            await asyncio.sleep(0.01)
        for connection in list(self._shared.connections):
            connection.transport.abort()
        await self._server.wait_closed()

    async def _sweep(self) -> None:
        period_s = min(1.0, self._config.head_timeout_s / 4, self._config.idle_timeout_s / 4)
        loop = asyncio.get_running_loop()
        while True:
            self._shared.fields = _fields()
            await asyncio.sleep(period_s)
            now_s = loop.time()
            for connection in list(self._shared.connections):
                connection.sweep(now_s)


async def serve(app: Gateway, config: GatewayConfig) -> Listening:
    """Listen and answer in the running event loop; uvloop makes it faster, any loop will do.

    Errors: :class:`PortInUse`, :class:`CertificateError`, :class:`BadConfigValue`.
    """
    context = _context(config)
    bound = _bind(config)
    shared = Shared(app, config, _fields())
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(shared),
        sock=bound,
        ssl=context,
        backlog=_BACKLOG,
        ssl_handshake_timeout=config.head_timeout_s if context else None,
    )
    return Listening(app, config, server, shared)


def _as_a_server() -> contextlib.ExitStack:
    """Leave what is loaded out of garbage collection and collect young objects less often: 12 % less CPU a request.
    And let the loop not list every generator of every request, to close them at its end: each is closed by who opened
    it, and one that is not still by the loop when it is collected.

    Closing the stack puts back what was, but for :func:`_give_large_memory_back`.
    """
    _give_large_memory_back()
    before, first_step = gc.get_threshold(), sys.get_asyncgen_hooks().firstiter
    sys.set_asyncgen_hooks(firstiter=None)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    undo = contextlib.ExitStack()
    undo.callback(gc.unfreeze)
    undo.callback(gc.set_threshold, *before)
    undo.callback(lambda: sys.set_asyncgen_hooks(firstiter=first_step))
    return undo


def _give_large_memory_back() -> None:
    """Let glibc take each block of 128 KiB or more from the system and give it back when it is freed.

    It begins so, but takes larger and larger blocks for small ones with each that it frees, up to 32 MiB
    (``mallopt(3)``, M_MMAP_THRESHOLD). A flood of large bodies then comes to lie below blocks that stay, and up to 400
    MB of it with nothing in them. Bodies come in pieces of up to 256 kB, so a larger threshold does not help: with 4
    MiB 83 MB stayed. Other C libraries do without.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def _fields() -> bytes:
    return b"date: %b\r\nserver: codriver\r\n" % formatdate(time.time(), usegmt=True).encode()


def _context(config: GatewayConfig) -> ssl.SSLContext | None:
    if config.tls_cert and config.tls_key:
        return server_context(config.tls_cert, config.tls_key, config.tls_client_ca)
    if config.tls_cert or config.tls_key or config.tls_client_ca:
        raise BadConfigValue(
            "TLS needs both gateway.tls_cert and gateway.tls_key; `codriver keys init` makes them.",
            param="gateway.tls_cert" if not config.tls_cert else "gateway.tls_key",
        )
    if not is_loopback(config.host):
        raise CertificateError(
            f"Plain HTTP is only for loopback, and gateway.host is '{config.host}'. Make certificates with "
            "`codriver keys init` and set gateway.tls_cert and gateway.tls_key, or listen on 127.0.0.1.",
            param="gateway.host",
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(config: GatewayConfig) -> socket.socket:
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise BadConfigValue(
            f"gateway.host is '{config.host}', which is no address of this machine: {error}.", param="gateway.host"
        ) from error
    family, kind, proto, _, address = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0]
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise _bind_error(config, error) from error
    made.setblocking(False)
    return made


def _bind_error(config: GatewayConfig, error: OSError) -> PortInUse | BadConfigValue:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(
            f"Port {config.port} on {config.host} is in use: stop what listens there, or choose another with --port.",
            param="gateway.port",
        )
    if error.errno == errno.EACCES:
        return BadConfigValue(
            f"Port {config.port} may not be opened by this user: choose one above 1023 with --port.",
            param="gateway.port",
        )
    return BadConfigValue(
        f"gateway.host is '{config.host}', which this machine cannot listen on: {error.strerror}.", param="gateway.host"
    )
