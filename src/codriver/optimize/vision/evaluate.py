"""How good is a vision graph? How far it agrees with another on pictures, how fast it is, and what memory it takes.

Measured on the files themselves, in every runtime that is installed, in turn with the reference. Agreement is not
accuracy (``tasks``), and pictures that the file was calibrated on flatter it: which those were is not in a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from codriver.core.artifact import Measured
from codriver.core.errors import BadConfigValue

from .footprint import footprint
from .onnx_file import read_model, refuse_unusable, write_model
from .optimise import agreed
from .pictures import Feed, feed_of, spread
from .runtime import Graph, interleaved, open_graph, usable
from .tasks import task_of

Floats = NDArray[np.float32]
_TIMED = 4  # pictures that the timed runs go through


@dataclass(frozen=True)
class Judging:
    """``look``: how pictures go in, where neither file says. ``scored``: pictures at most."""

    pictures: Sequence[Path]
    look: str = ""
    scored: int = 48
    threads: int = 1
    rounds: int = 20


def evaluate(file: Path, reference: Path | None, how: Judging, told: Callable[[str], None]) -> list[Measured]:
    """``metric@runtime`` for each runtime. ``told`` gets a line per step.

    Errors: those of ``read_model``, ``refuse_unusable`` and ``feed_of``; :class:`BadConfigValue` for a reference that
    takes or gives something else.
    """
    model = read_model(file)
    judge = None if reference is None else read_model(reference)
    if judge is not None:
        _refuse_unlike((file, model), (reference, judge))
    feed = _feed(file, (model, judge), how.look)
    pictures = [feed.read(one) for one in spread(how.pictures, how.scored)]
    with tempfile.TemporaryDirectory(prefix="codriver-evaluate-") as folder:
        files = {"": _as_onnx(file, model, Path(folder) / "model.onnx")}
        if reference is not None and judge is not None:
            files["reference "] = _as_onnx(reference, judge, Path(folder) / "reference.onnx")
        for one in files.values():
            told(f"loads {one.name} in a process of its own")
            refuse_unusable(one)
        opened = {
            f"{name}{runtime}": open_graph(one, runtime, how.threads)
            for runtime in usable()
            for name, one in files.items()
        }
        told(f"runs {len(pictures)} pictures")
        rows = _agreements(model, judge, feed, (opened, pictures))
        told("times it")
        rows += _latencies(opened, pictures[:_TIMED], how)
        for runtime in usable():
            rows.append(_in(runtime, footprint(files[""], runtime, how.threads)))
    return rows


def _agreements(
    model: onnx.ModelProto, judge: onnx.ModelProto | None, feed: Feed, run: tuple[dict[str, Graph], list[Floats]]
) -> list[Measured]:
    opened, pictures = run
    if judge is None:
        return []
    # What boxes are is noted beside a graph, and passes may have lost the note.
    task = task_of(judge, feed.height, feed.width)
    right = [opened[f"reference {usable()[0]}"].run(picture) for picture in pictures]
    if task.finds_boxes and not any(len(task.boxes(one).sure().scores) for one in right):
        raise BadConfigValue(
            f"The reference finds nothing in the {len(pictures)} pictures: they say nothing about the other, or they "
            "go in the wrong way (--look).",
            param="pictures",
        )
    return [
        _in(runtime, agreed(task, right, [opened[runtime].run(picture) for picture in pictures]))
        for runtime in usable()
    ]


def _latencies(opened: dict[str, Graph], pictures: Sequence[Floats], how: Judging) -> list[Measured]:
    rows = []
    times = interleaved(opened, pictures, how.rounds)
    for name, one in times.items():
        judge, runtime = name.startswith("reference "), name.removeprefix("reference ")
        low, high = one.interval()
        note = f"{how.threads} threads, p50, in turn"
        metric = "reference_latency_ms" if judge else "latency_ms"
        rows.append(_in(runtime, Measured(metric, one.p50_ms, "ms", len(one.wall_ms), low, high, note)))
    quickest = min(
        (name for name in times if name.startswith("reference ")), key=lambda name: times[name].p50_ms, default=""
    )
    for runtime in usable() if quickest else ():
        ratio = times[runtime].p50_ms / times[quickest].p50_ms
        rows.append(_in(runtime, Measured("latency_ratio", ratio, "×", how.rounds, note=f"over the {quickest}")))
    return rows


def _as_onnx(file: Path, model: onnx.ModelProto, target: Path) -> Path:
    """The file itself where a runtime reads it, so that errors name it."""
    if file.suffix == ".onnx":
        return file
    write_model(model, target)
    return target


def _in(runtime: str, row: Measured) -> Measured:
    return msgspec.structs.replace(row, metric=f"{row.metric}@{runtime}")


def _feed(file: Path, models: tuple[onnx.ModelProto, onnx.ModelProto | None], look: str) -> Feed:
    """As the file says; where it does not, as the reference does."""
    for model in models:
        for pair in model.metadata_props if model is not None else ():
            look = look or (pair.value if pair.key == "codriver.pictures" else "")
    return feed_of(models[0], file, look or None)


def _refuse_unlike(one: tuple[Path, onnx.ModelProto], other: tuple[Path | None, onnx.ModelProto]) -> None:
    for what in ("input", "output"):
        mine, right = _shapes(one[1], what), _shapes(other[1], what)
        if mine != right:
            raise BadConfigValue(
                f"The {what}s of {one[0]} are {mine} and those of {other[0]} {right}: they cannot be compared.",
                param="reference",
            )


def _shapes(model: onnx.ModelProto, what: str) -> list[tuple[int, ...]]:
    given = {one.name for one in model.graph.initializer}
    values = model.graph.input if what == "input" else model.graph.output
    return [tuple(side.dim_value for side in one.type.tensor_type.shape.dim) for one in values if one.name not in given]
