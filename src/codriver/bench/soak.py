"""A vehicle under a steady load for an hour, with faults at random: no leak, nothing stuck, no lie, no wrong end.

``codriver vehicle`` runs in a process of its own, its cloud behind a link that goes down and an upstream that is
killed; clients ask through every API. First the same load without faults, which warms the vehicle up and is the
yardstick beside the figures; then the faults; then quiet, in which everything has to be as it was. Seeded: the same
requests and troubles in the same order, though not at the same instants. Limits: one cloud, no TLS, the null engine on
board; everything shares this machine, so that latencies are of this load on this machine and no more. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from codriver.core.clock import SYSTEM_CLOCK
from codriver.core.errors import EngineUnavailable

from .drive_processes import Child
from .gateway_servers import free_port
from .rows import Report, machine
from .shaper import LinkShaper
from .soak_client import SoakClient
from .soak_judge import RECOVERY_S, Ending, Soak, judged
from .soak_load import Load, Tally
from .soak_processes import Look, Lookout, Upstream, fetch, spent_file, total, vehicle
from .soak_report import SoakReport, rows
from .soak_requests import Drawer
from .soak_troubles import Troubles, clear_link
from .soak_upstream import read_findings

MINUTES, QUICK_MINUTES = 60.0, 1.5


@dataclass(frozen=True)
class Plan:
    """Times in seconds. ``rate``: requests a second; ``trouble_s``: the mean quiet between two troubles; ``settle_s``:
    how long the vehicle may take to be as it was, once the load is over: it keeps connections to the cloud for a
    minute. ``hangs_up``: the upstream is started anew then, which ends them at once.
    """

    calm_s: float
    soak_s: float
    rate: float = 130.0
    trouble_s: float = 15.0
    look_s: float = 2.0
    settle_s: float = 80.0
    hangs_up: bool = False
    seed: int = 20261125

    @property
    def warm_s(self) -> float:
        """Of the time under load: what is not looked at for a leak. Caches and histories are full by then."""
        return self.calm_s + min(600.0, 0.25 * self.soak_s)


def plan_of(minutes: float) -> Plan:
    """The minutes are those with faults; the yardstick's come before them, a sixth as many and two at most."""
    soak_s = 60.0 * minutes
    return Plan(min(120.0, soak_s / 6), soak_s, trouble_s=min(15.0, soak_s / 20), look_s=min(5.0, soak_s / 200))


def run(quick: bool = False, minutes: float | None = None) -> Report:
    """Soak, judge and report. ``minutes``: of the part with faults."""
    plan = plan_of(minutes if minutes is not None else QUICK_MINUTES if quick else MINUTES)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    soak, troubles = asyncio.run(soak_one(plan))
    lines = judged(soak)
    return SoakReport("soak", machine(), begun, [*rows(soak, troubles), *(line.row() for line in lines)])


@dataclass
class _Bench:
    """What is running, and what it is looked at with."""

    folder: Path
    upstream: Upstream
    link: LinkShaper
    car: Child
    client: SoakClient
    lookout: Lookout


@contextlib.asynccontextmanager
async def _started(folder: Path) -> AsyncIterator[_Bench]:
    async with contextlib.AsyncExitStack() as stack:
        upstream = Upstream(free_port(), folder)
        stack.push_async_callback(upstream.kill)
        await upstream.start()
        link = clear_link(upstream.port)
        port = await link.start()
        stack.push_async_callback(link.aclose)
        link.force(True)
        car = vehicle(folder, port)
        stack.push_async_callback(car.stop)
        await car.start()
        url = await car.ready()
        client = SoakClient(urlsplit(url).port or 0)
        stack.callback(client.close)
        yield _Bench(folder, upstream, link, car, client, Lookout(car.pid, url))


async def soak_one(plan: Plan) -> tuple[Soak, Troubles]:
    """Errors: :class:`EngineUnavailable` when a process does not start, or the vehicle ends in the middle."""
    day = datetime.now(UTC).date()
    with tempfile.TemporaryDirectory(prefix="codriver-soak-") as name:
        async with _started(Path(name)) as bench:
            drawer = Drawer(plan.seed)
            load = Load(drawer, bench.client, plan.seed)
            before = await _greeted(bench, load, drawer)
            troubles = Troubles(bench.link, bench.upstream, plan.seed, plan.trouble_s)
            watch = asyncio.create_task(bench.lookout.watch(plan.look_s))
            try:
                calm = await load.run(plan.calm_s, plan.rate, drawer.calm)
                soaked = await _with_troubles(troubles, lambda: load.run(plan.soak_s, plan.rate, drawer.draw))
            finally:
                watch.cancel()
            bench.car.check()
            looks = list(bench.lookout.looks)
            recovered_s = await _recovered(bench, load, drawer)
            if plan.hangs_up:
                await bench.upstream.kill()
                await bench.upstream.start()
            after = await _settled(bench, before, plan.settle_s)
            ending = await _ending(bench, recovered_s, same_day=day == datetime.now(UTC).date())
            return Soak(
                before, after, looks, calm, soaked, ending, looks[0].at_s + plan.warm_s,
                read_findings(bench.upstream.findings), load.whole_turns, load.other_turns,
            ), troubles  # fmt: skip


async def _greeted(bench: _Bench, load: Load, drawer: Drawer) -> Look:
    """The vehicle after its first answers: everything that is made on first use is there. Looked at without a load."""
    for policy in ("cloud-first", "vehicle-only", "cloud-first"):
        tally = Tally()
        await load.one(drawer.plain(policy), tally)
        if not tally.kinds["whole"]:
            raise EngineUnavailable(f"The vehicle gives no right answer before the soak: {tally.told_why}.")
    bench.client.close()
    await asyncio.sleep(1.0)
    look = await bench.lookout.look()
    bench.lookout.looks.clear()
    return look


async def _with_troubles(troubles: Troubles, work: Callable[[], Awaitable[Tally]]) -> Tally:
    task = asyncio.create_task(troubles.run())
    try:
        tally = await work()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await troubles.mend()
    return tally


async def _recovered(bench: _Bench, load: Load, drawer: Drawer) -> float:
    """Seconds from the link's return until the cloud answers a plain request."""
    began_s = SYSTEM_CLOCK.monotonic_s()
    while SYSTEM_CLOCK.monotonic_s() - began_s < 3 * RECOVERY_S:
        tally = Tally()
        await load.one(drawer.plain(), tally)
        if tally.engines["cloud"]:
            return SYSTEM_CLOCK.monotonic_s() - began_s
        await asyncio.sleep(0.1)
    return math.inf


async def _settled(bench: _Bench, before: Look, within_s: float) -> Look:
    """The vehicle without a load, looked at until it is as before, or the time is over."""
    bench.client.close()
    end_s = SYSTEM_CLOCK.monotonic_s() + within_s
    while True:
        await asyncio.sleep(0.5)
        look = await bench.lookout.look()
        same = look.files <= before.files and look.tasks <= before.tasks and not look.in_flight
        if (same and await bench.upstream.working() == 0) or SYSTEM_CLOCK.monotonic_s() > end_s:
            return look


async def _ending(bench: _Bench, recovered_s: float, same_day: bool) -> Ending:
    metrics = await bench.lookout.metrics()
    status, page = await fetch(bench.car.url, "/healthz")
    states = [state for state in ("up", "degraded", "down") if total(metrics, "codriver_link_state", f"state={state}")]
    breakers = {
        word.partition("=")[2]: state.partition("=")[2]
        for (name, word, state), value in ((key, value) for key, value in metrics.items() if len(key) == 3)
        if name == "codriver_breaker_state" and value
    }
    spent = msgspec.json.decode(spent_file(bench.folder).read_bytes())["usd"] if same_day else math.nan
    return Ending(
        recovered_s=recovered_s,
        link_state=", ".join(states),
        breakers=breakers,
        health="ok" if status == 200 and msgspec.json.decode(page)["status"] == "ok" else f"HTTP {status}",
        in_flight=int(total(metrics, "codriver_requests_in_flight")) - 1,
        upstream_working=await bench.upstream.working(),
        spent_usd=spent,
        told_usd=total(metrics, "codriver_cost_usd_total"),
    )
