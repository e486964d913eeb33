"""The fault server: one process on loopback in which the model's name selects what goes wrong.

Addresses are ``/SYSTEM/SCENARIO/first|second/v1/…``, so that calls are counted apart and a link can be down for one
scenario alone. Beside the plain port there are one with an expired certificate, one that accepts and never reads, one
whose backlog is full, and a port on which nobody listens. Any other path (a probe) is answered at once, where the
link is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import msgspec

from .fault_call import Call, Gone, Scene, Tempo
from .fault_cases import BEHAVIOURS, HEALTHY, Behaviour, Place, Scenario

_TLS_HELLO = b"\x16"
_STOP_S = 1.0


class FaultServer:
    """``async with``; then ``url`` gives the addresses of a scenario's engines, ``scene`` what came to them."""

    def __init__(self, tempo: Tempo, expired: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._tempo = tempo
        self._expired = expired
        self._port = port
        self._scenes: dict[tuple[str, str], Scene] = {}
        self._ports: dict[Place, int] = {}
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._deaf: list[Any] = []

    async def __aenter__(self) -> FaultServer:
        self._ports["http"] = self._ports["tls-none"] = await self._listen(self._serve, port=self._port)
        self._ports["deaf"] = await self._listen(self._never_read, small=True)
        if self._expired is not None:
            self._ports["tls-expired"] = await self._listen(self._serve, self._expired)
        self._ports["refused"] = self._hold_port()
        self._ports["black-hole"] = self._fill_backlog()
        return self

    async def __aexit__(self, *_: object) -> None:
        for scene in self._scenes.values():
            if scene.toggling is not None:
                scene.toggling.cancel()
        for server in self._servers:
            server.close()
        for transport in self._deaf:
            transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_S)
        for held in self._sockets:
            held.close()

    def scene(self, system: str, scenario: Scenario) -> Scene:
        known = self._scenes.get((system, scenario.key))
        if known is None:
            known = self._scenes[system, scenario.key] = Scene()
            if scenario.fault.name == "link down before":
                known.link.clear()
        return known

    def url(self, system: str, scenario: Scenario, engine: str) -> str:
        """The base address of the ``first`` or the ``second`` engine; its scene is made with it."""
        self.scene(system, scenario)
        place: Place = scenario.fault.place if engine == "first" else "http"
        host = "nobody.invalid" if place == "dns" else "127.0.0.1"
        scheme = "https" if place.startswith("tls") else "http"
        port = self._ports["http" if place == "dns" else place]
        return f"{scheme}://{host}:{port}/{system}/{scenario.key}/{engine}/v1"

    # ------------------------------------------------------------ listening

    async def _listen(self, handler: Any, tls: ssl.SSLContext | None = None, small: bool = False, port: int = 0) -> int:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if small:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", port))
        server = await asyncio.start_server(handler, sock=listening, ssl=tls, limit=16 << 20)
        self._servers.append(server)
        bound: int = listening.getsockname()[1]
        return bound

    def _hold_port(self) -> int:
        """A port that nobody else can take and on which nobody listens: a connection is refused."""
        held = socket.socket()
        held.bind(("127.0.0.1", 0))
        self._sockets.append(held)
        port: int = held.getsockname()[1]
        return port

    def _fill_backlog(self) -> int:
        """A port whose queue of connections is full: the kernel drops what asks for one more."""
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        self._sockets.append(listening)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listening.getsockname())
            self._sockets.append(filler)
        port: int = listening.getsockname()[1]
        return port

    # ------------------------------------------------------------ answering

    async def _never_read(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport: Any = writer.transport
        transport.pause_reading()
        # No task waits here: until the server ends, this connection is nobody's business.
        self._deaf.append(transport)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep_task()
        quiet = (OSError, EOFError, ValueError, asyncio.LimitOverrunError, Gone, asyncio.CancelledError)
        with contextlib.suppress(*quiet):
            while await self._one(reader, writer):
                pass
        writer.close()

    def _keep_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection serves another."""
        first = await reader.readexactly(1)
        if first == _TLS_HELLO:
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return False
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        body = await _read_body(reader, head)
        target = head.split(" ", 2)[1].strip("/").split("/")
        scene = self._scenes.get((target[0], target[1])) if len(target) > 2 else None
        if scene is None or not head.startswith("POST"):
            return await self._probe(scene, target, reader, writer)
        is_first = target[2] == "first"
        number = self._count(scene, is_first)
        call = Call(body, number, scene, self._tempo, (reader, writer))
        if not is_first:
            call.link = _up()
        with scene.at_work():
            await self._behaviour(body, call)(call)
        return call.keeps

    def _behaviour(self, body: dict[str, Any], call: Call) -> Behaviour:
        """What is done with a call. A server that chooses otherwise may also change the call."""
        return BEHAVIOURS.get(str(body.get("model", "")), BEHAVIOURS[HEALTHY])

    @staticmethod
    def _count(scene: Scene, is_first: bool) -> int:
        if is_first:
            scene.first += 1
            return scene.first
        scene.second += 1
        return scene.second

    async def _probe(
        self, scene: Scene | None, target: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if scene is not None and target[2] == "first":
            await Call({}, 0, scene, self._tempo, (reader, writer)).whole({"status": "ok"})
        else:
            await Call({}, 0, Scene(), self._tempo, (reader, writer)).whole({"status": "ok"})
        return True


async def _read_body(reader: asyncio.StreamReader, head: str) -> dict[str, Any]:
    fields = {name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in head.split("\r\n"))}
    data = b""
    if fields.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            data += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif "content-length" in fields:
        data = await reader.readexactly(int(fields["content-length"]))
    if not data:
        return {}
    decoded = msgspec.json.decode(data)
    return decoded if isinstance(decoded, dict) else {}


def _up() -> asyncio.Event:
    link = asyncio.Event()
    link.set()
    return link
