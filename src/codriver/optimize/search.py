"""Recipes, sizes and ways of rounding, tried for as long as there is time; what meets the requirement best is kept.

Optuna proposes (multi-objective TPE, Ozaki et al. 2020): smaller and nearer to the reference, what misses a requirement
last. What is cheap decides first, before anything is written: the size is exact; times and memory are predicted by the
target's calibrated model, where there is one; the expected KL is that of the allocation, scaled by what was measured so
far. Then a few windows are scored; only what is left is scored in full and timed. Each trial is in a journal in the
work folder, so that an interrupted search goes on; the budget is wall time.

The rule kept: a trial is left out for a prediction only where it misses by more than the model is known to err.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from codriver.core.artifact import Measured
from codriver.core.errors import BadConfigValue, MissingExtra

from .allocate import Allocation
from .optimise import SENSITIVITY, Measuring, Optimisation, Trial
from .recipe import Recipe
from .requirement import Requirement
from .search_records import RESULT, Found, Record, front
from .search_space import KINDS, Proposal
from .targets.predictor import Predictor
from .variant import Variant

if TYPE_CHECKING:
    from .search_journal import Journal

_HOPELESS = 4.0  # an expected KL that many times over the limit is not tried
_NOTHING_FITS = 99.0  # nats: the types that may be chosen do not fit the size
_ALIKE = 12  # proposals in a row that were tried before: there is nothing new
_SMALLEST_SHARE = 0.7  # of a required size
_PATIENCE = 8  # proposals that are predicted to miss, before one is measured all the same


class Search:
    """``recipes`` by name; ``seconds`` of wall time, from the call of :meth:`run` on. ``now``: monotonic seconds.
    ``predictor``: of the target; without one, times and memory are not known before they are measured.
    """

    def __init__(
        self, optimisation: Optimisation, recipes: Mapping[str, Recipe], seconds: float,
        now: Callable[[], float] = time.monotonic, predictor: Predictor | None = None,
    ) -> None:  # fmt: skip
        if importlib.util.find_spec("optuna") is None:
            raise MissingExtra("A search is led by Optuna: pip install 'codriver[optimize]'.")
        self._optimisation, self._recipes, self._seconds, self._now = optimisation, recipes, seconds, now
        self._task, self._predictor = optimisation.task, predictor
        self._variants: dict[str, Variant] = {}
        self._end_s = 0.0

    def run(self, requirements: Sequence[Requirement]) -> Trial:
        """The measured trial that misses least, and of those the one nearest to the reference; kept in the artifact's
        folder, with ``search.json`` beside it. Errors: :class:`RequirementMissed`.
        """
        end_s = self._end_s = self._now() + self._seconds
        measuring = Measuring(self._task, requirements)
        journal = self._journal(requirements)
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
        """Of this search: another source, requirement, recipe, calibration or amount of text is another search."""
        from .search_journal import Journal

        told = [str(one) for one in requirements]
        asked = (self._task.sha256, told, dict(self._recipes), self._task.settings, str(self._predictor))
        return Journal(self._task.work, _hash(asked), list(self._recipes))

    # ------------------------------------------------------------ one trial

    def _record(self, proposal: Proposal, measuring: Measuring, records: Sequence[Record]) -> Record:
        variant = self._variant(proposal.recipe)
        # What nothing can meet must end, with the nearest: one trial is measured in any case.
        first = not any(one.state == "measured" for one in records)
        forced = first and (len(records) >= _PATIENCE or self._now() >= self._end_s)
        budget, chosen = self._allocated(variant, proposal, measuring.requirements, forced)
        if chosen is None:
            key = _hash((proposal.recipe, proposal.kinds, budget))
            return Record(
                *(proposal.recipe, proposal.kinds, proposal.damping, key, budget, _NOTHING_FITS, "expected"),
                values={"size": float(budget)}, broken=[1.0] * len(measuring.requirements), missed=["size"],
            )  # fmt: skip
        key = _hash((proposal.recipe, sorted(chosen.kinds.items()), proposal.damping))
        before = next((one for one in reversed(records) if one.key == key), None)
        if before is not None and not forced:
            return before
        told = [] if self._predictor is None else self._predictor.rows(variant.layout(chosen), measuring.prompts)
        size, expected = variant.rest_bytes + chosen.size_bytes, chosen.loss * _scale(records)
        values = {"size": float(size), "kl": expected} | {one.metric: one.value for one in told}
        begun = Record(
            *(proposal.recipe, proposal.kinds, proposal.damping, key, size, expected, "expected"),
            values=values, broken=[], missed=[], predicted=["kl", *(one.metric for one in told)],
        )  # fmt: skip
        if not forced and _sure_to_miss(told, measuring):
            return _judged(begun, measuring)
        # How expected and measured KL go together is known from the first measured trial on.
        limits = [] if first else [one for one in measuring.requirements if one.key == "kl"]
        if any(expected > _HOPELESS * one.limit for one in limits):
            return _judged(begun, measuring)
        file = self._file(key)
        return self._measured(begun, (variant, file, variant.write(file, chosen, proposal.damping)), measuring, limits)

    def _measured(
        self, begun: Record, made: tuple[Variant, Path, str], measuring: Measuring, limits: Sequence[Requirement]
    ) -> Record:
        """Scored on a part of the windows; where that does not rule it out, on all of them, and timed."""
        variant, file, how = made
        windows = max(1, self._task.settings.judged // 4)
        if limits and windows < self._task.settings.judged:
            fit = measuring.fit(file, windows)
            seen = {"size": float(file.stat().st_size), "kl": fit.kl, "ppl": fit.perplexity, "same_top": fit.same_top}
            if any(fit.kl - 1.96 * fit.kl_error > one.limit for one in limits):
                left = [key for key in begun.predicted if key not in seen]
                return _judged(
                    msgspec.structs.replace(begun, state="scored", values=begun.values | seen, predicted=left),
                    measuring,
                )
        trial = measuring.trial(variant, file, how)
        return _judged(
            msgspec.structs.replace(
                begun, state="measured", values=trial.values, size_bytes=file.stat().st_size,
                lineage=list(trial.lineage), card=list(trial.card), sensed=variant.sensitivity_file.name,
                predicted=[one.metric for one in trial.card if one.predicted],
            ),
            measuring,
        )  # fmt: skip

    def _variant(self, recipe: str) -> Variant:
        if recipe not in self._variants:
            self._variants[recipe] = Variant(self._task, self._recipes[recipe])
        return self._variants[recipe]

    def _allocated(
        self, variant: Variant, proposal: Proposal, requirements: Sequence[Requirement], forced: bool
    ) -> tuple[int, Allocation | None]:
        """``proposal.share`` of the way from the least to the most that may be taken; ``None`` where the proposal's
        types do not fit. ``forced``: the most, of all types, then. Errors: those of ``allocate`` where even that
        does not fit.
        """
        least, most = variant.range_bytes()
        limit = variant.budget(requirements)
        if limit is not None:
            least, most = max(least, int(_SMALLEST_SHARE * limit)), min(most, limit)
        budget = int(least + (most - least) * proposal.share)
        try:
            return budget, variant.allocated(budget, KINDS[proposal.kinds])
        except BadConfigValue:
            return (most, variant.allocated(most)) if forced else (budget, None)

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
        limits = {one.key: one.bound(measuring.reference) for one in measuring.requirements}
        asked = [str(one) for one in measuring.requirements]
        found = Found(asked, distinct, front(records), self._proxies(), limits)
        beside = {
            SENSITIVITY: (self._task.work / best.sensed).read_bytes(),
            RESULT: msgspec.json.format(msgspec.json.encode(found), indent=1),
        }
        trial = Trial(copy, best.values, tuple(best.card), missed, tuple(best.lineage), beside)
        return self._optimisation.kept(trial)

    def _proxies(self) -> list[str]:
        told = "not known before they are measured" if self._predictor is None else str(self._predictor)
        kl = "kl: what the allocation expects, scaled by what was measured of earlier trials"
        return ["size: exact", kl, f"times and memory: {told}"]


def _hash(told: object) -> str:
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _rank(of: Record) -> tuple[int, float]:
    return len(of.missed), of.kl


def _scale(records: Sequence[Record]) -> float:
    """Measured over expected KL, the median: rounding to second order costs less than what was expected of it."""
    ratios = [one.kl / one.expected_kl for one in records if one.state == "measured" and one.expected_kl > 0]
    return statistics.median(ratios) if ratios else 1.0


def _sure_to_miss(predicted: Sequence[Measured], measuring: Measuring) -> bool:
    """Whether a prediction misses a requirement by more than the model is known to err."""
    rows = {one.metric: one for one in predicted}
    for one in measuring.requirements:
        if (row := rows.get(one.key)) is not None:
            best = row.low if one.at_most else row.high
            if not one.met(row.value if best is None else best, measuring.reference):
                return True
    return False


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
