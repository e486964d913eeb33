"""One model, one requirement: choose types, round, write, and measure what was written.

The way: the file's weights as they are become the reference; the recipe's passes change them; a text says what goes
into each matrix; groups of matrices are rounded coarsely to see what the model suffers; types are allocated to a byte
budget by what they are expected to cost; the weights are rounded; and the file is measured in the runtime that will
load it. Where no size is required, budgets are tried from small to large until one meets the rest. What took long is
kept in the work folder: a run that was interrupted goes on from there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from codriver.core.artifact import Artifact, ArtifactFile, Measured, save_artifact, sha256_of
from codriver.core.errors import BadConfigValue, RequirementMissed
from codriver.core.gguf import GgufTensor
from codriver.core.writing import writing

from .allocate import Choice, allocate
from .calibrate import LEAST_WINDOWS, read_inputs
from .evaluate import WINDOW, Fit, Progress, Run, compare, evaluate, pieces_of
from .gguf_file import GgufFile, fits
from .latency import measure as measure_latency
from .llama_check import check
from .llama_runtime import LlamaModel
from .predictions import kept_predictions
from .recipe import NO_PASSES, Recipe, Workshop
from .requirement import Requirement
from .rounding import Rounder, Text, write_reference, write_rounded
from .sensitivity import choices, groups_of, measure

KINDS = ("Q2_K", "Q3_K", "Q4_0", "IQ4_NL", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
_SMALL_WEIGHTS = 500_000_000  # up to so many the reference is F32, beyond that F16
_STEPS = 8
_MODEL = "model.gguf"
Told = Callable[[str], Progress]


@dataclass(frozen=True)
class Settings:
    """``windows``: of 512 tokens, for calibration; a quarter as many are kept back. ``sensed`` tell what the model
    suffers, ``judged`` are scored. ``kinds``: the types that may be chosen.
    """

    calibration: str
    scored: str
    windows: int = 32
    judged: int = 20
    sensed: int = 2
    bands: int = 5
    kinds: tuple[str, ...] = KINDS
    threads: int = 2
    runs: int = 5
    recipe: Recipe = NO_PASSES


@dataclass(frozen=True)
class Trial:
    """One artifact that was made: ``values`` by metric, ``missed`` what it does not meet, ``how`` it was rounded."""

    file: Path
    values: dict[str, float]
    card: tuple[Measured, ...]
    missed: tuple[Requirement, ...]
    bits: float
    how: str


class Optimisation:
    """``source`` to an artifact in ``out``. ``told`` names a step that begins and takes its progress."""

    def __init__(self, source: Path, out: Path, settings: Settings, told: Told) -> None:
        self._source, self._out, self._settings, self._told = GgufFile(source), out, settings, told
        if out.exists() and any(out.iterdir()):
            raise BadConfigValue(f"The folder {out} is not empty; name another one.", param="out")
        check(source)
        self._refuse_short()
        self._work = out.with_name(out.name + ".work")
        self._work.mkdir(parents=True, exist_ok=True)
        self._sha256 = sha256_of(source)
        weights = sum(tensor.weights for tensor in self._source)
        self._reference = self._made_reference("F32" if weights <= _SMALL_WEIGHTS else "F16")
        shop = Workshop(self._work, self._run, settings.calibration)
        changed, self._passes = settings.recipe.run(self._reference.path, self._work, shop)
        # What is rounded, and the file whose types and bytes may be kept: the source's own, where no pass changed them.
        self._base = GgufFile(changed) if self._passes else self._reference
        self._kept = self._base if self._passes else self._source

    def run(self, requirements: Sequence[Requirement]) -> Trial:
        """Errors: :class:`RequirementMissed` when none of what was made meets them; the nearest is in ``out`` then."""
        options = self._options()
        reference = self._reference_values() if any(one.relative for one in requirements) else {}
        budgets = self._budgets(options, requirements)
        best: Trial | None = None
        for number, budget in enumerate(budgets):
            trial = self._trial(number, budget, options, requirements, reference)
            if best is None or len(trial.missed) <= len(best.missed):
                best = trial
            if not trial.missed:
                break
        assert best is not None
        self._keep(best)
        if best.missed:
            told = "; ".join(f"{one} (it has {best.values.get(one.key, float('nan')):g})" for one in best.missed)
            raise RequirementMissed(f"No artifact meets {told}. The nearest is kept in {self._out}.")
        return best

    # ------------------------------------------------------------ steps

    def _made_reference(self, kind: str) -> GgufFile:
        file = self._work / f"reference-{kind}-{self._sha256[:16]}.gguf"
        if not file.exists():
            self._told(f"writes the reference ({kind})")
            write_reference(self._source, file, kind)
        return GgufFile(file)

    def _matrices(self) -> list[GgufTensor]:
        """The tensors that may get another type: all that have rows of blocks, but for what is tiny."""
        return [t for t in self._base if len(t.shape) == 2 and fits("Q4_0", t) and t.weights > 1 << 14]

    def _texts(self) -> Text:
        """The calibration text: most of it to round by, its end to decide by."""
        text, settings = self._settings.calibration, self._settings
        cut = len(text) * 4 // 5
        return Text(text[:cut], text[cut:], settings.windows, max(LEAST_WINDOWS, settings.windows // 4))

    def _refuse_short(self) -> None:
        """Before anything long begins. Errors: :class:`BadConfigValue`."""
        with LlamaModel(self._source.path) as model:
            found, needed = len(model.tokens(self._texts().held)), LEAST_WINDOWS * WINDOW
            if found >= needed:
                pieces_of(model, self._settings.scored, 1)  # tells a scored text that is too short
        if found < needed:
            raise BadConfigValue(
                f"The calibration text is too short: its last fifth has {found} tokens, and {needed} are needed.",
                param="calibration",
            )

    def _options(self) -> dict[str, list[Choice]]:
        """Each tensor's types with bytes and expected KL; kept between runs."""
        file = self._work / f"sensitivity-{self._key()}.json"
        if file.exists():
            return msgspec.json.decode(file.read_bytes(), type=dict[str, list[Choice]])
        settings, texts = self._settings, self._texts()
        inputs = read_inputs(
            self._base.path, texts.fit, settings.windows, self._run("reads what goes into each matrix"),
            lambda name: False,
        )  # fmt: skip
        with LlamaModel(self._base.path) as model:
            pieces = pieces_of(model, texts.held, settings.sensed)
        groups = measure(
            self._base, inputs, groups_of(self._matrices(), settings.bands), pieces,
            self._run("sees what the model suffers"),
        )  # fmt: skip
        found = choices((self._kept, self._base), inputs, groups, settings.kinds, settings.threads)
        part = file.with_suffix(".part")
        with writing(file, part):
            part.write_bytes(msgspec.json.encode(found))
            part.replace(file)
        return found

    def _key(self) -> str:
        settings = self._settings
        sizes = (settings.windows, settings.sensed, settings.bands)
        asked = (self._sha256, self._passes, sizes, settings.kinds, settings.calibration)
        return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]

    def _reference_values(self) -> dict[str, float]:
        settings, run = self._settings, self._run("scores the reference")
        fit = evaluate(self._reference.path, None, settings.scored, settings.judged, run)
        return {"ppl": fit.perplexity, "size": float(self._source.path.stat().st_size)}

    def _budgets(self, options: Mapping[str, Sequence[Choice]], requirements: Sequence[Requirement]) -> list[int]:
        """Bytes for the tensors in ``options``: what a required size leaves, or steps from the least to the most."""
        rest = self._kept.header.pairs_end + 256 * len(self._kept.header.tensors)
        rest += sum(t.size_bytes for t in self._kept if t.name not in options)
        sizes = [one.limit for one in requirements if one.key == "size"]
        sizes += [one.limit * self._weights() / 8 for one in requirements if one.key == "bits"]
        if sizes:
            return [int(min(sizes)) - rest]
        least = sum(min(one.size_bytes for one in of) for of in options.values())
        most = sum(max(one.size_bytes for one in of) for of in options.values())
        return [least + (most - least) * step // _STEPS for step in range(1, _STEPS + 1)]

    def _weights(self) -> int:
        return sum(tensor.weights for tensor in self._base)

    def _trial(
        self, number: int, budget: int, options: Mapping[str, Sequence[Choice]], requirements: Sequence[Requirement],
        reference: Mapping[str, float],
    ) -> Trial:  # fmt: skip
        chosen = allocate(options, budget)
        file = self._work / f"trial-{number}.gguf"
        kinds = {tensor.name: chosen.kinds.get(tensor.name, tensor.type) for tensor in self._kept}
        rounder = Rounder(self._kept, self._base, kinds, self._texts(), self._run)
        self._told(f"rounds to {chosen.size_bytes / 1e6:.1f} MB")
        write_rounded(file, rounder)
        fit = self._fit(file, "scores it")
        self._told("measures its speed and memory")
        prompts = sorted({one.tokens for one in requirements if one.tokens} or {WINDOW})
        card = [*card_of(fit, file), *measure_latency(file, self._settings.threads, self._settings.runs, prompts)]
        values = {one.metric: one.value for one in card}
        bits = 8 * sum(t.size_bytes for t in GgufFile(file)) / self._weights()
        values["bits"] = bits
        missed = tuple(one for one in requirements if not one.met(values[one.key], reference))
        how = ", ".join(f"{count} {way}" for way, count in sorted(Counter(rounder.how.values()).items()))
        return Trial(file, values, tuple(card), missed, bits, f"types by measured KL; matrices rounded: {how}")

    def _fit(self, file: Path, step: str) -> Fit:
        settings, run, right = self._settings, self._run(step), self._reference.path
        kept = kept_predictions(right, settings.scored, settings.judged, settings.threads, self._work)
        if kept is None:
            return evaluate(file, right, settings.scored, settings.judged, run)
        return compare(file, kept.rows, kept.pieces, run)

    def _run(self, step: str) -> Run:
        return Run(self._settings.threads, self._told(step))

    def _keep(self, trial: Trial) -> None:
        # Put together in the work folder: what has the name of the result is the whole of it.
        stage = self._work / "artifact"
        stage.mkdir(exist_ok=True)
        kept = stage / _MODEL
        trial.file.replace(kept)
        told = str(self._source.header.metadata.get("general.license", "not stated by the source"))
        artifact = Artifact(
            name=str(self._source.header.metadata.get("general.name", self._source.path.stem)),
            files=(ArtifactFile(_MODEL, "gguf", kept.stat().st_size, sha256_of(kept)),),
            bits_per_weight=trial.bits,
            target="host",
            lineage=(f"sha256:{self._sha256}", *self._passes, trial.how),
            licence=told,
            card=trial.card,
        )
        save_artifact(artifact, stage)
        with writing(self._out):
            stage.replace(self._out.resolve())


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
