"""Does a search find what no stock format gives? A size, and half of the KL of the best stock file that fits it.

Every file type that llama.cpp writes is made with an imatrix of the same text, and those that fit the size are scored;
the requirement is that size and half of the least KL among them; then ``codriver optimize --search`` looks for it. The
source's own grid (Q4_1 and Q5_1 on a Q4_1 file) is left out, as it would be with a source of full precision.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from codriver.catalogue import Catalogue, Store
from codriver.core.artifact import load_artifact
from codriver.core.errors import RequirementMissed
from codriver.optimize.optimise import Optimisation
from codriver.optimize.recipe import NO_PASSES, Recipe, recipe_of
from codriver.optimize.requirement import Requirement
from codriver.optimize.search import Found, Search, read_found
from codriver.optimize.task import KINDS, Settings

from .quantise import MISSING, STOCK, card, prepared, rows_of, stock, texts
from .rows import Report, Row, machine

_MODEL = "smollm2-135m-instruct-q4_1"
_CLASS = "Q3_K_M"  # its bytes are the size
_THREADS = max(1, os.cpu_count() or 1)
_OWN_GRID = ("Q4_1", "Q5_1")


@dataclass(frozen=True)
class _Amounts:
    windows: int
    judged: int
    sensed: int
    bands: int
    seconds: float
    stock: tuple[str, ...]


def run(quick: bool = False) -> Report:
    """Errors: :class:`MissingFile`, :class:`MissingExtra`."""
    model = Store().path(Catalogue.load().entry(_MODEL))
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    amounts = _Amounts(4, 1, 1, 1, 1.0, (_CLASS,)) if quick else _Amounts(32, 20, 2, 5, 2400.0, tuple(STOCK))
    with tempfile.TemporaryDirectory(prefix="codriver-search-") as folder:
        rows = _measure(model, Path(folder), amounts)
    return Report("search", machine(), begun, rows)


def _measure(model: Path, folder: Path, amounts: _Amounts) -> list[Row]:
    train, test = texts()
    reference, importance = prepared(model, train, folder, amounts.windows)
    limit = stock(reference, folder / "limit.gguf", _CLASS, importance)
    case = f"{model.stem}, the size of {_CLASS}"
    if limit is None:
        return [Row("codriver", case, "kl", 0.0, "nats/token", 0, None, None, MISSING)]
    size = limit.stat().st_size
    rows: list[Row] = []
    for kind in amounts.stock:
        file = stock(reference, folder / "stock.gguf", kind, importance)
        if file is not None and file.stat().st_size <= size:
            rows += rows_of(f"llama.cpp {kind}, imatrix", case, file, card(file, reference, test, amounts.judged))
    best = min(row.value for row in rows if row.metric == "kl")
    required = [Requirement("size", True, float(size)), Requirement("kl", True, best / 2)]
    return rows + _searched(model, folder / "ours", (train, test), amounts, required)


def _searched(
    model: Path, out: Path, read: tuple[str, str], amounts: _Amounts, required: list[Requirement]
) -> list[Row]:
    kinds = tuple(kind for kind in KINDS if kind not in _OWN_GRID)
    sizes = (amounts.windows, amounts.judged, amounts.sensed, amounts.bands)
    settings = Settings(*read, *sizes, kinds=kinds, threads=_THREADS)
    optimisation = Optimisation(model, out, settings, lambda step: lambda done, of: None)
    recipes: dict[str, Recipe] = {"none": NO_PASSES, "awq": recipe_of({"pass": [{"use": "awq"}]}, "awq")}
    met = 1.0
    try:
        Search(optimisation, recipes, amounts.seconds).run(required)
    except RequirementMissed:
        met = 0.0
    found = read_found(out)
    assert found is not None
    told = f"{required[0]}, {required[1]}: half of the least KL of a stock format that fits"
    case = f"{model.stem}, the size of {_CLASS}"
    file = out / "model.gguf"
    own = rows_of("codriver", case, file, load_artifact(out).card)
    return [*own, Row("codriver", case, "requirement met", met, "", 1, note=told), *_trials(found, case)]


def _trials(found: Found, case: str) -> list[Row]:
    states = [one.state for one in found.records]
    counts = {state: states.count(state) for state in ("measured", "scored", "expected")}
    note = ", ".join(f"{count} {state}" for state, count in counts.items())
    return [
        Row("codriver", case, "trials", float(len(states)), "", 1, note=note),
        *(
            Row(
                *("codriver", f"{case}, front", "kl", one.kl, "nats/token", 1),
                note=f"{one.size_bytes:,} B, {one.recipe}",
            )
            for one in found.front
        ),
    ]
