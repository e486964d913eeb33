"""Real ``codriver`` processes with the null engine: nothing to download, a second to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 60.0


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


def environment(**settings: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CODRIVER_")}
    return {**kept, "CODRIVER_ENGINE_KIND": "null", "CODRIVER_ENGINE_EMBEDDER": "", **settings}


def codriver(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    command = [sys.executable, "-m", "codriver", *arguments]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start ``codriver ROLE …`` and return once it serves; whatever still runs at the end is stopped."""
    yield from starting(tmp_path)


def starting(folder: Path) -> Iterator[Callable[..., Running]]:
    """What ``start`` gives, for fixtures of any scope. Ready files go into ``folder``."""
    started: list[subprocess.Popen[str]] = []

    def begin(role: str, *arguments: str, **settings: str) -> Running:
        ready = folder / f"{role}-{len(started)}.json"
        command = [sys.executable, "-m", "codriver", role, "--port", "0", "--ready-file", str(ready), *arguments]
        process = subprocess.Popen(command, env=environment(**settings), stderr=subprocess.PIPE, text=True)
        started.append(process)
        give_up_s = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > give_up_s:
                process.kill()
                assert process.stderr is not None
                pytest.fail(f"{role} did not serve: {process.stderr.read()}")
            time.sleep(0.02)  # waits for another process, whose clock cannot be injected
        return Running(process, json.loads(ready.read_text())["url"])

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)
