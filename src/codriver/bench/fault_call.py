"""One request at the fault server, and the ways to answer it: in order, in part, late, broken, or not at all.

Nothing here waits longer than the connection lives: what hangs, hangs until the other side has closed or the server
ends. While the scenario's link is down no byte moves in either direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .fault_answers import RightAnswer

JSON_TYPE = "application/json"
STREAM_TYPE = "text/event-stream"


@dataclass
class Scene:
    """What the server knows of one case asked of one system: the calls that reached it, and the link to it.

    ``working`` counts the calls being answered now; ``idle`` is set while there is none.
    """

    first: int = 0
    second: int = 0
    working: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    link: asyncio.Event = field(default_factory=asyncio.Event)
    toggling: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.link.set()
        self.idle.set()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        self.working += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.working -= 1
            if not self.working:
                self.idle.set()


@dataclass(frozen=True)
class Tempo:
    """The server's times in seconds: between two pieces, before a late first token, between the drops of a slow drip,
    and of a gap in a flapping link. ``drip_limit_s``: when a drip that nobody closes is given up.
    """

    piece_s: float = 0.01
    late_s: float = 3.0
    drip_s: float = 0.35
    gap_s: float = 2.0
    drip_limit_s: float = 20.0

    def times(self, factor: float) -> Tempo:
        values = (self.piece_s, self.late_s, self.drip_s, self.gap_s, self.drip_limit_s)
        return Tempo(*(value * factor for value in values))


class Gone(Exception):
    """The other side closed the connection."""


class Call:
    """``number`` counts the calls of this scene and engine from 1. ``right`` is the right answer to the request."""

    def __init__(
        self, body: dict[str, Any], number: int, scene: Scene, tempo: Tempo, pipe: tuple[Any, asyncio.StreamWriter]
    ) -> None:
        self.right = RightAnswer.to(body)
        self.streamed = bool(body.get("stream"))
        self.number = number
        self.scene = scene
        self.link = scene.link
        self.tempo = tempo
        self.keeps = False
        self._reader: asyncio.StreamReader = pipe[0]
        self._writer = pipe[1]
        self._chunked = False

    async def raw(self, data: bytes) -> None:
        await self._open()
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Gone from error

    async def head(
        self, status: str = "200 OK", kind: str = "", fields: Mapping[str, str] | None = None, chunked: bool = True
    ) -> None:
        """The answer's head; without ``chunked`` the body ends with the connection."""
        self._chunked = chunked
        kind = kind or (STREAM_TYPE if self.streamed else JSON_TYPE)
        framing = {"transfer-encoding": "chunked"} if chunked else {"connection": "close"}
        lines = {"content-type": kind, **framing, **(fields or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.raw(f"HTTP/1.1 {status}\r\n{head}\r\n".encode())

    async def part(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def event(self, payload: bytes) -> None:
        await self.part(b"data: " + payload + b"\n\n")
        await self.pause(self.tempo.piece_s)

    async def events(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            await self.event(payload)

    async def end(self, done: bool = True) -> None:
        """The body's proper end, after ``[DONE]`` in a stream. A connection with framing is kept."""
        if done and self.streamed:
            await self.part(b"data: [DONE]\n\n")
        if self._chunked:
            await self.raw(b"0\r\n\r\n")
            self.keeps = True

    async def whole(self, body: Any, status: str = "200 OK", fields: Mapping[str, str] | None = None) -> None:
        """A JSON body in one, with its length."""
        data = msgspec.json.encode(body)
        lines = {"content-type": JSON_TYPE, "content-length": str(len(data)), **(fields or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.raw(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + data)
        self.keeps = True

    async def answer(self) -> None:
        """The right answer, in order."""
        if self.streamed:
            await self.head()
            await self.events(self.right.events())
            await self.end()
        else:
            await self.whole(self.right.whole())

    async def begin(self, count: int, **head: Any) -> list[bytes]:
        """The head and the first ``count`` pieces of a stream, or the same share of a body; the events still to come.

        Of a body that is not streamed nothing is left.
        """
        await self.head(**head)
        if not self.streamed:
            data = msgspec.json.encode(self.right.whole())
            await self.part(data[: len(data) * count // (len(self.right.pieces) + 1)])
            return []
        events = self.right.events()
        await self.events(events[: count + 1])
        return events[count + 1 :]

    async def pause(self, seconds: float) -> None:
        """Wait, but not for somebody who has gone."""
        end_s = time.monotonic() + seconds
        if self._writer.is_closing() or self._reader.at_eof():
            raise Gone
        while (left_s := end_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, 0.05))
            if self._writer.is_closing() or self._reader.at_eof():
                raise Gone

    async def hang(self) -> None:
        """Say nothing more until the other side has closed."""
        while await self._reader.read(1 << 16):
            pass
        raise Gone

    def reset(self) -> None:
        """Close with a TCP reset, as a server that crashed does."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _open(self) -> None:
        """Wait for the link, but not for somebody who has gone."""
        while not self.link.is_set():
            await self.pause(0.02)
