"""The link on real sockets: bytes, order, rate, outages, resets. Time is injected except where accuracy is measured."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from codriver.bench import traces
from codriver.bench.radio import Lane, Packet, TraceTime
from codriver.bench.shaper import LinkShaper, ShaperSettings
from codriver.core.clock import SYSTEM_CLOCK, Clock, ManualClock
from codriver.core.errors import BadConfigValue, PortInUse

T = TypeVar("T")
TUNNEL = traces.tunnel(before_s=2.0, dark_s=4.0, after_s=10.0, kbps=8000.0)


class Upstream:
    """A real server that echoes, or, when told ``send <n>``, answers with n bytes."""

    def __init__(self) -> None:
        self.accepted = 0
        self.received = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            while data := await reader.read(65536):
                self.received += data
                if data.startswith(b"send "):
                    data = bytes(int(data.removeprefix(b"send ").split()[0]))
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def linked(
    trace: traces.LinkTrace, settings: ShaperSettings | None = None, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[tuple[LinkShaper, int, Upstream]]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    shaper = LinkShaper(trace, ("127.0.0.1", server.sockets[0].getsockname()[1]), settings, clock)
    port = await shaper.start()
    try:
        yield shaper, port, upstream
    finally:
        await shaper.aclose()
        server.close()


async def later(clock: ManualClock, seconds: float) -> None:
    """Time passes in small steps, because what goes through real sockets takes a few turns of the loop."""
    end_s = clock.monotonic_s() + seconds
    while clock.monotonic_s() < end_s:
        await clock.advance(min(0.05, end_s - clock.monotonic_s()))


async def passing(clock: ManualClock, work: Awaitable[T], limit_s: float = 60.0, step_s: float = 0.01) -> T:
    """Let the clock run until ``work`` is done."""
    task = asyncio.ensure_future(work)
    for _ in range(int(limit_s / step_s)):
        if task.done():
            break
        await clock.advance(step_s)
    task.cancel()
    return await task


async def test_every_byte_arrives_in_order_over_many_connections() -> None:
    clock = ManualClock()
    trace = traces.load("ATT-LTE-driving-2016")
    async with linked(trace, ShaperSettings(queue_bytes=20_000), clock) as (shaper, port, _):

        async def echo(seed: int) -> bool:
            rng = random.Random(seed)
            payload = rng.randbytes(rng.choice([1, 1499, 1500, 1501, 60_000]))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            at = 0
            while at < len(payload):
                size = rng.choice([1, 7, 1500, 20_000])
                writer.write(payload[at : at + size])
                at += size
                await asyncio.sleep(0)
            writer.write_eof()
            back = await reader.read(-1)
            writer.close()
            return back == payload

        assert all(await passing(clock, asyncio.gather(*(echo(seed) for seed in range(12))), limit_s=20))
        await later(clock, 1.0)
        assert shaper.sample().connections == 0
        assert shaper.sample().queued_bytes == 0


async def test_a_round_trip_costs_handshake_and_both_delays() -> None:
    clock = ManualClock()
    async with linked(traces.ideal(), ShaperSettings(base_delay_ms=50.0), clock) as (_, port, _upstream):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        began_s = clock.monotonic_s()
        assert await passing(clock, reader.read(5), step_s=0.001) == b"hello"
        assert 0.200 <= clock.monotonic_s() - began_s <= 0.215
        began_s = clock.monotonic_s()
        writer.write(b"again")
        assert await passing(clock, reader.read(5), step_s=0.001) == b"again"
        assert 0.100 <= clock.monotonic_s() - began_s <= 0.110
        writer.close()


async def test_in_an_outage_connections_stall_and_then_go_on() -> None:
    clock = ManualClock()
    async with linked(TUNNEL, clock=clock) as (shaper, port, upstream):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"before")
        assert await passing(clock, reader.readexactly(6)) == b"before"
        await later(clock, 2.2 - shaper.sample().t_s)
        writer.write(b"within")
        answer = asyncio.ensure_future(reader.readexactly(6))
        await later(clock, 3.5)
        assert not shaper.sample().up
        assert not answer.done()
        assert upstream.received == b"before"
        assert await passing(clock, answer) == b"within"
        assert shaper.sample().t_s == pytest.approx(6.05, abs=0.05)
        assert shaper.sample().up
        writer.close()


async def test_a_connect_in_an_outage_hangs_until_the_link_is_back() -> None:
    clock = ManualClock()
    async with linked(TUNNEL, ShaperSettings(start_s=3.0), clock) as (shaper, port, upstream):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"anyone?")
        await later(clock, 2.9)
        assert upstream.accepted == 0
        assert shaper.sample().connections == 1
        assert await passing(clock, reader.readexactly(7)) == b"anyone?"
        assert upstream.accepted == 1
        writer.close()


async def test_a_client_that_gave_up_in_the_outage_is_never_announced() -> None:
    clock = ManualClock()
    async with linked(TUNNEL, ShaperSettings(start_s=3.0), clock) as (shaper, port, upstream):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await later(clock, 1.0)
        writer.close()
        await later(clock, 4.0)
        assert upstream.accepted == 0
        assert shaper.sample().connections == 0


async def test_an_outage_as_long_as_the_nat_timeout_resets() -> None:
    clock = ManualClock()
    async with linked(traces.ideal(), ShaperSettings(reset_after_s=10.0), clock) as (shaper, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await passing(clock, reader.readexactly(1)) == b"x"
        shaper.force(False)
        await later(clock, 9.0)
        assert shaper.sample().connections == 1
        await later(clock, 2.5)
        assert shaper.sample().connections == 0
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


async def test_force_cuts_restores_and_overrides_the_trace() -> None:
    clock = ManualClock()
    async with linked(TUNNEL, clock=clock) as (shaper, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        shaper.force(False)
        assert (shaper.sample().up, shaper.sample().capacity_kbps) == (False, 0.0)
        writer.write(b"a")
        answer = asyncio.ensure_future(reader.readexactly(1))
        await later(clock, 1.0)
        assert not answer.done()
        shaper.force(None)
        assert await passing(clock, answer, limit_s=0.5) == b"a"
        await later(clock, 3.0 - shaper.sample().t_s)
        assert not shaper.sample().up
        shaper.force(True)
        assert shaper.sample().up
        writer.write(b"b")
        assert await passing(clock, reader.readexactly(1), limit_s=0.5) == b"b"
        writer.close()


async def test_a_refused_upstream_looks_like_a_reset() -> None:
    clock = ManualClock()
    free = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    dead_port = free.sockets[0].getsockname()[1]
    free.close()
    await free.wait_closed()
    shaper = LinkShaper(traces.ideal(), ("127.0.0.1", dead_port), clock=clock)
    reader, writer = await asyncio.open_connection("127.0.0.1", await shaper.start())
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await passing(clock, reader.read(1))
    writer.close()
    await shaper.aclose()


async def test_an_upstream_killed_in_mid_answer_is_a_reset_not_an_end() -> None:
    clock = ManualClock()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"half")
        await writer.drain()
        await asyncio.sleep(0.05)
        # Unread input makes the kernel reset instead of closing.
        writer.transport.abort()

    server = await asyncio.start_server(die, "127.0.0.1", 0, limit=1)
    shaper = LinkShaper(traces.ideal(), ("127.0.0.1", server.sockets[0].getsockname()[1]), clock=clock)
    reader, writer = await asyncio.open_connection("127.0.0.1", await shaper.start())
    writer.write(bytes(100_000))
    assert await passing(clock, reader.readexactly(4)) == b"half"
    await asyncio.sleep(0.1)
    with pytest.raises(ConnectionResetError):
        await passing(clock, reader.read(1))
    writer.close()
    await shaper.aclose()
    server.close()


async def test_the_queue_is_bounded() -> None:
    clock = ManualClock()
    async with linked(TUNNEL, ShaperSettings(queue_bytes=30_000), clock) as (shaper, port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await later(clock, 1.0)
        shaper.force(False)
        writer.write(bytes(5_000_000))
        await later(clock, 5.0)
        assert 30_000 <= shaper.sample().queued_bytes < 30_000 + 16_384
        writer.transport.abort()


async def test_aclose_leaves_no_task_and_no_socket() -> None:
    before = asyncio.all_tasks()
    clock = ManualClock()
    async with linked(traces.ideal(), clock=clock) as (shaper, port, _):
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for _, writer in pairs:
            writer.write(bytes(100_000))
        await later(clock, 0.2)
        assert shaper.sample().connections == 5
        await shaper.aclose()
        await shaper.aclose()
        assert shaper.sample().connections == 0
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
    for _, writer in pairs:
        writer.transport.abort()
    for _ in range(20):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_port_in_use_is_named() -> None:
    async with linked(traces.ideal()) as (_, port, _upstream):
        second = LinkShaper(traces.ideal(), ("127.0.0.1", 1))
        with pytest.raises(PortInUse, match=f"Port {port} is in use"):
            await second.start(port)


async def test_an_upstream_without_an_address_is_named() -> None:
    with pytest.raises(BadConfigValue, match="host 'no such host' has no address"):
        await LinkShaper(traces.ideal(), ("no such host", 1)).start()


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("queue_bytes", ShaperSettings(queue_bytes=0)),
        ("time_scale", ShaperSettings(time_scale=0)),
        ("reset_after_s", ShaperSettings(reset_after_s=0)),
    ],
)
def test_bad_settings_are_named(key: str, settings: ShaperSettings) -> None:
    with pytest.raises(BadConfigValue, match=f"{key} must be more than zero"):
        LinkShaper(TUNNEL, ("127.0.0.1", 1), settings)
    with pytest.raises(BadConfigValue, match="start_s must be zero or more"):
        LinkShaper(TUNNEL, ("127.0.0.1", 1), ShaperSettings(start_s=-1))


def test_state_at_tells_the_trace_and_its_end() -> None:
    looped = LinkShaper(TUNNEL, ("127.0.0.1", 1))
    assert looped.state_at(1.0).up
    assert not looped.state_at(3.0).up
    assert not looped.state_at(3.0 + TUNNEL.duration_s).up
    assert looped.state_at(7.0).down_kbps == pytest.approx(8000)
    once = LinkShaper(TUNNEL, ("127.0.0.1", 1), ShaperSettings(loop=False))
    assert not once.state_at(TUNNEL.duration_s + 1).up


@pytest.mark.parametrize("direction", ["down", "up"])
async def test_a_busy_lane_passes_the_capacity_integral(direction: traces.Direction) -> None:
    clock = ManualClock()
    trace = traces.load("TMobile-UMTS-driving")
    lane = Lane(trace, direction, TraceTime(clock, 20.0, 1.0), loop=True, queue_bytes=10**9)
    service = asyncio.ensure_future(lane.run())
    for _ in range(8000):
        lane.put(Packet(1500, lambda: None))
    for _ in range(50):
        await clock.advance(1.0)
        want = sum(trace.steps(direction)[200 : 200 + round((clock.monotonic_s() - 1000) * 10)])
        assert want - 3000 - trace.capacity_bytes(direction, 0) <= lane.passed_bytes <= want
    service.cancel()


async def test_an_idle_lane_saves_nothing_up() -> None:
    clock = ManualClock()
    lane = Lane(traces.ideal(kbps=120.0), "up", TraceTime(clock, 0.0, 1.0), loop=True, queue_bytes=10**6)
    service = asyncio.ensure_future(lane.run())
    await clock.advance(100.0)
    for _ in range(10):
        lane.put(Packet(1500, lambda: None))
    await clock.advance(0.5)
    # 120 kbit/s are ten packets a second.
    assert lane.passed_bytes == 5 * 1500
    service.cancel()


async def test_real_time_throughput_is_within_five_percent() -> None:
    trace = traces.load("Verizon-LTE-short").window(10.0, 5.0)
    settings = ShaperSettings(base_delay_ms=0.0)
    async with linked(trace, settings) as (shaper, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"send 50000000 ")
        await reader.read(1)
        got, first_s = 1, shaper.sample().t_s
        began_s = time.monotonic()
        while time.monotonic() - began_s < 1.5:
            got += len(await reader.read(65536))
        curve = traces.CapacityCurve(trace.down_bytes, trace.step_ms)
        want = curve.bytes_until(shaper.sample().t_s * 1000) - curve.bytes_until(first_s * 1000)
        assert got == pytest.approx(want, rel=0.05)
        writer.transport.abort()


async def test_an_idle_link_does_not_poll() -> None:
    async with linked(TUNNEL) as (_, port, _upstream):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.2)
        began_s = time.process_time()
        await asyncio.sleep(0.4)
        assert time.process_time() - began_s < 0.02
        writer.close()
