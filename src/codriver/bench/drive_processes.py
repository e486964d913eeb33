"""Real processes for a drive: a cloud and a vehicle, started, waited for, watched and ended by their ids.

The rule: no child outlives the drive. A child that dies is told of with the last lines of its log.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import EngineUnavailable

_LOG_LINES = 15
_POLL_S = 0.05


class Child:
    """``codriver ARGS`` as a process of its own. ``url`` is where it serves, once ``ready`` has returned."""

    def __init__(self, name: str, args: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.url = ""
        self._args = list(args)
        self._env = dict(env)
        self._ready = folder / f"{name}.ready"
        self.log = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, stands_back: bool = False) -> None:
        """Start it; ``ready`` waits until it serves. ``stands_back``: it computes only where nobody else wants to."""
        self._ready.unlink(missing_ok=True)
        told = ["--ready-file", str(self._ready), "--parent-pid", str(os.getpid())]
        command = [sys.executable, "-m", "codriver", *self._args, *told]
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C at the terminal is for the drive, which then ends its children in order. But
            # the drive's session: Linux shares the cores evenly between sessions (sched_autogroup), whatever
            # priorities their processes have.
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
                process_group=0,
            )
        if stands_back:
            # At once, so that the threads it makes inherit it; a process that is gone already is told of later.
            with suppress(OSError):
                _stand_back(self._process.pid)

    async def ready(self, within_s: float = 180.0, clock: Clock = SYSTEM_CLOCK) -> str:
        """Its address. Errors: :class:`EngineUnavailable` with its last log lines when it ends or takes too long."""
        end_s = clock.monotonic_s() + within_s
        while not self._ready.is_file():
            self.check()
            if clock.monotonic_s() > end_s:
                raise EngineUnavailable(f"The {self.name} was not ready after {within_s:g} s.{self.last_words()}")
            await clock.sleep(_POLL_S)
        self.url = str(json.loads(self._ready.read_text("utf-8"))["url"])
        return self.url

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def check(self) -> None:
        """Errors: :class:`EngineUnavailable` when the process has ended."""
        code = self._process.returncode if self._process is not None else None
        if code is not None:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            raise EngineUnavailable(f"The {self.name} process {how}.{self.last_words()}")

    def last_words(self) -> str:
        """The end of its log, as a part of an error message."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
        except OSError:
            return ""
        return (" Its last words:\n  " + "\n  ".join(lines)) if lines else " It wrote nothing."

    async def stop(self, grace_s: float = 5.0) -> None:
        """SIGTERM, and SIGKILL when that does not end it in ``grace_s``."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _stand_back(pid: int) -> None:
    """Let a process compute only where nobody else wants to."""
    if sys.platform == "linux":
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.setpriority(os.PRIO_PROCESS, pid, 19)


class CpuMeter:
    """How much of the machine's cores processes used between two looks. Linux only; elsewhere it reads nothing."""

    def __init__(self, pids: Mapping[str, int], clock: Clock = SYSTEM_CLOCK) -> None:
        self._pids = dict(pids)
        self._clock = clock
        self._began = (clock.monotonic_s(), self._seconds())

    def shares(self) -> dict[str, float]:
        """Name → share of all cores used since the meter was made; ``machine`` is everything that runs here."""
        since_s, before = self._began
        wall_s = self._clock.monotonic_s() - since_s
        cores = os.cpu_count() or 1
        return {name: (now - before[name]) / wall_s / cores for name, now in self._seconds().items() if name in before}

    def _seconds(self) -> dict[str, float]:
        tick = os.sysconf("SC_CLK_TCK")
        found: dict[str, float] = {}
        with suppress(OSError, ValueError, IndexError):
            fields = [int(word) for word in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:9]]
            found["machine"] = (sum(fields) - fields[3] - fields[4]) / tick
        for name, pid in self._pids.items():
            with suppress(OSError, ValueError, IndexError):
                # The command in parentheses may hold blanks: count from its end.
                words = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
                found[name] = (int(words[11]) + int(words[12])) / tick
        return found
