"""A TCP proxy that gives real sockets the link of a recorded drive: rate, delay, queue and outages.

All connections share one radio: a lane up and a lane down. What it keeps to: no byte is lost, changed or reordered
within a connection; while the link is down nothing passes in either direction and nothing is reset (the far end is
merely silent), until an outage has lasted ``reset_after_s``, when the connections go as they do behind a mobile NAT.
A connection made during an outage is accepted here, because the kernel does that, but the far server hears of it only
when the link is back; the handshake costs one round trip. Packet loss, TCP's own congestion control on the radio and
header bytes are not modelled. Loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import Any

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import BadConfigValue, PortInUse

from .radio import Lane, Packet, TraceTime
from .traces import PACKET_BYTES, LinkTrace

_CONTROL_BYTES = 40  # a SYN, FIN or RST without payload
_READ_BYTES = 16 * 1024
_WINDOW_BYTES = 256 * 1024  # per connection and direction: passed by the radio, not yet taken by the receiver
_KERNEL_BYTES = 128 * 1024  # receive buffers: the queue is to be here, where it is counted
_Item = bytes | asyncio.Future[None] | None  # payload, a signal to answer, the end of the stream
_Address = tuple[int, tuple[Any, ...]]  # family and what it calls an address
_LINGER_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class ShaperSettings:
    """How the link behaves beside its trace."""

    base_delay_ms: float = 20.0
    """One-way propagation delay."""
    queue_bytes: int = 256 * 1024
    """Bound of the queue in front of the radio, per direction; senders wait beyond it."""
    reset_after_s: float | None = 30.0
    """An outage of this length resets what is open, as a NAT timeout does; None: never."""
    start_s: float = 0.0
    """Where in the trace to begin."""
    loop: bool = True
    """Begin again at the trace's end; otherwise the link stays down after it."""
    time_scale: float = 1.0
    """1 is real time. Other values run the trace, delay and reset time that much faster: for tests only."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the trace says of an instant. ``up`` is false within an outage of a second or more."""

    up: bool
    down_kbps: float
    up_kbps: float


@dataclass(frozen=True, slots=True)
class LinkSample:
    """The live link. ``t_s`` is trace time; ``capacity_kbps`` is that of the down direction; bytes count from start."""

    t_s: float
    capacity_kbps: float
    up: bool
    queued_bytes: int
    connections: int
    bytes_up: int
    bytes_down: int


class LinkShaper:
    """The proxy. ``start`` gives the port to connect to; ``upstream`` is where connections go on to."""

    def __init__(
        self,
        trace: LinkTrace,
        upstream: tuple[str, int],
        settings: ShaperSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings or ShaperSettings()
        _check(self.settings)
        self._trace = trace
        self._outages_ms = [(start * 1000, end * 1000) for start, end in trace.outages()]
        self._upstream = upstream
        self._address: _Address | None = None
        self._clock = clock
        self._forced: bool | None = None
        self._forced_ms = 0.0
        self._set_up_lanes()
        self._connections: dict[asyncio.Task[None], float] = {}  # when each was opened, trace time
        self._services: list[asyncio.Task[None]] = []
        self._listener: socket.socket | None = None

    async def start(self, port: int = 0) -> int:
        """Listen on 127.0.0.1 and let the trace begin. Returns the port.

        Raises ``PortInUse``, and ``BadConfigValue`` for an upstream host that has no address.
        """
        self._address = await _resolve(self._upstream)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by what is accepted.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            listener.close()
            raise PortInUse(f"Port {port} is in use; give the link another one, or 0 for any.", param="port") from error
        listener.listen(128)
        listener.setblocking(False)
        self._listener = listener
        self._set_up_lanes()
        loops = (self._accept(listener), self._lane_up.run(), self._lane_down.run(), self._expire())
        self._services = [asyncio.create_task(each) for each in loops]
        return int(listener.getsockname()[1])

    def force(self, up: bool | None) -> None:
        """False cuts the link now, True keeps it up at the trace's mean rate, None hands it back to the trace."""
        if up != self._forced:
            self._forced, self._forced_ms = up, self._time.now_ms()
            self._lane_up.force(up)
            self._lane_down.force(up)

    def state_at(self, t_s: float) -> LinkState:
        """The trace's own figures ``t_s`` seconds into it, whatever ``force`` says."""
        t_ms = t_s * 1000
        if not self.settings.loop and t_s >= self._trace.duration_s:
            return LinkState(False, 0.0, 0.0)
        down, up = (self._trace.capacity_bytes(way, t_ms) * 8 / self._trace.step_ms for way in ("down", "up"))
        return LinkState(self._outage_start_ms(t_ms) is None, down, up)

    def sample(self) -> LinkSample:
        """The link as it is now."""
        now_ms = self._time.now_ms()
        capacity_kbps = self.state_at(now_ms / 1000).down_kbps
        if self._forced is not None:
            capacity_kbps = self._trace.mean_kbps("down") if self._forced else 0.0
        return LinkSample(
            t_s=now_ms / 1000,
            capacity_kbps=capacity_kbps,
            up=self._down_since_ms(now_ms) is None,
            queued_bytes=self._lane_up.queued_bytes + self._lane_down.queued_bytes,
            connections=len(self._connections),
            bytes_up=self._lane_up.passed_bytes,
            bytes_down=self._lane_down.passed_bytes,
        )

    async def aclose(self) -> None:
        """Stop listening, drop every connection and wait for all tasks. May be called twice."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        tasks = self._services + list(self._connections)
        self._services = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _set_up_lanes(self) -> None:
        given = self.settings
        self._time = TraceTime(self._clock, given.start_s, given.time_scale)
        self._lane_up = Lane(self._trace, "up", self._time, loop=given.loop, queue_bytes=given.queue_bytes)
        self._lane_down = Lane(self._trace, "down", self._time, loop=given.loop, queue_bytes=given.queue_bytes)
        self._lane_up.force(self._forced)
        self._lane_down.force(self._forced)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError:
                # The client gave up, or the process is out of descriptors for now: neither ends the service.
                await self._clock.sleep(0.1)
                continue
            client.setblocking(False)
            self._carry(client)

    def _carry(self, client: socket.socket) -> None:
        assert self._address is not None
        delay_ms = self.settings.base_delay_ms
        pipes = (_Pipe(self._lane_up, self._time, delay_ms), _Pipe(self._lane_down, self._time, delay_ms))
        task = asyncio.create_task(_Connection(client, self._address, pipes).run())
        self._connections[task] = self._time.now_ms()
        task.add_done_callback(self._connections.pop)

    async def _expire(self) -> None:
        """Reset what an outage has held for ``reset_after_s``. Looks once a second: a NAT is no more exact."""
        limit_s = self.settings.reset_after_s
        if limit_s is None:
            return
        limit_ms = limit_s * 1000
        while True:
            await self._time.sleep_ms(min(1000.0, limit_ms / 4))
            now_ms = self._time.now_ms()
            since_ms = self._down_since_ms(now_ms)
            if since_ms is not None:
                for task, opened_ms in self._connections.items():
                    if now_ms - max(since_ms, opened_ms) >= limit_ms:
                        task.cancel()

    def _down_since_ms(self, now_ms: float) -> float | None:
        if self._forced is not None:
            return None if self._forced else self._forced_ms
        end_ms = self._trace.duration_s * 1000
        if not self.settings.loop and now_ms >= end_ms:
            return end_ms
        return self._outage_start_ms(now_ms)

    def _outage_start_ms(self, t_ms: float) -> float | None:
        """When the outage that holds ``t_ms`` began, on the same (unlooped) scale; None when there is none."""
        laps, within_ms = divmod(t_ms, self._trace.duration_s * 1000)
        at = bisect_right(self._outages_ms, (within_ms, math.inf)) - 1
        if at < 0 or within_ms >= self._outages_ms[at][1]:
            return None
        return laps * self._trace.duration_s * 1000 + self._outages_ms[at][0]


class _Gone(Exception):
    """One end of a connection is no more, and the other has been told."""


class _Pipe:
    """One direction of one connection: read, queue for the radio, wait out the delay, write."""

    def __init__(self, lane: Lane, time: TraceTime, delay_ms: float) -> None:
        self.finished = asyncio.Event()  # the end of the stream has been handed on
        self.broken = asyncio.Event()  # the sink takes no more
        self._lane = lane
        self._time = time
        self._delay_ms = delay_ms
        self._inbox: deque[tuple[float, _Item]] = deque()
        self._arrived = asyncio.Event()
        self._open_bytes = 0
        self._window = asyncio.Event()
        self._window.set()

    async def signal(self) -> None:
        """Send a packet without payload and wait until it is there."""
        there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send(there, _CONTROL_BYTES)
        await there

    async def read(self, source: socket.socket) -> None:
        """Send what ``source`` says until it ends its half, and wait until the end has arrived. OSError: a reset."""
        while True:
            await self._lane.room()
            await self._window.wait()
            data = await asyncio.get_running_loop().sock_recv(source, _READ_BYTES)
            if not data:
                self._send(None, _CONTROL_BYTES)
                await self.finished.wait()
                return
            for at in range(0, len(data), PACKET_BYTES):
                piece = data[at : at + PACKET_BYTES]
                self._send(piece, len(piece))

    async def deliver(self, sink: asyncio.Future[socket.socket]) -> None:
        """Hand on what arrives, until cancelled. Signals arrive even when the sink is not there yet, or no more."""
        while True:
            data, ended = await self._next()
            if data or ended:
                await self._write(await sink, data, ended)
            self._open_bytes -= len(data)
            if self._open_bytes < _WINDOW_BYTES:
                self._window.set()

    async def _write(self, sink: socket.socket, data: bytes, ended: bool) -> None:
        if self.broken.is_set():
            return
        try:
            await asyncio.get_running_loop().sock_sendall(sink, data)
            if ended:
                sink.shutdown(socket.SHUT_WR)
                self.finished.set()
        except OSError:
            self.broken.set()

    async def _next(self) -> tuple[bytes, bool]:
        """The payload that the delay has released, and whether the stream ends with it. Signals are answered here."""
        await self._arrived.wait()
        due_ms = self._inbox[0][0]
        if due_ms > self._time.now_ms():
            await self._time.sleep_ms(due_ms - self._time.now_ms())
        horizon_ms = max(self._time.now_ms(), due_ms)
        pieces, ended = [], False
        while self._inbox and self._inbox[0][0] <= horizon_ms:
            item = self._inbox.popleft()[1]
            if item is None:
                ended = True
            elif isinstance(item, bytes):
                pieces.append(item)
            elif not item.done():
                item.set_result(None)
        if not self._inbox:
            self._arrived.clear()
        return b"".join(pieces), ended

    def _send(self, item: _Item, cost_bytes: int) -> None:
        if isinstance(item, bytes):
            self._open_bytes += len(item)
            if self._open_bytes >= _WINDOW_BYTES:
                self._window.clear()
        self._lane.put(Packet(cost_bytes, lambda: self._passed(item)))

    def _passed(self, item: _Item) -> None:
        self._inbox.append((self._time.now_ms() + self._delay_ms, item))
        self._arrived.set()


class _Connection:
    """A client's connection and the one it becomes upstream. Ends when both halves have, or by a reset."""

    def __init__(self, client: socket.socket, address: _Address, pipes: tuple[_Pipe, _Pipe]) -> None:
        self._client = client
        self._server: socket.socket | None = None
        self._address = address
        self._up, self._down = pipes

    async def run(self) -> None:
        """Carry both halves to their ends. Cancelling it resets both sockets."""
        orderly = False
        try:
            _no_delay(self._client)
            async with asyncio.TaskGroup() as group:
                services, server = self._serve(group)
                await self._open(server)
                halves = [
                    group.create_task(self._half(self._up, self._client)),
                    group.create_task(self._half(self._down, server.result())),
                ]
                await asyncio.wait(halves)
                for service in services:
                    service.cancel()
            orderly = True
        except* _Gone:
            # Nothing more to say: the sockets are reset below.
            pass
        finally:
            for end in (self._client, self._server):
                if end is not None:
                    _close(end, orderly)

    def _serve(self, group: asyncio.TaskGroup) -> tuple[list[asyncio.Task[None]], asyncio.Future[socket.socket]]:
        """Start what runs as long as the connection: it carries the handshake too. The future is for the server."""
        server: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        client: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        client.set_result(self._client)
        work = (
            self._up.deliver(server),
            self._down.deliver(client),
            self._tell(self._up, self._down),
            self._tell(self._down, self._up),
        )
        return [group.create_task(each) for each in work], server

    async def _open(self, server: asyncio.Future[socket.socket]) -> None:
        """SYN up, connect, SYN-ACK down: a round trip, or as long as the link is away."""
        await self._up.signal()
        if _hung_up(self._client):
            raise _Gone
        loop = asyncio.get_running_loop()
        family, address = self._address
        try:
            self._server = socket.socket(family, socket.SOCK_STREAM)
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)
            self._server.setblocking(False)
            await loop.sock_connect(self._server, address)
        except OSError:
            await self._down.signal()
            raise _Gone from None
        _no_delay(self._server)
        server.set_result(self._server)
        await self._down.signal()

    @staticmethod
    async def _half(pipe: _Pipe, source: socket.socket) -> None:
        try:
            await pipe.read(source)
        except OSError:
            await pipe.signal()
            raise _Gone from None

    @staticmethod
    async def _tell(broken: _Pipe, back: _Pipe) -> None:
        """When a sink takes no more, its reset travels back over the link."""
        await broken.broken.wait()
        await back.signal()
        raise _Gone


async def _resolve(upstream: tuple[str, int]) -> _Address:
    host, port = upstream
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BadConfigValue(f"The link's upstream host {host!r} has no address.", param="upstream") from error
    family, _, _, _, address = found[0]
    return family, address


def _hung_up(client: socket.socket) -> bool:
    """Whether the client has closed without having said anything."""
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _no_delay(end: socket.socket) -> None:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _close(end: socket.socket, orderly: bool) -> None:
    if not orderly:
        # A lost connection must look lost: a plain close would look like a complete answer.
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    end.close()


def _check(settings: ShaperSettings) -> None:
    for name in ("base_delay_ms", "start_s"):
        if not getattr(settings, name) >= 0:
            raise BadConfigValue(f"{name} must be zero or more.", param=name)
    for name in ("queue_bytes", "time_scale", "reset_after_s"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise BadConfigValue(f"{name} must be more than zero.", param=name)
