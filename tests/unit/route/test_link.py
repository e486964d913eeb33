"""The link's state: slow is told from dead, refused from unreachable, and a dead link is noticed within a second."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web

from codriver.core.errors import DeadlineExceeded, EngineUnavailable
from codriver.core.virtual import LoopClock, run_virtual
from codriver.route.config import LinkConfig
from codriver.route.link import LinkMonitor, LinkTracker, SteadyLink

CONFIG = LinkConfig()


@pytest.fixture
def tracker() -> LinkTracker:
    return LinkTracker(CONFIG, 0.0)


def answer(tracker: LinkTracker, at_s: float, rtt_s: float = 0.05) -> None:
    tracker.probe_sent(at_s - rtt_s)
    tracker.probe_answered(at_s, rtt_s)


def test_a_silent_probe_means_down_after_its_time(tracker: LinkTracker) -> None:
    tracker.probe_sent(1.0)
    tracker.tick(1.69)
    assert tracker.state == "up"
    assert tracker.next_verdict_s() == pytest.approx(1.7)
    tracker.tick(1.7)
    assert tracker.state == "down"
    assert tracker.changed_s == 1.7


def test_bytes_of_a_slow_answer_keep_it_up(tracker: LinkTracker) -> None:
    tracker.probe_sent(1.0)
    for tenth in range(10, 60, 5):
        tracker.heard(tenth / 10, 10)
        tracker.tick(tenth / 10 + 0.49)
    assert tracker.state == "up"
    tracker.tick(5.5 + 0.7)
    assert tracker.state == "down"


def test_nothing_awaited_is_not_silence(tracker: LinkTracker) -> None:
    tracker.tick(1000.0)
    assert tracker.state == "up"
    assert tracker.next_verdict_s() == math.inf


def test_slow_round_trips_degrade_it_and_fast_ones_mend_it_later(tracker: LinkTracker) -> None:
    for second in range(5):
        answer(tracker, float(second + 1), rtt_s=0.6)
    assert tracker.state == "degraded"
    states = []
    for second in range(5, 15):
        answer(tracker, float(second + 1), rtt_s=0.4)
        states.append(tracker.state)
    assert set(states) == {"degraded"}, "0.4 s is within the hysteresis"
    for second in range(15, 25):
        answer(tracker, float(second + 1), rtt_s=0.1)
    assert tracker.state == "up"


def test_coming_back_takes_two_answers(tracker: LinkTracker) -> None:
    tracker.probe_sent(0.0)
    tracker.tick(0.7)
    answer(tracker, 3.0)
    assert tracker.state == "degraded"
    answer(tracker, 3.3)
    assert tracker.state == "up"


def test_a_given_up_probe_does_not_reset_the_count(tracker: LinkTracker) -> None:
    tracker.probe_sent(0.0)
    tracker.probe_lost(0.5)
    tracker.probe_sent(0.5)
    tracker.tick(0.7)
    assert tracker.state == "down"
    assert tracker.loss() == 1.0


def test_throughput_is_the_best_second_of_the_last_ten(tracker: LinkTracker) -> None:
    assert math.isnan(tracker.throughput_bps(0.0))
    for at_s, count in ((1.0, 100), (1.9, 150), (2.0, 50)):
        tracker.heard(at_s, count)
    assert tracker.throughput_bps(3.0) == 8 * 250
    tracker.heard(11.5, 10)
    assert tracker.throughput_bps(11.5) == 8 * 50
    assert math.isnan(tracker.throughput_bps(30.0))


def test_a_link_nobody_watches_is_up() -> None:
    link = SteadyLink()
    assert link.estimate().state == "up"
    link.on_down(lambda: None)()


# ---------------------------------------------------------------- the monitor, in virtual time


class Road:
    """A probe over a link that the test cuts: ``open`` lets answers through after ``rtt_s``."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.rtt_s = 0.05
        self.error: Exception | None = None
        self.probes: list[float] = []

    async def probe(self) -> float:
        self.probes.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.rtt_s)
        await self.open.wait()
        return self.rtt_s


@contextlib.asynccontextmanager
async def monitored(road: Road, config: LinkConfig = CONFIG) -> AsyncIterator[LinkMonitor]:
    monitor = LinkMonitor(road.probe, config, LoopClock())
    task = asyncio.ensure_future(monitor.run())
    try:
        yield monitor
    finally:
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the monitor left tasks behind"


async def noticed_s(monitor: LinkMonitor, since_s: float) -> float:
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[float] = loop.create_future()
    monitor.on_down(lambda: heard.done() or heard.set_result(loop.time() - since_s))
    return await asyncio.wait_for(heard, 10)


@pytest.mark.parametrize("at_s", [0.0, 0.01, 0.06, 0.13, 0.2, 0.26, 0.3, 0.77])
@pytest.mark.parametrize("in_use", [True, False])
def test_a_dead_link_is_noticed_within_a_second_of_the_first_failed_byte(at_s: float, in_use: bool) -> None:
    async def main() -> float:
        road = Road()
        async with monitored(road) as monitor:
            if in_use:
                monitor.sent()
            await asyncio.sleep(5.0 + at_s)
            road.open.clear()
            if not in_use:
                # The first byte that fails is that of the request which comes now.
                monitor.sent()
            return await noticed_s(monitor, asyncio.get_running_loop().time())

    assert run_virtual(main()) < 1.0


def test_listeners_are_told_once_per_outage_and_only_while_they_listen() -> None:
    async def main() -> list[str]:
        road, told = Road(), []
        async with monitored(road) as monitor:
            monitor.on_down(lambda: told.append("a"))
            off = monitor.on_down(lambda: told.append("b"))
            monitor.sent()
            for outage in range(2):
                await asyncio.sleep(1.0)
                road.open.clear()
                await asyncio.sleep(5.0)
                road.open.set()
                await asyncio.sleep(3.0)
                assert monitor.estimate().state == "up"
                if outage == 0:
                    off()
        return told

    assert sorted(run_virtual(main())) == ["a", "a", "b"]


def test_gaps_of_two_seconds_are_seen_and_left_again() -> None:
    async def main() -> list[str]:
        road, seen = Road(), []
        async with monitored(road) as monitor:
            monitor.sent()
            for _ in range(4):
                await asyncio.sleep(2.0)
                road.open.clear()
                await asyncio.sleep(2.0)
                seen.append(monitor.estimate().state)
                road.open.set()
                await asyncio.sleep(0.35)
                seen.append(monitor.estimate().state)
        return seen

    seen = run_virtual(main())
    assert seen[::2] == ["down"] * 4
    assert "down" not in seen[1::2]


def test_refused_is_an_answer_and_unreachable_is_not() -> None:
    async def main() -> dict[str, str]:
        found = {}
        errors: dict[str, Exception] = {
            "refused": ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
            "reset": ConnectionResetError(errno.ECONNRESET, "reset"),
            "http": EngineUnavailable("503"),
            "unreachable": OSError(errno.ENETUNREACH, "no route"),
            "late": DeadlineExceeded("the probe's own limit"),
        }
        wrapped = EngineUnavailable("no way")
        wrapped.__cause__ = OSError(errno.EHOSTUNREACH, "no route")
        errors["wrapped"] = wrapped
        for name, error in errors.items():
            road = Road()
            road.error = error
            async with monitored(road) as monitor:
                monitor.sent()
                await asyncio.sleep(1.5)
                found[name] = monitor.estimate().state
        return found

    assert run_virtual(main()) == {
        "refused": "up", "reset": "up", "http": "up", "unreachable": "down", "late": "down", "wrapped": "down",
    }  # fmt: skip


def test_probes_are_seldom_while_nobody_asks_and_one_comes_at_once_when_somebody_does() -> None:
    async def main() -> None:
        road = Road()
        async with monitored(road) as monitor:
            await asyncio.sleep(10.0)
            assert 8 <= len(road.probes) <= 11
            await asyncio.sleep(0.5)
            before, now_s = len(road.probes), asyncio.get_running_loop().time()
            monitor.sent()
            await asyncio.sleep(0.01)
            assert len(road.probes) == before + 1
            assert road.probes[-1] == pytest.approx(now_s, abs=0.02)
            await asyncio.sleep(3.0)
            assert 10 <= len(road.probes) - before <= 16
            monitor.settled()
            monitor.failed("reset")
            await asyncio.sleep(5.0)

    run_virtual(main())


@pytest.mark.parametrize(("factor", "few"), [(1.0, range(9, 12)), (4.0, range(2, 4)), (0.0, range(1, 2))])
def test_a_cadence_spares_probes_of_an_idle_link_and_none_of_one_in_use(factor: float, few: range) -> None:
    async def main() -> None:
        road = Road()
        async with monitored(road) as monitor:
            monitor.cadence.factor = factor
            await asyncio.sleep(10)
            assert len(road.probes) in few
            monitor.sent()
            before = len(road.probes)
            await asyncio.sleep(3)
            assert 10 <= len(road.probes) - before <= 16
            monitor.settled()
            await asyncio.sleep(1)
            before, monitor.cadence.factor = len(road.probes), 1.0
            await asyncio.sleep(10)
            assert len(road.probes) - before >= 6, "it comes back by itself"

    run_virtual(main())


def test_a_client_that_asks_one_thing_after_the_other_brings_no_probe_with_each() -> None:
    async def main() -> int:
        road = Road()
        async with monitored(road) as monitor:
            await asyncio.sleep(5.0)
            before = len(road.probes)
            for _ in range(250):
                monitor.sent()
                await asyncio.sleep(0.03)
                monitor.settled()
                await asyncio.sleep(0.01)
            return len(road.probes) - before

    # Ten seconds, a probe each 0.25: the interval after the answer to the one before, and its round trip.
    assert 35 <= run_virtual(main()) <= 45


def test_a_cancelled_probe_does_not_end_the_monitor() -> None:
    async def main() -> str:
        road = Road()
        road.error = asyncio.CancelledError()  # type: ignore[assignment]
        async with monitored(road) as monitor:
            monitor.sent()
            await asyncio.sleep(2.0)
            assert len(road.probes) > 3
            road.error = None
            await asyncio.sleep(3.0)
            return monitor.estimate().state

    assert run_virtual(main()) == "up"


# ---------------------------------------------------------------- the monitor on real sockets


class FreezingProxy:
    """Forwards TCP until it is frozen; then it keeps every connection and passes nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.thaw = asyncio.Event()
        self.thaw.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, up_writer]
        for pair in ((reader, up_writer), (up_reader, writer)):
            task = asyncio.ensure_future(self._pass(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while received := await reader.read(1 << 14):
                await self.thaw.wait()
                writer.write(received)
                await writer.drain()
        writer.close()

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _answer(request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def test_a_frozen_socket_is_noticed_and_its_thaw_too(capsys: pytest.CaptureFixture[str]) -> None:
    app = web.Application()
    app.router.add_get("/health", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    proxy = FreezingProxy(runner.addresses[0][1])
    port = await proxy.start()

    async with aiohttp.ClientSession() as session:

        async def probe() -> float:
            began_s = time.monotonic()
            async with session.get(f"http://127.0.0.1:{port}/health") as response:
                await response.read()
            return time.monotonic() - began_s

        monitor = LinkMonitor(probe)
        task = asyncio.ensure_future(monitor.run())
        monitor.sent()
        await _until(lambda: not math.isnan(monitor.estimate().rtt_s))
        frozen_s = time.monotonic()
        proxy.thaw.clear()
        await _until(lambda: monitor.estimate().state == "down")
        noticed_s = time.monotonic() - frozen_s
        thawed_s = time.monotonic()
        proxy.thaw.set()
        await _until(lambda: monitor.estimate().state == "up")
        back_s = time.monotonic() - thawed_s
        task.cancel()
        await asyncio.wait([task])
    await proxy.stop()
    await runner.cleanup()
    with capsys.disabled():
        print(f"\n  real sockets: dead link noticed after {noticed_s:.3f} s, back up after {back_s:.3f} s")


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - real sockets: there is nothing to wait for but the state
            await asyncio.sleep(0.005)
