"""Measuring files on this machine to calibrate predictions by, and making the files: one model in several types.

``python -m codriver.optimize.targets.calibrating THREADS RUNS FILE TOKENS…`` measures one file in a process of its own.
Times are the process's own (:func:`~codriver.optimize.targets.matmul.busy_s`), the fastest of the runs: what a machine
does that has nothing else to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from codriver.core.artifact import sha256_of
from codriver.core.errors import BadConfigValue, BadModelFile

from ..ggml import quantise
from ..gguf_file import Changes, GgufFile, fits, rewrite
from ..latency import peak_bytes
from ..llama_runtime import LlamaModel
from ..rounding import GUESSED
from ..saving import save
from .host import HostFigures
from .matmul import busy_s
from .predict import LEAST_FILES, Calibration, Timed, fit, here, layout_of, leave_one_out
from .target import home

PROMPTS = (64, 256)
VARIANTS = ("Q8_0", "Q4_0", "Q6_K")
_WRITTEN = 16
_FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q3_K": "Q4_0", "Q2_K": "Q4_0"}


def calibrate(files: Sequence[Path], figures: HostFigures, runs: int, told: Callable[[int, int], None]) -> Calibration:
    """Measure ``files``, fit, and keep it. Errors: :class:`BadConfigValue` for fewer than four files."""
    if len(files) < LEAST_FILES:
        raise BadConfigValue(
            f"Calibration needs {LEAST_FILES} files at least, each predicted from the others; {len(files)} were given.",
            param="models",
        )
    timed = []
    for number, file in enumerate(files):
        told(number, len(files))
        timed.append(timed_here(file, figures.threads, runs))
    told(len(files), len(files))
    rates = here(figures)
    found = Calibration(
        machine=figures.machine,
        started=time.strftime("%Y-%m-%dT%H:%M:%S"),
        threads=figures.threads,
        load=os.getloadavg()[0],
        fitted=fit(timed, rates),
        files=tuple(timed),
        errors=leave_one_out(timed, rates),
    )
    save(home() / "calibration.json", msgspec.json.encode(found).decode())
    return found


def variants(source: Path, folder: Path, kinds: Sequence[str] = VARIANTS) -> list[Path]:
    """``source`` rounded to the nearest in each of ``kinds`` (or what llama.cpp puts in where a row does not fit).

    Made once: a file that is there is taken.
    """
    file = GgufFile(source)
    stem = f"{source.stem}-{sha256_of(source)[:8]}"
    made = []
    for kind in kinds:
        target = folder / f"{stem}-{kind}.gguf"
        made.append(target)
        if target.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        chosen = {}
        for tensor in file:
            if len(tensor.shape) == 2 and fits("Q4_0", tensor):
                chosen[tensor.name] = kind if fits(kind, tensor) else _FALLBACK[kind]
        changes = Changes(
            {name: to for name, to in chosen.items() if to != file[name].type}, {"general.file_type": GUESSED}
        )
        rewrite(file, target, changes, lambda tensor, to=chosen: quantise(to[tensor.name], file.weights(tensor)))  # type: ignore[misc]
    return made


def timed_here(file: Path, threads: int, runs: int) -> Timed:
    """Errors: :class:`BadModelFile` with what the process said last."""
    command = [sys.executable, "-m", "codriver.optimize.targets.calibrating", str(threads), str(runs), str(file)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([*command, *map(str, PROMPTS)], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise BadModelFile(f"{file} could not be measured: {lines[-1][:200]}")
    return msgspec.json.decode(done.stdout, type=Timed)


def main(threads: int, runs: int, file: Path, prompts: Sequence[int]) -> Timed:
    before = peak_bytes()
    with LlamaModel(file) as model, model.context(max(prompts) + 32, threads) as context:

        def prompt(tokens: int) -> float:
            began_s = busy_s(threads)
            context.logits([7] * tokens, tokens - 1)
            return busy_s(threads) - began_s

        def token() -> float:
            last = int(context.logits([7] * 8, 7)[0].argmax())
            began_s = busy_s(threads)
            for _ in range(_WRITTEN):
                last = int(context.more([last])[0].argmax())
            return (busy_s(threads) - began_s) / _WRITTEN

        prompt(prompts[0])
        taken: dict[str, list[float]] = {str(tokens): [] for tokens in prompts}
        written = []
        for _ in range(runs):
            for tokens in prompts:
                taken[str(tokens)].append(prompt(tokens))
            written.append(token())
        memory = float(peak_bytes() - before)
    return Timed(layout_of(file), {key: min(values) for key, values in taken.items()}, min(written), memory)


if __name__ == "__main__":
    shown = main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), [int(tokens) for tokens in sys.argv[4:]])
    sys.stdout.write(msgspec.json.encode(shown).decode())
