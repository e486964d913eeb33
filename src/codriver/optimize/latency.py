"""How fast is a file, and how much memory does it take? Measured in a process of its own, in the runtime that loads it.

First tokens of prompts read from an empty memory, and tokens a second while writing one at a time. ``rss``: the most
that the process had, less what it had before it loaded the file. Run as ``python -m codriver.optimize.latency FILE
THREADS RUNS TOKENS…``; it prints one JSON array.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from codriver.core.artifact import Measured
from codriver.core.errors import BadModelFile

from .llama_runtime import Context, LlamaModel

_WRITTEN = 32


def measure(file: Path, threads: int, runs: int, prompts: Sequence[int]) -> list[Measured]:
    """``prompts``: lengths in tokens. Errors: :class:`BadModelFile` with what the process said last."""
    command = [sys.executable, "-m", "codriver.optimize.latency", str(file), str(threads), str(runs)]
    done = subprocess.run([*command, *map(str, prompts)], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise BadModelFile(f"{file} could not be measured: {lines[-1][:200]}")
    return msgspec.json.decode(done.stdout, type=list[Measured])


def main(file: Path, threads: int, runs: int, prompts: Sequence[int]) -> list[Measured]:
    """What :func:`measure` runs in a process of its own."""
    before = peak_bytes()
    with LlamaModel(file) as model:
        room = max(prompts) + _WRITTEN
        with model.context(room, threads) as context:
            first_s = {tokens: [_first(context, tokens) for _ in range(runs + 1)][1:] for tokens in prompts}
            wrote = [_writes(context) for _ in range(runs + 1)][1:]
            rss = peak_bytes() - before
    note = f"{threads} threads, median of {runs}, from the least to the most"
    found = [_row(f"ttft_ms@{tokens}", [1e3 * s for s in taken], "ms", note) for tokens, taken in first_s.items()]
    return [*found, _row("decode_tps", wrote, "tokens/s", note), Measured("rss", float(rss), "bytes", 1)]


def _first(context: Context, tokens: int) -> float:
    began_s = time.perf_counter()
    context.logits([7] * tokens, tokens - 1)
    return time.perf_counter() - began_s


def _writes(context: Context) -> float:
    """Tokens a second, one after the other behind a short prompt."""
    token = int(context.logits([7] * 8, 7)[0].argmax())
    began_s = time.perf_counter()
    for _ in range(_WRITTEN):
        token = int(context.more([token])[0].argmax())
    return _WRITTEN / (time.perf_counter() - began_s)


def _row(metric: str, values: list[float], unit: str, note: str) -> Measured:
    return Measured(metric, statistics.median(values), unit, len(values), min(values), max(values), note, tuple(values))


def peak_bytes() -> int:
    """The most memory that this process ever had; 0 where there is no /proc."""
    return _status_bytes("VmHWM:")


def resident_bytes() -> int:
    """The memory that this process has; 0 where there is no /proc."""
    return _status_bytes("VmRSS:")


def _status_bytes(field: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    told = main(Path(name), int(numbers[0]), int(numbers[1]), [int(number) for number in numbers[2:]])
    sys.stdout.write(msgspec.json.encode(told).decode())
