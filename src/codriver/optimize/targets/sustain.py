"""Does a file stay as fast as it was? Runs back to back without a pause, each timed, and what drifted over them.

Each run reads a prompt and writes tokens. The drift is Theil and Sen's slope (Sen 1968) over the runs, in percent of
the median over the whole test, with its 95 % interval from Kendall's statistic: a single slow run does not make one.
Run as ``python -m codriver.optimize.targets.sustain FILE THREADS RUNS TOKENS``; it prints one JSON object.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from codriver.core.errors import BadModelFile

from ..llama_runtime import LlamaModel
from .host import frequencies_ghz, temperatures

_WRITTEN = 32


class SustainedRun(msgspec.Struct, frozen=True):
    """``zones``: degrees by thermal zone behind the run; ``ghz``: the cores' clocks. Empty where none are shown."""

    began_s: float
    ttft_ms: float
    decode_tps: float
    zones: dict[str, float]
    ghz: tuple[float, ...]
    load: float


class Drift(msgspec.Struct, frozen=True):
    """From the first run to the last, in percent of the median; ``low`` and ``high``: the 95 % interval."""

    percent: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """False where the interval holds none at all."""
        return self.low > 0 or self.high < 0


class Sustained(msgspec.Struct, frozen=True):
    file: str
    threads: int
    prompt_tokens: int
    runs: tuple[SustainedRun, ...]

    def drift(self, metric: str) -> Drift:
        """Of ``ttft_ms`` or ``decode_tps``."""
        return drift([getattr(run, metric) for run in self.runs])

    def median(self, metric: str) -> float:
        return float(statistics.median(getattr(run, metric) for run in self.runs))


def sustain(file: Path, threads: int, runs: int, prompt_tokens: int) -> Sustained:
    """Errors: :class:`BadModelFile` with what the process said last."""
    command = [sys.executable, "-m", "codriver.optimize.targets.sustain", str(file), str(threads), str(runs)]
    done = subprocess.run([*command, str(prompt_tokens)], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise BadModelFile(f"{file} could not be measured: {lines[-1][:200]}")
    return msgspec.json.decode(done.stdout, type=Sustained)


def drift(values: Sequence[float]) -> Drift:
    """Errors: ``ValueError`` for fewer than four values."""
    n = len(values)
    if n < 4:
        raise ValueError("a drift needs four values")
    slopes = sorted((values[b] - values[a]) / (b - a) for a, b in itertools.combinations(range(n), 2))
    # Kendall's S under no trend is close to normal with this variance (Sen 1968, without ties).
    spread = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    last = len(slopes) - 1
    low, high = (slopes[min(last, max(0, round((last + sign * spread) / 2)))] for sign in (-1, 1))
    scale = 100 * (n - 1) / statistics.median(values)
    return Drift(scale * statistics.median(slopes), scale * low, scale * high)


def main(file: Path, threads: int, runs: int, prompt_tokens: int) -> Sustained:
    found = []
    with LlamaModel(file) as model, model.context(prompt_tokens + _WRITTEN, threads) as context:
        context.logits([7] * prompt_tokens, prompt_tokens - 1)
        start_s = time.perf_counter()
        for _ in range(runs):
            began_s = time.perf_counter()
            token = int(context.logits([7] * prompt_tokens, prompt_tokens - 1)[0].argmax())
            first_s = time.perf_counter()
            for _ in range(_WRITTEN - 1):
                token = int(context.more([token])[0].argmax())
            tps = (_WRITTEN - 1) / (time.perf_counter() - first_s)
            found.append(
                SustainedRun(
                    began_s - start_s, 1e3 * (first_s - began_s), tps, temperatures(), tuple(frequencies_ghz()),
                    os.getloadavg()[0],
                )
            )  # fmt: skip
    return Sustained(file.name, threads, prompt_tokens, tuple(found))


if __name__ == "__main__":
    shown = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(msgspec.json.encode(shown).decode())
