"""One model, one requirement: choose types, round, write, and measure what was written.

The way: the file's weights as they are become the reference; the recipe's passes change them; a text says what goes
into each matrix; groups of matrices are rounded coarsely to see what the model suffers; types are allocated to a byte
budget by what they are expected to cost; the weights are rounded; and the file is measured in the runtime that will
load it. Where no size is required, budgets are tried from small to large until one meets the rest. What took long is
kept in the work folder: a run that was interrupted goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from codriver.core.artifact import Artifact, ArtifactFile, Measured, save_artifact, sha256_of
from codriver.core.errors import BadConfigValue, RequirementMissed
from codriver.core.writing import writing

from .allocate import Allocation
from .evaluate import WINDOW, Fit, compare, evaluate
from .gguf_file import GgufFile
from .predictions import kept_predictions
from .requirement import Requirement
from .task import Settings, Task, Told, begin
from .task_sets.asking import Answers, ask
from .task_sets.judging import card_of as card_of_task
from .variant import Variant

_STEPS = 8
_MODEL = "model.gguf"
SENSITIVITY = "sensitivity.json"  # beside the manifest, for the report


@dataclass(frozen=True)
class Trial:
    """One artifact that was made: ``values`` by metric, ``missed`` what it does not meet, ``lineage`` how it came to
    be, ``beside`` what is written beside the manifest, by name.
    """

    file: Path
    values: dict[str, float]
    card: tuple[Measured, ...]
    missed: tuple[Requirement, ...]
    lineage: tuple[str, ...]
    beside: Mapping[str, bytes]

    @property
    def bits(self) -> float:
        return self.values["bits"]


@dataclass
class Measuring:
    """Whether a file meets ``requirements``, measured on the file itself. The reference is scored once, and only where
    a requirement is relative to it.
    """

    task: Task
    requirements: Sequence[Requirement]
    _reference: dict[str, float] = field(default_factory=dict)
    _answers: list[Answers] = field(default_factory=list)

    @property
    def reference(self) -> Mapping[str, float]:
        if not self._reference and any(one.relative for one in self.requirements):
            task, settings = self.task, self.task.settings
            fit = evaluate(
                task.reference.path, None, settings.scored, settings.judged, task.run("scores the reference")
            )
            self._reference = {"ppl": fit.perplexity, "size": float(task.source.path.stat().st_size)}
            for one, there in zip(settings.task_sets, self._asked(), strict=True):
                self._reference[one.name] = sum(there.right) / len(there.right)
        return self._reference

    def _asked(self) -> list[Answers]:
        """The reference's answers, by task set."""
        if not self._answers and self.task.settings.task_sets:
            run = self.task.run("asks the reference")
            self._answers = ask(self.task.reference.path, self.task.settings.task_sets, run)
        return self._answers

    def answered(self, file: Path) -> list[Measured]:
        """What ``file`` answers, beside the reference, as an artifact's card has it."""
        sets, there = self.task.settings.task_sets, self._asked()
        here = ask(file, sets, self.task.run("asks it")) if sets else []
        return [row for one, a, b in zip(sets, here, there, strict=True) for row in card_of_task(one, a, b)]

    def fit(self, file: Path, windows: int) -> Fit:
        """Scored on the first ``windows`` of the scored text."""
        task, settings, right = self.task, self.task.settings, self.task.reference.path
        run = task.run("scores it")
        kept = kept_predictions(right, settings.scored, settings.judged, settings.threads, task.work)
        if kept is None:
            return evaluate(file, right, settings.scored, windows, run)
        return compare(file, kept.rows[:windows], kept.pieces[:windows], run)

    @property
    def prompts(self) -> list[int]:
        """The lengths in tokens of which a first token is timed."""
        return sorted({one.tokens for one in self.requirements if one.tokens} or {WINDOW})

    def trial(self, variant: Variant, file: Path, how: str) -> Trial:
        settings = self.task.settings
        fit = self.fit(file, settings.judged)
        asked = self.answered(file)
        self.task.told("measures its speed and memory")
        timed = settings.timing(file, settings.threads, settings.runs, self.prompts)
        card = [*card_of(fit, file), *asked, *timed]
        values = {one.metric: one.value for one in card}
        values["bits"] = 8 * sum(t.size_bytes for t in GgufFile(file)) / variant.weights
        missed = tuple(one for one in self.requirements if not one.met(values[one.key], self.reference))
        lineage = (f"sha256:{self.task.sha256}", *variant.passes, how)
        beside = {SENSITIVITY: variant.sensitivity_file.read_bytes()}
        return Trial(file, values, tuple(card), missed, lineage, beside)


class Optimisation:
    """``source`` to an artifact in ``out``. ``told`` names a step that begins and takes its progress."""

    def __init__(self, source: Path, out: Path, settings: Settings, told: Told) -> None:
        if out.exists() and any(out.iterdir()):
            raise BadConfigValue(f"The folder {out} is not empty; name another one.", param="out")
        self.out = out
        self.task = begin(source, out.with_name(out.name + ".work"), settings, told)

    def run(self, requirements: Sequence[Requirement]) -> Trial:
        """Errors: :class:`RequirementMissed` when none of what was made meets them; the nearest is in ``out`` then."""
        variant = Variant(self.task, self.task.settings.recipe)
        measuring = Measuring(self.task, requirements)
        best: Trial | None = None
        for number, chosen in enumerate(self._allocations(variant, requirements)):
            file = self.task.work / f"trial-{number}.gguf"
            trial = measuring.trial(variant, file, variant.write(file, chosen))
            if best is None or len(trial.missed) <= len(best.missed):
                best = trial
            if not trial.missed:
                break
        assert best is not None
        return self.kept(best)

    def _allocations(self, variant: Variant, requirements: Sequence[Requirement]) -> Sequence[Allocation]:
        """What a required size leaves, or steps from the least to the most."""
        budget = variant.budget(requirements)
        if budget is not None:
            return [variant.allocated(budget)]
        least, most = variant.range_bytes()
        return [variant.allocated(least + (most - least) * step // _STEPS) for step in range(1, _STEPS + 1)]

    def kept(self, trial: Trial) -> Trial:
        """Make ``trial`` the artifact. Errors: :class:`RequirementMissed` where it misses something; it is kept then,
        too.
        """
        # Put together in the work folder: what has the name of the result is the whole of it.
        stage = self.task.work / "artifact"
        stage.mkdir(exist_ok=True)
        kept = stage / _MODEL
        trial.file.replace(kept)
        for name, content in trial.beside.items():
            with writing(stage / name):
                (stage / name).write_bytes(content)
        metadata = self.task.source.header.metadata
        artifact = Artifact(
            name=str(metadata.get("general.name", self.task.source.path.stem)),
            files=(ArtifactFile(_MODEL, "gguf", kept.stat().st_size, sha256_of(kept)),),
            bits_per_weight=trial.bits,
            target=self.task.settings.target,
            lineage=trial.lineage,
            licence=str(metadata.get("general.license", "not stated by the source")),
            card=trial.card,
        )
        save_artifact(artifact, stage)
        with writing(self.out):
            stage.replace(self.out.resolve())
        if trial.missed:
            predicted = {one.metric for one in trial.card if one.predicted}
            told = "; ".join(
                f"{one} (it {'is predicted to have' if one.key in predicted else 'has'} "
                f"{trial.values.get(one.key, math.nan):g})"
                for one in trial.missed
            )
            raise RequirementMissed(f"No artifact meets {told}. The nearest is kept in {self.out}.")
        return trial


def card_of(fit: Fit, file: Path) -> list[Measured]:
    """What was scored of a file, as an artifact's card has it, and its size."""
    reference = "the source file's weights as they are"
    return [
        _measured("ppl", fit.perplexity, fit.perplexity_error, "perplexity", fit.n),
        msgspec.structs.replace(_measured("kl", fit.kl, fit.kl_error, "nats/token", fit.n), note=f"to {reference}"),
        Measured("same_top", fit.same_top, "share", fit.n, note=f"as {reference}"),
        Measured("size", float(file.stat().st_size), "bytes", 1),
    ]


def _measured(metric: str, value: float, error: float, unit: str, n: int) -> Measured:
    return Measured(metric, value, unit, n, value - 1.96 * error, value + 1.96 * error)
