"""The live drive: a real vehicle process, a real cloud process, and a recorded radio link between them.

For each policy the vehicle starts anew, is warmed up, and then meets the same requests at the same times on the same
part of the trace. The requests come open-loop: nobody waits for an answer before asking the next. The cloud process is
one for all policies; the policies run one after the other, because they share this machine's cores.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import EngineUnavailable
from codriver.engines.openai import OpenAIConfig, OpenAIServer

from .drive_client import DriveClient, fate_of
from .drive_inputs import Inputs
from .drive_outcomes import Fate, LinkMoment, PolicyRun, Summary, summarise
from .drive_processes import Child, CpuMeter
from .drive_settings import DrivePolicy, DriveSettings, Window, arrivals, policy, window
from .scoring import ScoringServer
from .shaper import LinkShaper, ShaperSettings
from .workload import WorkItem

_SAMPLE_S = 0.2
_BELIEF = re.compile(r'^codriver_link_state\{state="(\w+)"\} 1\.0', re.MULTILINE)
_WARM_UP_S = 60.0


class Watch(Protocol):
    """Told of a drive's progress, from the event loop; must be quick and must not raise."""

    def said(self, sentence: str) -> None:
        """What is being done now."""

    def began(self, run: PolicyRun, seconds: float) -> None:
        """A policy's drive begins; ``run`` grows while it lasts."""

    def moved(self, run: PolicyRun, at_s: float) -> None:
        """Time went on (five times a second)."""

    def ended(self, summary: Summary) -> None:
        """A policy's drive is over."""


class Unwatched:
    """Nobody looks."""

    def said(self, sentence: str) -> None: ...

    def began(self, run: PolicyRun, seconds: float) -> None: ...

    def moved(self, run: PolicyRun, at_s: float) -> None: ...

    def ended(self, summary: Summary) -> None: ...


class LiveDrive:
    """``runs`` holds what was measured so far, also when ``run`` was cut short."""

    def __init__(
        self,
        settings: DriveSettings,
        inputs: Inputs,
        items: Sequence[WorkItem],
        watch: Watch | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.runs: list[PolicyRun] = []
        self._settings = settings
        self._inputs = inputs
        self._items = tuple(items)
        self._watch = watch or Unwatched()
        self._clock = clock

    async def run(self) -> list[PolicyRun]:
        """All policies on all traces. Errors: :class:`EngineUnavailable` when a process does not start or dies."""
        windows = [window(name, self._settings) for name in self._settings.traces]
        times_s = arrivals(len(self._items), self._settings.seconds, self._settings.seed)
        asked = list(zip(times_s, self._items, strict=True))
        with tempfile.TemporaryDirectory(prefix="codriver-drive-") as folder:
            async with self._cloud(Path(folder)) as cloud:
                for part in windows:
                    for name in self._settings.policies:
                        await self._drive(policy(name), part, asked, cloud)
        return self.runs

    @asynccontextmanager
    async def _cloud(self, folder: Path) -> AsyncIterator[Child]:
        self._watch.said(f"starting the cloud ({self._inputs.cloud_model})")
        # As many slots as the workload has opening messages, so that each keeps its prefix.
        slots = len({item.messages[0]["content"] for item in self._items})
        env = {"CODRIVER_ENGINE_MODEL": self._inputs.cloud_model, "CODRIVER_ENGINE_SLOTS": str(max(4, slots))}
        cloud = Child("cloud", ["cloud", "--port", "0"], env, folder)
        try:
            # It computes on the car's cores, which no real cloud does: the vehicle must come first on them.
            await cloud.start(stands_back=True)
            await cloud.ready(clock=self._clock)
            yield cloud
        finally:
            await asyncio.shield(cloud.stop())

    async def _warm_up(self, url: str, model: str, child: Child) -> None:
        """One request of each opening, not timed, so that no policy pays for a first touch."""
        firsts: dict[str, WorkItem] = {}
        for item in self._items:
            firsts.setdefault(item.messages[0]["content"], item)
        client = DriveClient(url, self._clock)
        try:
            for item in firsts.values():
                reply = await client.ask_slowly(item, model, _WARM_UP_S, {})
                child.check()
                if reply.error:
                    raise EngineUnavailable(
                        f"The {child.name} did not answer its first request ({reply.error}).{child.last_words()}"
                    )
        finally:
            await client.aclose()

    def _vehicle(self, how: DrivePolicy, port: int, folder: Path) -> Child:
        env = {
            "CODRIVER_ENGINE_MODEL": self._inputs.vehicle_model,
            "CODRIVER_CLOUD_INPUT_USD": str(self._settings.price.input_usd),
            "CODRIVER_CLOUD_OUTPUT_USD": str(self._settings.price.output_usd),
            "CODRIVER_ROUTE_SPENT_FILE": str(folder / "spent.json"),
            **dict(how.env),
        }
        if self._inputs.calibration is not None:
            env["CODRIVER_ROUTE_CALIBRATION"] = str(self._inputs.calibration)
        args = ["vehicle", "--port", "0", "--cloud-url", f"http://127.0.0.1:{port}/v1"]
        return Child("vehicle", args, env, folder)

    @asynccontextmanager
    async def _scoring(self, how: DrivePolicy, cloud: Child) -> AsyncIterator[str]:
        """Where the cloud is; with a server before it that scores drafts, where the policy needs one."""
        if not how.scores:
            yield cloud.url
            return
        engine = OpenAIServer(OpenAIConfig(url=cloud.url, model="cloud", prefill="llama_cpp", peer=True))
        server = ScoringServer(engine)
        try:
            yield await server.start()
        finally:
            await server.aclose()
            await engine.aclose()

    def _shaper(self, part: Window, url: str) -> LinkShaper:
        address = urlsplit(url)
        assert address.port is not None
        shaping = ShaperSettings(base_delay_ms=self._settings.base_delay_ms, start_s=part.start_s)
        return LinkShaper(part.trace, ("127.0.0.1", address.port), shaping, self._clock)

    async def _drive(
        self, how: DrivePolicy, part: Window, asked: Sequence[tuple[float, WorkItem]], cloud: Child
    ) -> None:
        run = PolicyRun(policy=how.title, trace=part.trace.name, fates=[], planned=len(asked))
        async with AsyncExitStack() as stack:
            # Before every policy: each is to meet a cloud that is alive and has the same prefixes at hand.
            self._watch.said(f"{how.title}: warming the cloud up")
            await self._warm_up(cloud.url, "cloud", cloud)
            self._watch.said(f"{how.title}: starting the vehicle")
            # The link is forced up while the vehicle boots, then begins again at the window's start.
            address = await stack.enter_async_context(self._scoring(how, cloud))
            boot = self._shaper(part, address)
            boot.force(True)
            stack.push_async_callback(boot.aclose)
            port = await boot.start()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codriver-vehicle-")))
            vehicle = self._vehicle(how, port, folder)
            stack.push_async_callback(vehicle.stop)
            await vehicle.start()
            url = await vehicle.ready(clock=self._clock)
            await self._warm_up(url, "vehicle", vehicle)
            await boot.aclose()
            shaper = self._shaper(part, address)
            stack.push_async_callback(shaper.aclose)
            await shaper.start(port)
            client = DriveClient(url, self._clock)
            stack.push_async_callback(client.aclose)
            self.runs.append(run)
            self._watch.began(run, part.seconds)
            meter = CpuMeter({"vehicle": vehicle.pid, "cloud": cloud.pid}, self._clock)
            try:
                await self._ask_all(run, asked, client, _Road(shaper, (vehicle, cloud), _root(url)))
            finally:
                run.busy = meter.shares()
                moved = shaper.sample()
                run.bytes_up, run.bytes_down = moved.bytes_up, moved.bytes_down
        self._watch.ended(summarise(run))

    async def _ask_all(
        self, run: PolicyRun, asked: Sequence[tuple[float, WorkItem]], client: DriveClient, road: _Road
    ) -> None:
        began_s = self._clock.monotonic_s()
        price, never_cloud = self._settings.price, run.policy == "vehicle-only"

        async def ask(at_s: float, item: WorkItem) -> Fate:
            await self._clock.sleep(max(0.0, began_s + at_s - self._clock.monotonic_s()))
            reply = await client.ask(item)
            fate = fate_of(item, at_s, reply, price, never_cloud)
            run.fates.append(fate)
            return fate

        async def look() -> None:
            believed = ""
            while True:
                for child in road.children:
                    child.check()
                at_s = self._clock.monotonic_s() - began_s
                if len(run.link) % 2 == 0:
                    believed = await _belief(client, road.root)
                sample = road.shaper.sample()
                run.link.append(LinkMoment(at_s, sample.capacity_kbps, sample.up, sample.queued_bytes, believed))
                self._watch.moved(run, at_s)
                await self._clock.sleep(_SAMPLE_S)

        looking = asyncio.ensure_future(look())
        requests = [asyncio.ensure_future(ask(at_s, item)) for at_s, item in asked]
        try:
            await _until_done(requests, looking)
        finally:
            for task in (looking, *requests):
                task.cancel()
            await asyncio.gather(looking, *requests, return_exceptions=True)


class _Road:
    """What a drive looks at while it lasts."""

    def __init__(self, shaper: LinkShaper, children: tuple[Child, ...], root: str) -> None:
        self.shaper = shaper
        self.children = children
        self.root = root


async def _until_done(requests: Iterable[asyncio.Future[Fate]], looking: asyncio.Future[None]) -> None:
    """Wait for all requests; what ``looking`` raises (a process that died) is raised at once."""
    left: set[asyncio.Future[Any]] = set(requests)
    while left:
        done, _ = await asyncio.wait({*left, looking}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        left -= done


async def _belief(client: DriveClient, root: str) -> str:
    """The link's state as the vehicle's own metrics tell it; empty where it does not look."""
    with suppress(aiohttp.ClientError, TimeoutError, OSError):
        found = _BELIEF.search(await client.get_text(f"{root}/metrics"))
        return found[1] if found else ""
    return ""


def _root(url: str) -> str:
    return url.removesuffix("/v1")
