"""The catalogue's client: one chat request on a connection of its own, and everything that came back.

It waits until the answer is over or ``limit_s`` has passed, and never longer; it can also leave in the middle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

from .fault_verdict import Ended, Heard


class Reader(Protocol):
    """What an answer is read from: a stream, or one that is read slowly."""

    async def readuntil(self, separator: bytes) -> bytes: ...

    async def readexactly(self, n: int) -> bytes: ...

    async def read(self, n: int) -> bytes: ...


class FaultClient:
    """``ask`` gives what was heard; ``leave_after_s``: close the connection after that time, whatever comes."""

    def __init__(self, port: int, limit_s: float, base: str = "/v1") -> None:
        self._port = port
        self._path = f"{base}/chat/completions"
        self._limit_s = limit_s

    async def ask(self, body: bytes, headers: Mapping[str, str], leave_after_s: float | None = None) -> Heard:
        began_s = time.monotonic()
        got = Got()
        ended: Ended = "not"
        try:
            async with asyncio.timeout(self._limit_s if leave_after_s is None else leave_after_s):
                ended = await self._exchange(body, headers, got)
        except TimeoutError:
            pass
        took_ms = 1e3 * (time.monotonic() - began_s)
        return Heard(got.status, got.content_type, bytes(got.body), ended, took_ms)

    async def _exchange(self, body: bytes, headers: Mapping[str, str], got: Got) -> Ended:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        except OSError:
            return "broken"
        try:
            fields = {"Host": f"127.0.0.1:{self._port}", "Content-Type": "application/json", **headers}
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            head = f"POST {self._path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await got.read(reader)
            return "clean"
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            return "broken"
        finally:
            writer.transport.abort()


class Got:
    """An answer as far as it has come. ``closes``: it ends with its connection, or asks for it to be closed."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = ""
        self.body = bytearray()
        self.closes = False

    async def read(self, reader: Reader) -> None:
        """Until the body's end. Errors: ``EOFError`` when the connection ends before, ``ValueError`` for no HTTP."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        self.content_type = fields.get("content-type", "").partition(";")[0].strip().lower()
        self.status = int(head[0].split()[1])
        self.closes = fields.get("connection", "").lower() == "close"
        if fields.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                await self._take(reader, size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
        elif "content-length" in fields:
            await self._take(reader, int(fields["content-length"]))
        else:
            self.closes = True
            while piece := await reader.read(1 << 16):
                self.body += piece

    async def _take(self, reader: Reader, size: int) -> None:
        while size:
            piece = await reader.read(min(size, 1 << 16))
            if not piece:
                raise EOFError
            self.body += piece
            size -= len(piece)
