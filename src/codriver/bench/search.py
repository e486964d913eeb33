"""Does a search find what no stock format gives? A size, and half of the KL of the best stock file that fits it.

Every file type that llama.cpp writes is made with an imatrix of the same text, and those that fit the size are scored;
the requirement is that size and half of the least KL among them, before anything is searched; then ``codriver optimize
--search`` looks for it. The source's own grid (Q4_1 and Q5_1 on a Q4_1 file) is left out of what the search may choose,
as it would be with a source of full precision. ``trials``: how many the search made, and which of them met it first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from codriver.catalogue import Catalogue, Store
from codriver.core.artifact import Measured, load_artifact
from codriver.core.errors import BadModelFile, RequirementMissed
from codriver.optimize.evaluate import Run, compare
from codriver.optimize.optimise import Optimisation, card_of
from codriver.optimize.predictions import kept_predictions
from codriver.optimize.recipe import NO_PASSES, Recipe, recipe_of
from codriver.optimize.requirement import Requirement
from codriver.optimize.search import Search
from codriver.optimize.search_records import Found, read_found
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
    amounts = _Amounts(4, 1, 1, 1, 1.0, (_CLASS,)) if quick else _Amounts(16, 10, 1, 3, 1200.0, tuple(STOCK))
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
    right = kept_predictions(reference, test, amounts.judged, _THREADS, folder)

    def scored(file: Path) -> list[Measured]:
        if right is None:
            return card(file, reference, test, amounts.judged)
        return card_of(compare(file, right.rows, right.pieces, Run(_THREADS)), file)

    rows: list[Row] = []
    for kind in amounts.stock:
        system, file = f"llama.cpp {kind}, imatrix", folder / f"stock-{kind}.gguf"
        rows += _stock_rows((system, case, size), partial(stock, reference, file, kind, importance), scored)
        file.unlink(missing_ok=True)
    best = min(row.value for row in rows if row.metric == "kl")
    required = [Requirement("size", True, float(size)), Requirement("kl", True, best / 2)]
    return rows + _searched(model, folder / "ours", (train, test), amounts, required)


def _stock_rows(
    called: tuple[str, str, int], make: Callable[[], Path | None], scored: Callable[[Path], list[Measured]]
) -> list[Row]:
    """What a stock type costs and loses; of one that does not fit, or that llama.cpp does not write, only that."""
    system, case, size = called
    try:
        file = make()
    except BadModelFile as error:
        return [Row(system, case, "bytes", 0.0, "bytes", 0, note=f"not written: {error.message}")]
    assert file is not None
    found = file.stat().st_size
    if found > size:
        return [Row(system, case, "bytes", float(found), "bytes", 1, note="does not fit: not scored")]
    return rows_of(system, case, file, scored(file))


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
    note = ", ".join(f"{states.count(state)} {state}" for state in ("measured", "scored", "expected"))
    measured = [one for one in found.records if one.state == "measured"]
    met = next((number + 1 for number, one in enumerate(measured) if not one.missed), None)
    note += "; none met the requirement" if met is None else f"; number {met} of the measured ones met it first"
    front = [
        Row(
            *("codriver", f"{case}, front", "kl", one.kl, "nats/token", 1),
            note=f"{one.size_bytes:,} B, {one.recipe}, {one.kinds}, damping {one.damping}",
        )
        for one in found.front
    ]
    return [Row("codriver", case, "trials", float(len(states)), "", 1, note=note), *front]
