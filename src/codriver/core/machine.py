"""The machine in a phrase, so that a figure can say where it comes from."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def processor() -> str:
    """What the processor calls itself, and how many cores there are: what a kept measurement is good for."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} cores"


def machine() -> str:
    """The processor, the load, and the Python that runs here."""
    return f"{processor()}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
