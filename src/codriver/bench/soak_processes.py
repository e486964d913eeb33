"""The soak's processes: a real vehicle, and an upstream that is killed and comes back on the same port.

The vehicle is ``codriver vehicle`` with the null engine on board, so that load and not decoding is measured, and with
limits short enough for a fault to be over before the client's deadline. Breakers pause for half a second at most, so
that the cloud is asked again soon and gets its share of faults; a draft is never sure enough, so that drafts are held
while the cloud is asked. Rule: who starts a process ends it, by its id.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from codriver.core.clock import SYSTEM_CLOCK
from codriver.core.errors import EngineUnavailable

from .drive_processes import Child
from .fault_answers import TEXT
from .fault_client import Got
from .soak_upstream import SYSTEM

PAUSE_S = 0.5
REQUEST_GRACE_S = 1.0
_START_S = 90.0
_ASK_S = 5.0
_SETTINGS: Mapping[str, str] = {
    "engine.kind": "null",
    "engine.null_text": TEXT,
    "engine.embedder": "",
    "cloud.peer": "false",
    "cloud.input_usd": "0.5",
    "cloud.output_usd": "1.5",
    "route.policy": "cloud-first",
    "route.hedge_after": "0.95",
    "route.deadline_s": "4",
    "route.first_token_s": "1",
    "route.inter_token_s": "0.8",
    "route.min_confidence": "0.99",
    "route.budget_day_usd": "1000000",
    "route.sessions": "32",
    "route.session_messages": "16",
    "breaker.open_s": "0.2",
    "breaker.most_open_s": str(PAUSE_S),
    "gateway.grace_s": str(REQUEST_GRACE_S),
    "gateway.request_limit_s": "10",
    "gateway.idle_timeout_s": "5",
    "observe.log_level": "error",
}


def vehicle(folder: Path, cloud_port: int, settings: Mapping[str, str] | None = None) -> Child:
    """A vehicle that is not started yet; its costs of the day are kept below ``folder``."""
    told = {
        **_SETTINGS,
        "cloud.url": f"http://127.0.0.1:{cloud_port}/{SYSTEM}/healthy/first/v1",
        "catalogue.home": str(folder),
        **(settings or {}),
    }
    args = [word for key, value in told.items() for word in ("--set", f"{key}={value}")]
    return Child("vehicle", ["vehicle", "--port", "0", *args], {}, folder)


def spent_file(folder: Path) -> Path:
    return folder / "spent.json"


class Upstream:
    """The cloud's process. ``kill`` is SIGKILL; after ``start`` it is on the same port again."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.findings = folder / "findings.jsonl"
        self._log = folder / "upstream.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns once it answers. Errors: :class:`EngineUnavailable`."""
        end_s = SYSTEM_CLOCK.monotonic_s() + _START_S
        while await self.working() < 0:
            if SYSTEM_CLOCK.monotonic_s() > end_s:
                last = self._log.read_text("utf-8", "replace").splitlines()[-3:]
                raise EngineUnavailable(f"The soak's upstream did not start. {' '.join(last)}", engine="upstream")
            # While nobody listened there, another process may have been given the port for a connection of its own.
            if self._process is None or self._process.returncode is not None:
                await self._launch()
            await asyncio.sleep(0.05)

    async def _launch(self) -> None:
        command = [sys.executable, "-m", "codriver.bench.soak_upstream", str(self.port), str(self.findings)]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, str(os.getpid()), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    async def kill(self) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._process = None

    async def working(self) -> int:
        """How many calls it is answering; -1 where it does not say."""
        with suppress(OSError, EOFError, ValueError, TimeoutError):
            status, body = await fetch(f"http://127.0.0.1:{self.port}", "/health")
            if status == 200:
                return int(body.partition(b'"working":')[2].partition(b",")[0])
        return -1


async def fetch(url: str, path: str) -> tuple[int, bytes]:
    """A page on loopback, on a connection of its own. Errors: ``OSError``, ``TimeoutError``, ``ValueError``."""
    parts = urlsplit(url)
    async with asyncio.timeout(_ASK_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", parts.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            got = Got()
            await got.read(reader)
            return got.status, bytes(got.body)
        finally:
            writer.transport.abort()


# ---------------------------------------------------------------- looking at the vehicle


@dataclass(frozen=True)
class Look:
    """A process at one moment: seconds since the look-out began, resident memory, descriptors, CPU used, and what its
    ``/metrics`` tell.
    """

    at_s: float
    rss_mb: float
    files: int
    sockets: int
    cpu_s: float
    tasks: int
    in_flight: int


@dataclass
class Lookout:
    """Looks at one process, its own request on ``/metrics`` left out of what it counts."""

    pid: int
    url: str
    looks: list[Look] = field(default_factory=list)
    _began_s: float = field(default_factory=SYSTEM_CLOCK.monotonic_s)

    async def look(self) -> Look:
        metrics = await self.metrics()
        files, sockets = _descriptors(self.pid)
        tasks, flying = int(total(metrics, "codriver_tasks")), int(total(metrics, "codriver_requests_in_flight"))
        at_s = SYSTEM_CLOCK.monotonic_s() - self._began_s
        look = Look(at_s, _rss_mb(self.pid), files, sockets, _cpu_s(self.pid), tasks, flying - 1)
        self.looks.append(look)
        return look

    async def metrics(self) -> Metrics:
        status, page = await fetch(self.url, "/metrics")
        if status != 200:
            raise EngineUnavailable(f"The vehicle's metrics came with status {status}.", engine="vehicle")
        samples = (one for family in text_string_to_metric_families(page.decode()) for one in family.samples)
        return {(one.name, *sorted(f"{k}={v}" for k, v in one.labels.items())): one.value for one in samples}

    async def watch(self, every_s: float) -> None:
        """Look until cancelled. A vehicle too busy to answer is looked at again the next time."""
        while True:
            with suppress(OSError, TimeoutError, EOFError, ValueError):
                await self.look()
            await asyncio.sleep(every_s)


Metrics = dict[tuple[str, ...], float]


def total(metrics: Metrics, name: str, *labels: str) -> float:
    """The sum of a metric's samples that have ``labels``."""
    return sum(value for key, value in metrics.items() if key[0] == name and set(labels) <= set(key[1:]))


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _descriptors(pid: int) -> tuple[int, int]:
    """Open descriptors, and how many of them are sockets."""
    files = sockets = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        files += 1
        with suppress(OSError):
            sockets += os.readlink(entry).startswith("socket:")
    return files, sockets


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
