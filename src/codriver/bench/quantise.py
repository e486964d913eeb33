"""Files of equal size: llama.cpp's own K-quant mixes with an imatrix, and types chosen by measured KL and rounded to
second order. Perplexity and KL on WikiText-2's test file, calibrated on the train part, both read by llama.cpp.

The reference is the catalogue's file with its weights as they are: full-precision weights of these models are not to be
had here, so every figure is against that. The rival is found in ``$CODRIVER_RIVALS`` (``make bench`` fetches it).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from codriver.catalogue import Catalogue, Store
from codriver.core.artifact import Measured
from codriver.core.errors import BadModelFile
from codriver.optimize.calibrate import read_inputs
from codriver.optimize.evaluate import Run, evaluate
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.optimise import Optimisation, card_of
from codriver.optimize.requirement import Requirement
from codriver.optimize.rounding import write_reference
from codriver.optimize.task import KINDS, Settings

from .drive_inputs import data_folder
from .rows import Report, Row, machine

_MODEL = "smollm2-135m-instruct-q4_1"
# The source holds Q4_1 blocks: where those and Q5_1's may be chosen, its own values come back and nothing is lost. The
# second system must do without, as it would have to with a source of full precision.
SYSTEMS = {
    "codriver": KINDS,
    "codriver, without the source's own grid": tuple(kind for kind in KINDS if kind not in ("Q4_1", "Q5_1")),
}
CLASSES = ("Q4_K_M", "Q3_K_M", "Q2_K")
STOCK = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14,
    "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30,
}  # fmt: skip
_LIBRARIES = "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
MISSING = "not measured: llama.cpp's own quantisation comes from npm, by `make bench`"
_THREADS = max(1, os.cpu_count() or 1)


@dataclass(frozen=True)
class Sizes:
    """How much is done: windows of 512 tokens for calibration, to see what the model suffers, and for scoring; runs of
    layers that are looked at by themselves; which sizes, and how many of the systems.
    """

    windows: int
    judged: int
    sensed: int
    bands: int
    kinds: tuple[str, ...]
    systems: int


def run(quick: bool = False) -> Report:
    """Without the rival there is no size to meet: its rows say so. Errors: :class:`MissingFile`."""
    model = Store().path(Catalogue.load().entry(_MODEL))
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    sizes = Sizes(4, 1, 1, 1, ("Q2_K",), 1) if quick else Sizes(64, 40, 2, 5, CLASSES, len(SYSTEMS))
    with tempfile.TemporaryDirectory(prefix="codriver-quantise-") as folder:
        rows = _measure(model, Path(folder), sizes)
    return Report("quantise", machine(), begun, rows)


def _measure(model: Path, folder: Path, sizes: Sizes) -> list[Row]:
    train, test = texts()
    reference, importance = prepared(model, train, folder, sizes.windows)
    rows = rows_of("shipped file", model.stem, model, card(model, reference, test, sizes.judged))
    work: dict[str, Path] = {}
    for kind in sizes.kinds:
        case = f"{model.stem}, the size of {kind}"
        called = f"llama.cpp {kind}, imatrix"
        rival = stock(reference, folder / f"{kind}.gguf", kind, importance)
        if rival is None:
            rows.append(Row(called, case, "kl", 0.0, "nats/token", 0, None, None, MISSING))
            continue
        rows += rows_of(called, case, rival, card(rival, reference, test, sizes.judged))
        for number, (system, types) in enumerate([*SYSTEMS.items()][: sizes.systems]):
            out = folder / f"ours-{kind}-{number}"
            if system in work:
                work[system].rename(out.with_name(out.name + ".work"))
            amounts = (sizes.windows, sizes.judged, sizes.sensed, sizes.bands)
            settings = Settings(train, test, *amounts, kinds=types, threads=_THREADS)
            made = Optimisation(model, out, settings, lambda step: lambda done, of: None)
            trial = made.run([Requirement("size", True, float(rival.stat().st_size))])
            rows += rows_of(system, case, out / "model.gguf", trial.card)
            work[system] = out.with_name(out.name + ".work")
    return rows


def texts() -> tuple[str, str]:
    """WikiText-2's train part, to calibrate on, and its test file, to score."""
    text = data_folder() / "text"
    return (text / "wikitext2_train_5k.txt").read_text(encoding="utf-8"), (text / "wiki.test.raw").read_text(
        encoding="utf-8"
    )


def prepared(model: Path, train: str, folder: Path, windows: int) -> tuple[Path, Path]:
    """The reference, and what goes into its matrices, both of which the rival is given too."""
    reference, importance = folder / "reference.gguf", folder / "imatrix.npz"
    source = GgufFile(model)
    write_reference(source, reference, "F32" if sum(t.weights for t in source) <= 5e8 else "F16")
    inputs = read_inputs(reference, train, windows, Run(_THREADS), lambda name: False)
    names = [t.name for t in source if t.name in inputs]
    np.savez(importance, **{name: inputs.importance(name) for name in names})  # type: ignore[arg-type]  # the stub takes a name for a flag
    return reference, importance


def card(file: Path, reference: Path, text: str, judged: int) -> list[Measured]:
    """Scored on the first ``judged`` windows of ``text``."""
    return card_of(evaluate(file, reference, text, judged, Run(_THREADS)), file)


def stock(reference: Path, target: Path, kind: str, importance: Path) -> Path | None:
    """llama.cpp's own file of that type; ``None`` where the rival is not installed.

    Errors: :class:`BadModelFile` with what it said last.
    """
    libraries = Path(os.environ.get("CODRIVER_RIVALS") or "/nonexistent") / _LIBRARIES
    if not libraries.is_dir():
        return None
    command = [sys.executable, "-m", "codriver.bench.quantise_rival", str(libraries), str(reference), str(target)]
    done = subprocess.run([*command, str(STOCK[kind]), str(importance)], capture_output=True, text=True, check=False)
    if done.returncode or not target.exists():
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise BadModelFile(f"llama.cpp did not write {kind}: {lines[-1][:200]}")
    return target


def rows_of(system: str, case: str, file: Path, card: Iterable[Measured]) -> list[Row]:
    tensors = GgufFile(file).header.tensors
    bits = 8 * sum(t.size_bytes for t in tensors) / sum(t.weights for t in tensors)
    metrics = {"kl": "kl", "ppl": "ppl", "same_top": "same_top", "size": "bytes"}
    told = {"size": f"{bits:.3f} bits per weight"}
    return [
        Row(system, case, metrics[one.metric], one.value, one.unit, one.n, one.low, one.high, told.get(one.metric, ""))
        for one in card
        if one.metric in metrics
    ]
