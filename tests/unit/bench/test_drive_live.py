"""A whole live drive in small: real processes with null engines, the real proxy, real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from codriver.bench.datasets import Question
from codriver.bench.drive_inputs import Inputs
from codriver.bench.drive_live import LiveDrive, Unwatched
from codriver.bench.drive_outcomes import PolicyRun, summarise
from codriver.bench.drive_settings import DriveSettings
from codriver.bench.workload import Limits, chat_items, command_items, question_item
from codriver.core.errors import EngineUnavailable

LIMITS = Limits(4.0, 2.0)
INPUTS = Inputs(Path("unused"), None)


@pytest.fixture(autouse=True)
def null_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODRIVER_ENGINE_KIND", "null")
    monkeypatch.setenv("CODRIVER_HOME", str(tmp_path))


async def test_two_policies_meet_the_same_requests() -> None:
    settings = DriveSettings(traces=("ideal",), seconds=1.0, policies=("vehicle-only", "cloud with fallback"))
    items = [*command_items(LIMITS)[:2], *chat_items(LIMITS)[:2]]
    runs = await LiveDrive(settings, INPUTS, items).run()
    first, second = (summarise(run) for run in runs)
    assert first.answered_in_time.value == second.answered_in_time.value == 1.0
    assert (first.by_vehicle, second.by_cloud) == (4, 4)
    assert (first.cloud_calls.value, second.cloud_calls.value) == (0.0, 1.0)
    assert {f.item: f.at_s for f in runs[0].fates} == {f.item: f.at_s for f in runs[1].fates}
    assert runs[1].link and all(moment.up for moment in runs[1].link)


async def test_the_cloud_scores_a_rejected_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real way: vehicle, link, a server that scores, and the cloud behind it; both null engines say the same."""
    monkeypatch.setenv("CODRIVER_ROUTE_MIN_CONFIDENCE", "1.0")
    monkeypatch.setenv("CODRIVER_ROUTE_SKIP_BELOW", "0.0")
    asked = [Question(f"q{n}", "asdiv", f"What is {n} times {n + 1}?", (), str(n * (n + 1))) for n in range(3)]
    settings = DriveSettings(traces=("ideal",), seconds=1.0, policies=("codriver with verified drafts",))
    (run,) = await LiveDrive(settings, INPUTS, [question_item(one, LIMITS) for one in asked]).run()
    assert [fate.outcome for fate in run.fates] == ["in time"] * 3
    for fate in run.fates:
        assert [(one["engine"], one["outcome"]) for one in fate.attempts] == [
            ("vehicle", "rejected"),
            ("cloud", "answered"),
        ]
        assert fate.text == "The quick brown fox jumps over the lazy dog."
        drafted, written = (int(one["tokens"]) for one in fate.attempts)
        assert drafted + written == 9  # the cloud wrote what the draft had not


class KillsTheVehicle(Unwatched):
    """Ends the vehicle by its id once the drive is on its way."""

    def __init__(self) -> None:
        self.done = False

    def moved(self, run: PolicyRun, at_s: float) -> None:
        if not self.done:
            self.done = True
            for pid in children():
                if b"vehicle" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)


def children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text("ascii").split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds its children in /proc, which only Linux has")
async def test_a_vehicle_that_dies_ends_the_drive_and_leaves_no_process() -> None:
    settings = DriveSettings(traces=("ideal",), seconds=30.0, policies=("codriver",))
    drive = LiveDrive(settings, INPUTS, chat_items(LIMITS)[:3], KillsTheVehicle())
    before = set(children())
    with pytest.raises(EngineUnavailable, match=r"The vehicle process was ended by signal 9. Its last words"):
        async with asyncio.timeout(25):
            await drive.run()
    assert not drive.runs[0].complete
    assert not set(children()) - before
