"""Children of a drive: one that dies tells why, one that lives is ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from codriver.bench.drive_processes import Child, CpuMeter
from codriver.core.clock import ManualClock
from codriver.core.errors import EngineUnavailable


async def test_a_child_that_dies_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    child = Child("vehicle", ["vehicle", "--port", "0", "--set", "engine.kind=abacus"], {}, tmp_path)
    await child.start()
    with pytest.raises(EngineUnavailable, match=r"The vehicle process ended with code 2. Its last words:(.|\n)*abacus"):
        await child.ready()
    await child.stop()


async def test_a_child_serves_and_is_ended_by_its_id(tmp_path: Path) -> None:
    child = Child("cloud", ["cloud", "--port", "0"], {"CODRIVER_ENGINE_KIND": "null"}, tmp_path)
    await child.start()
    try:
        assert (await child.ready()).startswith("http://127.0.0.1:")
    finally:
        await child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
    with pytest.raises(EngineUnavailable, match="ended"):
        child.check()


async def test_a_child_that_takes_too_long_is_told_of(tmp_path: Path) -> None:
    child = Child("cloud", ["cloud", "--port", "0"], {"CODRIVER_ENGINE_KIND": "null"}, tmp_path)
    await child.start()
    try:
        with pytest.raises(EngineUnavailable, match="was not ready after -1 s"):
            await child.ready(within_s=-1.0)
    finally:
        await child.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is merely nice")
async def test_a_child_that_stands_back_does_so_among_the_drives_own_processes(tmp_path: Path) -> None:
    child = Child("cloud", ["cloud", "--port", "0"], {"CODRIVER_ENGINE_KIND": "null"}, tmp_path)
    await child.start(stands_back=True)
    try:
        await child.ready()
        threads = [int(name) for name in os.listdir(f"/proc/{child.pid}/task")]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
        # Linux weighs sessions against each other first, and priorities only within one.
        assert os.getsid(child.pid) == os.getsid(0)
        assert os.getpgid(child.pid) != os.getpgid(0)
    finally:
        await child.stop()


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="reads /proc, which only Linux has")
async def test_cpu_shares_are_of_all_cores() -> None:
    clock = ManualClock()
    meter = CpuMeter({"self": os.getpid(), "gone": 2**22 - 1}, clock)
    sum(i * i for i in range(2_000_000))
    await clock.advance(1.0)
    shares = meter.shares()
    assert shares["self"] > 0
    assert "gone" not in shares
    assert "machine" in shares
