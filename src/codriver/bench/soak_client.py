"""The soak's client: any API, on new and on kept connections, reading at once or slowly, and leaving when told to.

Nothing waits longer than ``limit_s``. A kept connection that the server closed before its answer's first byte is not an
answer: the request goes out again on a new one, as HTTP clients do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from .fault_client import Got, Reader
from .fault_verdict import Ended, Heard
from .soak_requests import Ask

_MOST_KEPT = 8
_SLOW_BYTES, _SLOW_S = 512, 0.02
_SLOW_BUFFER_BYTES = 4096
_Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class SoakClient:
    """``close`` ends the kept connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._kept: list[_Pipe] = []

    async def ask(self, ask: Ask, limit_s: float) -> Heard:
        """What was heard. An answer that the client itself left has ``ended`` "not"."""
        began_s = time.monotonic()
        got, ended = Got(), "not"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s if ask.leave_after_s is None else ask.leave_after_s):
                ended = await self._exchange(ask, got)
        took_ms = 1e3 * (time.monotonic() - began_s)
        return Heard(got.status, got.content_type, bytes(got.body), _ended(ended), took_ms)

    def close(self) -> None:
        for _, writer in self._kept:
            writer.transport.abort()
        self._kept.clear()

    async def _exchange(self, ask: Ask, got: Got) -> str:
        if ask.manner == "plain" and self._kept:
            ended = await self._on(self._kept.pop(0), ask, got)
            if ended == "clean" or got.status:
                return ended
        try:
            pipe = await self._connect(ask.manner == "slow")
        except OSError:
            return "broken"
        return await self._on(pipe, ask, got)

    async def _on(self, pipe: _Pipe, ask: Ask, got: Got) -> str:
        reader, writer = pipe
        keeps = False
        try:
            writer.write(self._head(ask) + ask.body)
            await got.read(_Slow(reader) if ask.manner == "slow" else reader)
            keeps = ask.manner == "plain" and not got.closes and len(self._kept) < _MOST_KEPT
            return "clean"
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            return "broken"
        finally:
            if keeps:
                self._kept.append(pipe)
            else:
                writer.transport.abort()

    async def _connect(self, slow: bool) -> _Pipe:
        if not slow:
            return await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
        except BaseException:
            connection.close()
            raise
        return await asyncio.open_connection(sock=connection, limit=_SLOW_BUFFER_BYTES)

    def _head(self, ask: Ask) -> bytes:
        fields = {"Host": f"127.0.0.1:{self._port}", "Content-Type": "application/json", **ask.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{ask.method} {ask.path} HTTP/1.1\r\n{lines}Content-Length: {len(ask.body)}\r\n\r\n".encode()


class _Slow:
    """A reader that takes a little at a time."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def readuntil(self, separator: bytes) -> bytes:
        return await self._reader.readuntil(separator)

    async def readexactly(self, n: int) -> bytes:
        return await self._reader.readexactly(n)

    async def read(self, n: int) -> bytes:
        await asyncio.sleep(_SLOW_S)
        return await self._reader.read(min(n, _SLOW_BYTES))


def _ended(word: str) -> Ended:
    return "clean" if word == "clean" else "broken" if word == "broken" else "not"
