"""Recipes, sizes and ways of rounding, tried for as long as there is time; what meets the requirement best is kept.

Optuna proposes (multi-objective TPE, Ozaki et al. 2020): smaller and nearer to the reference, what misses a requirement
last. What is cheap decides first: the size is exact before anything is written, the expected KL is that of the
allocation, scaled by what was measured so far; then a few windows are scored; only what is left is scored in full and
timed. Each trial is in a journal in the work folder, so that an interrupted search goes on; the budget is wall time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from codriver.core.artifact import Measured
from codriver.core.errors import BadConfigValue, MissingExtra

from .allocate import Allocation
from .optimise import SENSITIVITY, Measuring, Optimisation, Trial
from .recipe import Recipe
from .requirement import Requirement
from .search_space import KINDS, Proposal
from .variant import Variant

if TYPE_CHECKING:
    from .search_journal import Journal

RESULT = "search.json"
_HOPELESS = 4.0  # an expected KL that many times over the limit is not tried
_NOTHING_FITS = 99.0  # nats: the types that may be chosen do not fit the size
_ALIKE = 12  # proposals in a row that were tried before: there is nothing new
_SMALLEST_SHARE = 0.7  # of a required size


class Record(msgspec.Struct, frozen=True):
    """One trial. ``state``: how far it came. ``broken``: by how much each requirement is missed, as a share; 0 or less
    where it is met.
    """

    recipe: str
    kinds: str
    damping: float
    key: str
    size_bytes: int
    expected_kl: float
    state: Literal["expected", "scored", "measured"]
    values: dict[str, float]
    broken: list[float]
    missed: list[str]
    lineage: list[str] = []
    card: list[Measured] = []
    sensed: str = ""

    @property
    def kl(self) -> float:
        return self.values.get("kl", self.expected_kl)


class Found(msgspec.Struct, frozen=True):
    """What a search leaves beside its artifact. ``front``: the measured records that no other beats in both KL and
    size, the smallest first.
    """

    requirements: list[str]
    records: list[Record]
    front: list[Record]


class Search:
    """``recipes`` by name; ``seconds`` of wall time, from the call of :meth:`run` on. ``now``: monotonic seconds."""

    def __init__(
        self, optimisation: Optimisation, recipes: Mapping[str, Recipe], seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        if importlib.util.find_spec("optuna") is None:
            raise MissingExtra("A search is led by Optuna: pip install 'codriver[optimize]'.")
        self._optimisation, self._recipes, self._seconds, self._now = optimisation, recipes, seconds, now
        self._task = optimisation.task
        self._variants: dict[str, Variant] = {}

    def run(self, requirements: Sequence[Requirement]) -> Trial:
        """The measured trial that misses least, and of those the one nearest to the reference; kept in the artifact's
        folder, with ``search.json`` beside it. Errors: :class:`RequirementMissed`.
        """
        end_s = self._now() + self._seconds
        measuring = Measuring(self._task, requirements)
        asked = repr(
            (self._task.sha256, [str(one) for one in requirements], sorted(self._recipes), self._task.settings)
        )
        from .search_journal import Journal

        journal = Journal(self._task.work, hashlib.sha256(asked.encode()).hexdigest()[:16], list(self._recipes))
        records = self._with_files(journal.records(Record))
        alike = 0
        while not any(one.state == "measured" for one in records) or (self._now() < end_s and alike < _ALIKE):
            proposal = journal.propose()
            self._task.told(f"trial {len(records) + 1}: {proposal.recipe}")
            before = len({one.key for one in records})
            record = self._record(proposal, measuring, records)
            journal.tell(proposal, record, (record.kl, record.size_bytes), record.broken)
            records.append(record)
            alike = 0 if len({one.key for one in records}) > before else alike + 1
            self._tidy(records)
        return self._kept(records, measuring)

    def _journal(self, requirements: Sequence[Requirement]) -> Journal:
        """Of this search: another source, requirement, recipe or amount of text is another search."""
        from .search_journal import Journal

        asked = (self._task.sha256, [str(one) for one in requirements], self._recipes, self._task.settings)
        return Journal(self._task.work, _hash(asked), list(self._recipes))

    # ------------------------------------------------------------ one trial

    def _record(self, proposal: Proposal, measuring: Measuring, records: Sequence[Record]) -> Record:
        variant = self._variant(proposal.recipe)
        budget, chosen = self._allocated(variant, proposal, measuring.requirements)
        if chosen is None:
            key = _hash((proposal.recipe, proposal.kinds, budget))
            return Record(
                *(proposal.recipe, proposal.kinds, proposal.damping, key, budget, _NOTHING_FITS, "expected"),
                values={"size": float(budget)}, broken=[1.0] * len(measuring.requirements), missed=["size"],
            )  # fmt: skip
        key = _hash((proposal.recipe, sorted(chosen.kinds.items()), proposal.damping))
        before = next((one for one in records if one.key == key), None)
        if before is not None:
            return before
        size = variant.rest_bytes + chosen.size_bytes
        expected = chosen.loss * _scale(records)
        begun = Record(
            *(proposal.recipe, proposal.kinds, proposal.damping, key, size, expected, "expected"),
            values={"size": float(size), "kl": expected}, broken=[], missed=[],
        )  # fmt: skip
        # The first trial is measured in any case: what nothing can meet must end, with the nearest.
        first = not any(one.state == "measured" for one in records)
        limits = [] if first else [one for one in measuring.requirements if one.key == "kl"]
        if any(expected > _HOPELESS * one.limit for one in limits):
            return _judged(begun, measuring)
        file = self._file(key)
        how = variant.write(file, chosen, proposal.damping)
        windows = max(1, self._task.settings.judged // 4)
        if limits and windows < self._task.settings.judged:
            fit = measuring.fit(file, windows)
            values = {"size": float(file.stat().st_size), "kl": fit.kl, "ppl": fit.perplexity, "same_top": fit.same_top}
            if any(fit.kl - 1.96 * fit.kl_error > one.limit for one in limits):
                return _judged(msgspec.structs.replace(begun, state="scored", values=values), measuring)
        trial = measuring.trial(variant, file, how)
        return _judged(
            msgspec.structs.replace(
                begun, state="measured", values=trial.values, size_bytes=file.stat().st_size,
                lineage=list(trial.lineage), card=list(trial.card), sensed=variant.sensitivity_file.name,
            ),
            measuring,
        )  # fmt: skip

    def _variant(self, recipe: str) -> Variant:
        if recipe not in self._variants:
            self._variants[recipe] = Variant(self._task, self._recipes[recipe])
        return self._variants[recipe]

    def _allocated(
        self, variant: Variant, proposal: Proposal, requirements: Sequence[Requirement]
    ) -> tuple[int, Allocation | None]:
        """``proposal.share`` of the way from the least to the most that may be taken."""
        least, most = variant.range_bytes()
        limit = variant.budget(requirements)
        if limit is not None:
            least, most = max(least, int(_SMALLEST_SHARE * limit)), min(most, limit)
        budget = int(least + (most - least) * proposal.share)
        try:
            return budget, variant.allocated(budget, KINDS[proposal.kinds])
        except BadConfigValue:
            return budget, None

    def _file(self, key: str) -> Path:
        return self._task.work / f"search-{key}.gguf"

    # ------------------------------------------------------------ what is kept

    def _with_files(self, records: list[Record]) -> list[Record]:
        """Of an earlier run; where somebody took the best one's file away, only those count that have theirs."""
        best = min((one for one in records if one.state == "measured"), key=_rank, default=None)
        if best is None or self._file(best.key).exists():
            return records
        return [one for one in records if one.state != "measured" or self._file(one.key).exists()]

    def _tidy(self, records: Sequence[Record]) -> None:
        """Keep the files of the front and of the best."""
        measured = [one for one in records if one.state == "measured"]
        wanted = {self._file(one.key) for one in [*front(records), *sorted(measured, key=_rank)[:1]]}
        for file in self._task.work.glob("search-*.gguf"):
            if file not in wanted:
                file.unlink()

    def _kept(self, records: Sequence[Record], measuring: Measuring) -> Trial:
        best = min((one for one in records if one.state == "measured"), key=_rank)
        missed = tuple(one for one in measuring.requirements if str(one) in best.missed)
        copy = self._task.work / "kept.gguf"
        copy.unlink(missing_ok=True)
        os.link(self._file(best.key), copy)
        distinct = list({one.key: one for one in records}.values())
        found = Found([str(one) for one in measuring.requirements], distinct, front(records))
        beside = {
            SENSITIVITY: (self._task.work / best.sensed).read_bytes(),
            RESULT: msgspec.json.format(msgspec.json.encode(found), indent=1),
        }
        trial = Trial(copy, best.values, tuple(best.card), missed, tuple(best.lineage), beside)
        return self._optimisation.kept(trial)


def front(records: Sequence[Record]) -> list[Record]:
    """The measured records that no other beats in both KL and size, the smallest first."""
    found: list[Record] = []
    distinct = {one.key: one for one in records if one.state == "measured"}.values()
    for one in sorted(distinct, key=lambda one: (one.size_bytes, one.kl)):
        if not found or one.kl < found[-1].kl:
            found.append(one)
    return found


def _hash(told: object) -> str:
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _rank(of: Record) -> tuple[int, float]:
    return len(of.missed), of.kl


def _scale(records: Sequence[Record]) -> float:
    """Measured over expected KL, the median: rounding to second order costs less than what was expected of it."""
    ratios = [one.kl / one.expected_kl for one in records if one.state == "measured" and one.expected_kl > 0]
    return statistics.median(ratios) if ratios else 1.0


def _judged(record: Record, measuring: Measuring) -> Record:
    """With what it misses. What was not measured counts as missed by nothing: something else made it end here."""
    broken, missed = [], []
    for one in measuring.requirements:
        value, bound = record.values.get(one.key), one.bound(measuring.reference)
        share = 0.0 if value is None else (value - bound) / (abs(bound) or 1.0)  # 0 bounds a share of answers, say
        over = share if one.at_most else -share
        broken.append(over)
        if over > 0:
            missed.append(str(one))
    return msgspec.structs.replace(record, broken=broken, missed=missed)


def read_found(folder: Path) -> Found | None:
    """What a search left in an artifact's folder, if one did."""
    file = folder / RESULT
    return msgspec.json.decode(file.read_bytes(), type=Found) if file.exists() else None
