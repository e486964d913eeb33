"""One vision graph, one requirement: try ways to make it int8, measure each file in the runtimes, keep the best.

The way: the file becomes a folded graph of 32-bit floats, which is the reference; candidates are recipes of the
passes here, cheap ones first; each candidate is a file, scored on pictures that it was not calibrated on, for how far
it agrees with the reference, and timed in turn with the reference, in every runtime that is installed. The first that
meets the requirement is kept, for the runtime where it is fastest; where nothing does, the nearest. Limits: one input
of pictures; agreement is not accuracy (``tasks``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from codriver.core.artifact import Artifact, ArtifactFile, Measured, save_artifact, sha256_of
from codriver.core.errors import BadConfigValue, RequirementMissed

from ..evaluate import Run
from ..recipe import Pass, Recipe, Workshop
from ..requirement import Requirement
from ..task import Told
from .equalise import Equalise
from .graph import outputs_of
from .onnx_file import read_model, read_onnx, refuse_unusable, write_model
from .pictures import feed_of, spread
from .prepare import Fold
from .runtime import Graph, Times, interleaved, median_interval, open_graph, usable
from .static import StaticInt8
from .tasks import SURE, Task, task_of

Floats = NDArray[np.float32]
Outputs = list[list[Floats]]
_MODEL = "model.onnx"
_RESAMPLED = 200
_QUIET = 0.05  # of the outputs' energy, as the task counts it
_CALIBRATED_SHARE = 3  # one picture in so many may calibrate


@dataclass(frozen=True)
class VisionSettings:
    """``look``: how pictures go in, where the file does not say. ``licence``: of the weights, as their source states.
    ``calibrated`` and ``scored``: pictures at most, of different parts of the folder. ``recipe``: the one that is
    tried, otherwise those of :func:`candidates`.
    """

    pictures: Sequence[Path]
    look: str = ""
    licence: str = ""
    calibrated: int = 16
    scored: int = 48
    threads: int = 1
    rounds: int = 30
    recipe: Recipe | None = None


@dataclass(frozen=True)
class VisionTrial:
    """One file in one runtime; ``values`` by metric, ``missed`` what it does not meet."""

    file: Path
    runtime: str
    values: dict[str, float]
    card: tuple[Measured, ...]
    missed: tuple[Requirement, ...]
    how: tuple[str, ...]


def candidates(look: str) -> list[Recipe]:
    """From the plainest to the most careful. What stays float is chosen where a bound on the noise is named."""
    static = StaticInt8(look=look)
    inputs = replace(static, weights="s7", placed="inputs")
    ways = [static, inputs, replace(static, weights="u8"), replace(static, most_noise=_QUIET)]
    even: tuple[str, Pass] = ("cross-layer-equalise", Equalise())
    return [Recipe((even, ("static-int8", way))) for way in ways]


def parts(pictures: Sequence[Path], calibrated: int, scored: int) -> tuple[list[Path], list[Path]]:
    """For calibration from the first third, for scoring from the rest. Errors: :class:`BadConfigValue` for too few."""
    if len(pictures) < 2 * _CALIBRATED_SHARE:
        raise BadConfigValue(
            f"{len(pictures)} pictures are too few to calibrate on some and score on others; give at least "
            f"{2 * _CALIBRATED_SHARE}.",
            param="pictures",
        )
    cut = len(pictures) // _CALIBRATED_SHARE
    return spread(pictures[:cut], calibrated), spread(pictures[cut:], scored)


class VisionOptimisation:
    """``source`` to an artifact in ``out``. ``told`` names a step that begins and takes its progress.

    Errors on construction: those of ``read_model`` and ``feed_of``; :class:`BadConfigValue` for too few pictures.
    """

    def __init__(self, source: Path, out: Path, settings: VisionSettings, told: Told) -> None:
        if out.exists() and any(out.iterdir()):
            raise BadConfigValue(f"The folder {out} is not empty; name another one.", param="out")
        self._source, self._out, self._settings, self._told = source, out, settings, told
        model = read_model(source)
        self._feed = feed_of(model, source, settings.look or None)
        self._task: Task = task_of(model, self._feed.height, self._feed.width)
        self._fitting, judged = parts(settings.pictures, settings.calibrated, settings.scored)
        self._pictures = [self._feed.read(file) for file in judged]
        self._work = out.with_name(out.name + ".work")
        self._work.mkdir(parents=True, exist_ok=True)
        self._sha256 = sha256_of(source)
        plain = self._work / f"source-{self._sha256[:16]}.onnx"
        write_model(model, plain)
        refuse_unusable(plain)
        shop = Workshop(self._work, self._run, pictures=self._fitting)
        self._folded, self._folding = Recipe((("fold", Fold()),)).run(plain, self._work, shop)
        self._reference: Outputs = outputs_of(self._folded, self._pictures)
        self._refuse_empty()

    def run(self, requirements: Sequence[Requirement]) -> VisionTrial:
        """Errors: :class:`RequirementMissed` when none of what was made meets them; the nearest is in ``out`` then."""
        refuse_foreign(requirements)
        settings, best = self._settings, None
        recipes = candidates(settings.look) if settings.recipe is None else [settings.recipe]
        for recipe in recipes:
            shop = Workshop(self._work, self._run, pictures=self._fitting)
            self._told("makes " + ", ".join(name for name, _ in recipe.passes))
            file, how = recipe.run(self._folded, self._work, shop)
            for trial in self._trials(file, how, requirements):
                best = trial if best is None or _rank(trial) < _rank(best) else best
            if best is not None and not best.missed:
                break
        assert best is not None
        self._keep(best)
        if best.missed:
            told = "; ".join(f"{one} (it has {best.values.get(one.key, float('nan')):.4g})" for one in best.missed)
            raise RequirementMissed(f"No artifact meets {told}. The nearest is kept in {self._out}.")
        return best

    def _trials(self, file: Path, how: tuple[str, ...], requirements: Sequence[Requirement]) -> list[VisionTrial]:
        """One per runtime; the latency counts against the reference in the runtime that is fastest with it."""
        self._told(f"measures {file.stat().st_size / 1e6:.1f} MB")
        threads, runtimes = self._settings.threads, usable()
        graphs: dict[str, Graph] = {}
        for name in runtimes:
            graphs[f"{name} fp32"] = open_graph(self._folded, name, threads)
            graphs[name] = open_graph(file, name, threads)
        times = interleaved(graphs, self._pictures[:4], self._settings.rounds)
        quickest = min((f"{name} fp32" for name in runtimes), key=lambda name: times[name].p50_ms)
        found = []
        for name in runtimes:
            outputs = [graphs[name].run(picture) for picture in self._pictures]
            card = [
                agreed(self._task, self._reference, outputs),
                *timed(times[name], times[quickest], (name, quickest, threads)),
            ]
            card.append(Measured("size", float(file.stat().st_size), "bytes", 1))
            values = {one.metric: one.value for one in card} | {"latency": times[name].p50_ms}
            base = {"latency": times[quickest].p50_ms, "size": float(self._source.stat().st_size)}
            missed = tuple(one for one in requirements if not one.met(values[one.key], base))
            found.append(VisionTrial(file, name, values, tuple(card), missed, how))
        return found

    def _refuse_empty(self) -> None:
        if self._task.finds_boxes and not any(len(self._task.boxes(one).sure().scores) for one in self._reference):
            raise BadConfigValue(
                f"The model {self._source} finds nothing in the {len(self._pictures)} pictures that are scored: they "
                "say nothing about it, or they go in the wrong way (--look).",
                param="pictures",
            )

    def _run(self, step: str) -> Run:
        return Run(self._settings.threads, self._told(step))

    def _keep(self, trial: VisionTrial) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        kept = self._out / _MODEL
        part = kept.with_name(kept.name + ".part")
        shutil.copyfile(trial.file, part)
        part.replace(kept)
        weights = sum(int(np.prod(one.dims)) for one in read_onnx(self._folded).graph.initializer)
        artifact = Artifact(
            name=self._source.stem,
            files=(ArtifactFile(_MODEL, "onnx", kept.stat().st_size, sha256_of(kept)),),
            bits_per_weight=8 * kept.stat().st_size / max(1, weights),
            target="host",
            lineage=(f"sha256:{self._sha256}", *self._folding, *trial.how, f"measured in {trial.runtime}"),
            licence=self._settings.licence or licence_of(read_onnx(self._folded)),
            card=trial.card,
        )
        save_artifact(artifact, self._out)


def agreed(task: Task, right: Outputs, outputs: Outputs) -> Measured:
    """``agreement``, with an interval by resampling pictures (Efron 1979), from a fixed seed."""
    value_of = task.agreements(right, outputs)
    random, count = np.random.default_rng(0), len(outputs)
    value = value_of(np.arange(count))
    again = [value_of(random.integers(0, count, count)) for _ in range(_RESAMPLED)]
    low, high = np.nanpercentile(again, [2.5, 97.5])
    what = {"pixels": "mean IoU with the reference's labels", "classes": "equal first choices"}
    note = f"AP@0.5:0.95 against the reference's boxes of {SURE} and more" if task.finds_boxes else (
        what.get(task.kind, "one minus the relative squared error"))  # fmt: skip
    return Measured("agreement", value, "share", count, float(low), float(high), note)


def timed(mine: Times, base: Times, told: tuple[str, str, int]) -> list[Measured]:
    """``told``: the runtime, what it is timed against, and threads."""
    runtime, against, threads = told
    low, high = mine.interval()
    ratio_low, ratio_high = median_interval([a / b for a, b in zip(mine.wall_ms, base.wall_ms, strict=True)])
    cpu = mine.cpu_p50_ms / base.cpu_p50_ms
    note = f"{runtime}, {threads} threads, in turn with {against}"
    p99 = float(np.percentile(mine.wall_ms, 99))
    return [
        Measured("latency_ms", mine.p50_ms, "ms", len(mine.wall_ms), low, high, f"p50, {note}"),
        Measured("latency_p99_ms", p99, "ms", len(mine.wall_ms), note=note),
        Measured("cpu_ms", mine.cpu_p50_ms, "ms", len(mine.cpu_ms), note=f"processor time, p50, {note}"),
        Measured("latency_ratio", mine.p50_ms / base.p50_ms, "×", len(mine.wall_ms), ratio_low, ratio_high,
                 f"over {against}; its interval is that of the pairs' median"),
        Measured("cpu_ratio", cpu, "×", len(mine.cpu_ms), note=f"processor time over that of {against}"),
    ]  # fmt: skip


def licence_of(model: onnx.ModelProto) -> str:
    told = {pair.key.lower(): pair.value for pair in model.metadata_props}
    return told.get("licence") or told.get("license") or "not stated by the source"


def refuse_foreign(requirements: Sequence[Requirement]) -> None:
    """Errors: :class:`BadConfigValue` for what belongs to language models."""
    for one in requirements:
        if one.metric not in ("agreement", "latency", "latency_ms", "size"):
            raise BadConfigValue(
                f"'{one.metric}' cannot be required of a vision model; agreement, latency, latency_ms and size can.",
                param="require",
            )


def _rank(trial: VisionTrial) -> tuple[int, float, float]:
    """Fewest misses first; then, where agreement is among them, the most of it; then the fastest."""
    disagrees = any(one.metric == "agreement" for one in trial.missed)
    return len(trial.missed), -trial.values["agreement"] if disagrees else 0.0, trial.values["latency"]
