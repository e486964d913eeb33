"""Does a pass before the rounding help at equal bytes? KL to the reference, the same tokens for all, paired with none.

Each recipe goes the whole way (types by measured KL, second-order rounding) to the same size. The source's own grid
(Q4_1, Q5_1) may not be chosen: a pass that moves weights off it would be compared with what loses nothing. ``kl`` is a
file's own, with the interval over its tokens; ``kl_change`` is the mean of what the pass changes it by, token by token.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from codriver.catalogue import Catalogue, Store
from codriver.optimize.evaluate import WINDOW, log_softmax, pieces_of
from codriver.optimize.ggml import Floats
from codriver.optimize.llama_runtime import LlamaModel
from codriver.optimize.optimise import Optimisation
from codriver.optimize.recipe import recipe_of
from codriver.optimize.requirement import Requirement
from codriver.optimize.task import Settings

from .drive_inputs import data_folder
from .quantise import SUBJECTS
from .rows import Report, Row, machine

_MODEL = "smollm2-135m-instruct-q4_1"
_KINDS = SUBJECTS[0].systems["codriver, without the source's own grid"]
_THREADS = max(1, os.cpu_count() or 1)
RECIPES: Mapping[str, list[dict[str, Any]]] = {
    "no pass": [],
    "awq": [{"use": "awq"}],
    "smooth": [{"use": "smooth"}],
    "rotate, values only": [{"use": "rotate", "stream": False}],
    "rotate": [{"use": "rotate"}],
}


@dataclass(frozen=True)
class Sizes:
    """As ``Settings`` has them; ``megabytes`` that the files may take, and how many of the recipes."""

    windows: int
    judged: int
    sensed: int
    bands: int
    megabytes: tuple[int, ...]
    recipes: int


def run(quick: bool = False) -> Report:
    """Errors: :class:`MissingFile`."""
    model = Store().path(Catalogue.load().entry(_MODEL))
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    sizes = Sizes(4, 1, 1, 1, (88,), 2) if quick else Sizes(16, 8, 1, 3, (88, 100), len(RECIPES))
    with tempfile.TemporaryDirectory(prefix="codriver-passes-") as folder:
        rows = [row for size in sizes.megabytes for row in _rows(model, Path(folder), size, sizes)]
    return Report("passes", machine(), begun, rows)


def _rows(model: Path, folder: Path, megabytes: int, sizes: Sizes) -> list[Row]:
    rows, without = [], np.zeros(0, np.float32)
    for name in [*RECIPES][: sizes.recipes]:
        file, reference = _made(model, folder, (name, megabytes), sizes)
        far = kl_by_token(file, reference, _texts()[1], sizes.judged)
        without = without if without.size else far
        note = f"{file.stat().st_size:,} bytes"
        case = f"{model.stem}, {megabytes} MB"
        rows.append(_row(name, case, "kl", far, note))
        if far is not without:
            rows.append(_row(name, case, "kl_change", far - without, "paired with no pass"))
    return rows


def _made(model: Path, folder: Path, which: tuple[str, int], sizes: Sizes) -> tuple[Path, Path]:
    """The file of a recipe and a size, and the reference; what took long is kept from one size to the next."""
    name, megabytes = which
    out, kept = folder / f"{name} {megabytes}", folder / f"{name}.kept"
    work = out.with_name(out.name + ".work")
    if kept.exists():
        kept.rename(work)
    amounts = (sizes.windows, sizes.judged, sizes.sensed, sizes.bands)
    recipe = recipe_of({"seed": 7, "pass": RECIPES[name]}, name)
    settings = Settings(*_texts(), *amounts, kinds=_KINDS, threads=_THREADS, runs=1, recipe=recipe)
    Optimisation(model, out, settings, lambda step: lambda done, of: None).run(
        [Requirement("size", True, megabytes * 1e6)]
    )
    work.rename(kept)
    return out / "model.gguf", next(kept.glob("reference-*.gguf"))


def _texts() -> tuple[str, str]:
    """To calibrate by, and to score on."""
    text = data_folder() / "text"
    return (
        (text / "wikitext2_train_5k.txt").read_text(encoding="utf-8"),
        (text / "wiki.test.raw").read_text(encoding="utf-8"),
    )


def kl_by_token(candidate: Path, reference: Path, text: str, windows: int) -> Floats:
    """KL(reference ‖ candidate) in nats of each scored token, by the protocol of ``evaluate``."""
    first = WINDOW // 2
    found: list[Floats] = []
    with (
        LlamaModel(candidate) as model, LlamaModel(reference) as judge,
        model.context(WINDOW, _THREADS) as context, judge.context(WINDOW, _THREADS) as right,
    ):  # fmt: skip
        for piece in pieces_of(model, text, windows):
            told = log_softmax(right.logits(piece, first)[:-1])
            found.append((np.exp(told) * (told - log_softmax(context.logits(piece, first)[:-1]))).sum(axis=1))
    return np.concatenate(found)


def _row(system: str, case: str, metric: str, values: Floats, note: str) -> Row:
    mean, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    return Row(system, case, metric, mean, "nats/token", len(values), mean - 1.96 * error, mean + 1.96 * error, note)
