"""Files of equal size: llama.cpp's own K-quant mixes with an imatrix, and types chosen by measured KL and rounded to
second order. Perplexity and KL on WikiText-2's test file, calibrated on the train part, both read by llama.cpp.

The reference is the catalogue's file with its weights as they are: full-precision weights of these models are not to be
had here, so every figure is against that. The rival is found in ``$CODRIVER_RIVALS`` (``make bench`` fetches it). The
whole takes hours on two cores: what was made and measured is kept in ``$CODRIVER_QUANTISE``, where that is set, and a
run that was interrupted goes on from there.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from codriver.catalogue import Catalogue, Store
from codriver.core.artifact import Measured
from codriver.core.errors import BadModelFile, CodriverError
from codriver.optimize.calibrate import read_inputs, spread
from codriver.optimize.environments import Toolkit, call
from codriver.optimize.evaluate import WINDOW, Progress, Run, compare, evaluate
from codriver.optimize.formats.hf_folder import write_plain
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.latency import peak_bytes
from codriver.optimize.llama_runtime import LlamaModel
from codriver.optimize.optimise import Optimisation, card_of
from codriver.optimize.predictions import kept_predictions
from codriver.optimize.requirement import Requirement
from codriver.optimize.rounding import write_reference
from codriver.optimize.task import KINDS, Settings

from .drive_inputs import data_folder
from .rows import Report, Row, machine

CLASSES = ("Q4_K_M", "Q3_K_M", "Q2_K")
STOCK = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14,
    "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30,
}  # fmt: skip
# Its iterations by scheme, as it recommends them: 0 (its own optimised rounding to the nearest, with an imatrix of its
# own) for all bits but 3, and there as many as it does by itself. Its ``enable_alg_ext`` is not used.
AUTOROUND = {"q4_k_m": 0, "q3_k_m": 200, "q2_k_s": 0}
_AUTOROUND = Toolkit("auto-round", ("auto-round==0.16.1", "torch==2.13.0", "gguf==0.19.0"))
_LIBRARIES = "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
MISSING = "not measured: llama.cpp's own quantisation comes from npm, by `make bench`"
_THREADS = max(1, os.cpu_count() or 1)
RSS_CEILING_BYTES = 6_000_000_000
_LOG = logging.getLogger(__name__)
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """How much is done: windows of 512 tokens for calibration, to see what the model suffers, and for scoring; and how
    many runs of layers are looked at by themselves.
    """

    windows: int
    judged: int
    sensed: int
    bands: int


@dataclass(frozen=True)
class Subject:
    """A model of the catalogue. ``own``: the types that hold the grid of what it comes in. Where those may be chosen,
    its own values come back and nothing is lost; the second system must do without, as it would have to with a source
    of full precision. ``autoround``: the schemes that AutoRound is asked for, and its iterations.
    """

    model: str
    own: tuple[str, ...]
    sizes: Sizes
    autoround: Mapping[str, int] = field(default_factory=dict)

    @property
    def systems(self) -> dict[str, tuple[str, ...]]:
        return {
            "codriver": KINDS,
            "codriver, without the source's own grid": tuple(kind for kind in KINDS if kind not in self.own),
        }


SUBJECTS = (
    Subject("smollm2-135m-instruct-q4_1", ("Q4_1", "Q5_1"), Sizes(16, 8, 1, 3), AUTOROUND),
    # A sub-block of Q4_K is a block of Q4_1, with its scale and its least value rounded to 16 bits.
    Subject("qwen2.5-coder-1.5b-instruct-q4_k_m", ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q6_K"), Sizes(4, 2, 1, 1)),
)
_QUICK = Subject(SUBJECTS[0].model, SUBJECTS[0].own, Sizes(4, 1, 1, 1))


def run(quick: bool = False) -> Report:
    """Without the rival there is no size to meet: its rows say so. Errors: :class:`MissingFile`."""
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    kept = os.environ.get("CODRIVER_QUANTISE")
    with (
        nullcontext(kept) if kept and not quick else tempfile.TemporaryDirectory(prefix="codriver-quantise-") as folder
    ):
        rows: list[Row] = []
        for subject in (_QUICK,) if quick else SUBJECTS:
            bench = Bench(subject, Store().path(Catalogue.load().entry(subject.model)), Path(folder) / subject.model)
            rows += bench.shipped()
            for kind in ("Q2_K",) if quick else CLASSES:
                rows += bench.measured(kind, [*subject.systems][: 1 if quick else None])
            for scheme in () if quick else subject.autoround:
                rows += bench.autoround(scheme, subject.systems)
    return Report("quantise", machine(), begun, rows)


class Bench:
    """One model. What was made and measured of it is kept in ``folder``."""

    def __init__(self, subject: Subject, model: Path, folder: Path) -> None:
        self._subject, self._model, self._folder = subject, model, folder
        self._train, self._test = texts()
        folder.mkdir(parents=True, exist_ok=True)
        # The reference and its predictions are the optimisation's own, so that neither is made twice.
        self._reference = self._optimisation(KINDS, _Peak(folder / "peak.json")).task.reference.path

    def shipped(self) -> list[Row]:
        return self._kept("shipped", lambda: self._rows("shipped file", self._model.stem, self._model))

    def measured(self, kind: str, systems: Iterable[str]) -> list[Row]:
        """llama.cpp's file of that type, and what each of ``systems`` makes of no more bytes."""
        case = f"{self._model.stem}, the size of {kind}"
        called = f"llama.cpp {kind}, imatrix"
        importance = imatrix(self._model, self._train, self._folder, self._subject.sizes.windows)
        file = self._folder / f"{kind}.gguf"
        rival = file if file.exists() else stock(self._reference, file, kind, importance)
        if rival is None:
            return [Row(called, case, "kl", 0.0, "nats/token", 0, None, None, MISSING)]
        return self._beside(called, case, rival, systems)

    def autoround(self, scheme: str, systems: Iterable[str]) -> list[Row]:
        """AutoRound's file of that scheme, calibrated on the same windows, likewise; a row with its last words where it
        makes none.
        """
        case, called = f"{self._model.stem}, the size of AutoRound's {scheme}", f"AutoRound {scheme}"
        file = self._folder / f"autoround-{scheme}.gguf"
        if not file.exists():
            try:
                autoround(self._model, file, (scheme, self._subject.autoround[scheme]), self._windows())
                self._rows(called, case, file)  # that llama.cpp loads it
            except CodriverError as error:
                file.unlink(missing_ok=True)
                return [Row(called, case, "kl", 0.0, "nats/token", 0, None, None, f"not measured: {error.message}")]
        return self._beside(called, case, file, systems)

    def _windows(self) -> Ids:
        """The calibration text as the imatrix has it."""
        with LlamaModel(self._model) as model:
            ids = model.tokens(self._train)
        return np.array(spread(ids, WINDOW, min(self._subject.sizes.windows, len(ids) // WINDOW)))

    def _beside(self, called: str, case: str, rival: Path, systems: Iterable[str]) -> list[Row]:
        rows = self._kept(f"{rival.stem}-rival", lambda: self._rows(called, case, rival))
        for system in systems:
            rows += self._made(system, case, rival)
        return rows

    def _made(self, system: str, case: str, rival: Path) -> list[Row]:
        number = [*self._subject.systems].index(system)

        def make() -> list[Row]:
            peak = _Peak(self._folder / "peak.json")
            optimisation = self._optimisation(self._subject.systems[system], peak)
            trial = optimisation.run([Requirement("size", True, float(rival.stat().st_size))])
            file = self._folder / f"ours-{rival.stem}-{number}.gguf"
            (optimisation.out / "model.gguf").replace(file)
            for left in [*optimisation.out.iterdir()]:
                left.unlink()
            optimisation.out.rmdir()
            return [*rows_of(system, case, file, trial.card), peak.row(system, case, trial.lineage[-1])]

        return self._kept(f"{rival.stem}-{number}", make)

    def _optimisation(self, kinds: tuple[str, ...], peak: _Peak) -> Optimisation:
        sizes = self._subject.sizes
        amounts = (sizes.windows, sizes.judged, sizes.sensed, sizes.bands)
        settings = Settings(
            *(self._train, self._test, *amounts), kinds=kinds, threads=_THREADS, timing=lambda *_: list[Measured]()
        )
        return Optimisation(self._model, self._folder / "ours", settings, peak.told)

    def _rows(self, system: str, case: str, file: Path) -> list[Row]:
        return rows_of(system, case, file, card(file, self._reference, self._test, self._subject.sizes.judged))

    def _kept(self, name: str, make: Callable[[], list[Row]]) -> list[Row]:
        file = self._folder / f"rows-{name}.json"
        if not file.exists():
            part = file.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(make()))
            part.replace(file)
        return msgspec.json.decode(file.read_bytes(), type=list[Row])


class _Peak:
    """The most memory that this process has while it quantises a model, over all goes at it; kept in ``file``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        # The kernel forgets the peak so far: what was scored before is no part of it. Where it does not, it counts.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def told(self, step: str) -> Progress:
        _LOG.info("%s (peak so far %.2f GB)", step, self.bytes() / 1e9)

        def tell(done: int, of: int) -> None:
            _LOG.info("%s: %d of %d (peak so far %.2f GB)", step, done, of, self.bytes() / 1e9)

        return tell

    def bytes(self) -> int:
        before = msgspec.json.decode(self._file.read_bytes(), type=int) if self._file.exists() else 0
        found = max(before, peak_bytes())
        self._file.write_bytes(msgspec.json.encode(found))
        return found

    def row(self, system: str, case: str, how: str) -> Row:
        told = f"so far, while it quantises this model; ceiling {RSS_CEILING_BYTES:,}; {how}"
        return Row(system, case, "peak_rss", float(self.bytes()), "bytes", 1, None, None, told)


def texts() -> tuple[str, str]:
    """WikiText-2's train part, to calibrate on, and its test file, to score."""
    text = data_folder() / "text"
    return (text / "wikitext2_train_5k.txt").read_text(encoding="utf-8"), (text / "wiki.test.raw").read_text(
        encoding="utf-8"
    )


def prepared(model: Path, train: str, folder: Path, windows: int) -> tuple[Path, Path]:
    """The reference, and what goes into its matrices, both of which the rival is given too."""
    reference = folder / "reference.gguf"
    source = GgufFile(model)
    write_reference(source, reference, "F32" if sum(t.weights for t in source) <= 5e8 else "F16")
    return reference, imatrix(model, train, folder, windows)


def imatrix(model: Path, train: str, folder: Path, windows: int) -> Path:
    """What goes into each matrix, for the rival; kept in ``folder``."""
    importance = folder / f"imatrix-{windows}.npz"
    if not importance.exists():
        part = importance.with_suffix(".part")
        part.write_bytes(read_inputs(model, train, windows, Run(_THREADS), lambda name: False).packed())
        part.replace(importance)
    return importance


def card(file: Path, reference: Path, text: str, judged: int) -> list[Measured]:
    """Scored on the first ``judged`` windows of ``text``. What the reference predicts is kept beside it."""
    kept = kept_predictions(reference, text, judged, _THREADS, reference.parent)
    if kept is None:
        return card_of(evaluate(file, reference, text, judged, Run(_THREADS)), file)
    return card_of(compare(file, kept.rows, kept.pieces, Run(_THREADS)), file)


def stock(reference: Path, target: Path, kind: str, importance: Path) -> Path | None:
    """llama.cpp's own file of that type; ``None`` where the rival is not installed.

    Errors: :class:`BadModelFile` with what it said last.
    """
    libraries = Path(os.environ.get("CODRIVER_RIVALS") or "/nonexistent") / _LIBRARIES
    if not libraries.is_dir():
        return None
    part = target.with_name(target.name + ".part")
    command = [sys.executable, "-m", "codriver.bench.quantise_rival", str(libraries), str(reference), str(part)]
    done = subprocess.run([*command, str(STOCK[kind]), str(importance)], capture_output=True, text=True, check=False)
    if done.returncode or not part.exists():
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise BadModelFile(f"llama.cpp did not write {kind}: {lines[-1][:200]}")
    part.replace(target)
    return target


def autoround(model: Path, target: Path, how: tuple[str, int], windows: Ids) -> None:
    """AutoRound's file, made in an environment of its own, which is made first where it is missing. ``how``: its
    scheme, and iterations.

    Errors: those of ``call``.
    """
    with tempfile.TemporaryDirectory(prefix="codriver-autoround-", dir=target.parent) as folder:
        plain, ids, part = Path(folder) / "plain", Path(folder) / "ids.npy", Path(folder) / "made.gguf"
        write_plain(model, plain, _LOG.info)
        np.save(ids, windows)
        script = Path(__file__).with_name("quantise_autoround.py")
        scheme, iterations = how
        call(_AUTOROUND, script, [str(plain), str(part), f"gguf:{scheme}", str(ids), str(iterations)], _LOG.info)
        part.replace(target)


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
