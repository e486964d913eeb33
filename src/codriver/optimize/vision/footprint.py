"""How much memory does a graph take in a runtime? Measured in a process of its own.

The most that the process had, less what it had before it loaded the file. Run as ``python -m
codriver.optimize.vision.footprint FILE RUNTIME THREADS``; it prints bytes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from codriver.core.artifact import Measured
from codriver.core.errors import BadModelFile

from ..latency import peak_bytes
from .runtime import open_graph

_RUNS = 3


def footprint(file: Path, runtime: str, threads: int) -> Measured:
    """``rss`` in bytes. Errors: :class:`BadModelFile` with what the process said last."""
    command = [sys.executable, "-m", "codriver.optimize.vision.footprint", str(file), runtime, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise BadModelFile(f"{file} could not be measured in {runtime}: {lines[-1][:200]}")
    note = f"{runtime}, {threads} threads: the most beyond what the process had before it loaded the file"
    return Measured("rss", float(done.stdout), "bytes", 1, note=note)


def main(file: Path, runtime: str, threads: int) -> int:
    """What :func:`footprint` runs in a process of its own."""
    before = peak_bytes()
    graph = open_graph(file, runtime, threads)
    for _ in range(_RUNS):
        graph.run(np.zeros(graph.shape, np.float32))
    return peak_bytes() - before


if __name__ == "__main__":
    name, where, count = sys.argv[1:]
    sys.stdout.write(str(main(Path(name), where, int(count))))
