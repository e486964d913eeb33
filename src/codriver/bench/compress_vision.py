"""Vision models in int8: Codriver's artifact beside ONNX Runtime's default static quantisation and NNCF's default, on
the same calibration pictures, each file in every runtime, timed in turn in one process.

Two figures stand for accuracy, as no labelled set of the models' own classes is at hand: ``agreement``, COCO's
average precision against the boxes of the 32-bit model, and ``label_iou``, from CamVid's human labels per pixel: of
vehicles and of people, the intersection over union of the labelled pixels with the union of the boxes found (scores
of 0.3 and more). A box covers more than its object, so that 1 is out of reach; it is the same for all systems. The
pictures that are scored are another part of the recordings than those that calibrated or chose.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codriver.catalogue import Catalogue, Store
from codriver.core.errors import BadModelFile, CodriverError, RequirementMissed
from codriver.optimize.recipe import Recipe
from codriver.optimize.requirement import parse_requirements
from codriver.optimize.vision.equalise import Equalise
from codriver.optimize.vision.onnx_file import read_model, read_onnx, write_model
from codriver.optimize.vision.optimise import VisionOptimisation, VisionSettings
from codriver.optimize.vision.pictures import Feed, feed_of, pictures_in, spread
from codriver.optimize.vision.prepare import converted
from codriver.optimize.vision.runtime import Graph, Times, interleaved, open_graph, usable
from codriver.optimize.vision.static import StaticInt8, runtime_default
from codriver.optimize.vision.tasks import Boxes, Task, task_of

from .drive_inputs import data_folder
from .rows import Report, Row, machine

Floats = NDArray[np.float32]
_REQUIRED = "agreement>=0.95, latency<=0.66x"
_SURE = 0.3
# COCO's classes that are CamVid's: car, motorcycle, bus, truck; person.
_GROUPS = (((8,), (2, 3, 5, 7)), ((9, 10), (0,)))
_QUICK = Recipe((("cross-layer-equalise", Equalise()), ("static-int8", StaticInt8(most_noise=0.05))))
_RESAMPLED = 200
_NO_RIVAL = "not measured: NNCF is not in $CODRIVER_RIVALS; `make bench` installs it there"


@dataclass(frozen=True)
class Sizes:
    """Pictures that calibrate, that are scored, and rounds of timing; the one recipe that is tried, or all."""

    calibrated: int
    scored: int
    rounds: int
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Case:
    """A model, how pictures go into it, and the pictures: for making it, and for scoring."""

    name: str
    file: Path
    look: str
    making: Sequence[Path]
    scoring: Sequence[Path]


def run(quick: bool = False) -> Report:
    """Errors: :class:`MissingFile` without the pictures."""
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    sizes = Sizes(6, 16, 12, _QUICK) if quick else Sizes(16, 60, 60)
    with tempfile.TemporaryDirectory(prefix="codriver-vision-") as folder:
        rows = [row for case in _cases(quick, Path(folder)) for row in _measure(case, Path(folder), sizes)]
    return Report("compress-vision", machine(), begun, rows)


def _cases(quick: bool, folder: Path) -> list[Case]:
    """YOLOv4-tiny, from the catalogue; YOLOX-Nano, beside the recorded data, where not ``quick``."""
    vision = data_folder() / "vision"
    pictures = pictures_in(vision / "camvid" / "test")
    cut = 2 * len(pictures) // 5
    store, files = Store(), Catalogue.load()
    weights = folder / "yolov4-tiny.weights"
    weights.symlink_to(store.path(files.entry("yolov4-tiny")))
    weights.with_suffix(".cfg").symlink_to(store.path(files.entry("yolov4-tiny-cfg")))
    cases = [Case("YOLOv4-tiny 416", weights, "rgb 0..1", pictures[:cut], pictures[cut + 10 :])]
    nano = vision / "yolox_nano" / "yolox_nano.onnx"
    if nano.is_file() and not quick:
        cases.append(Case("YOLOX-Nano 416", nano, "bgr 0..255", pictures[:cut], pictures[cut + 10 :]))
    return cases


def _measure(case: Case, folder: Path, sizes: Sizes) -> list[Row]:
    source = folder / f"{case.name.split()[0]}.onnx"
    write_model(converted(read_model(case.file), case.file), source)
    model = read_onnx(source)
    feed = feed_of(model, source, case.look)
    task = task_of(model, feed.height, feed.width)
    inputs = [feed.read(file) for file in spread(case.making, sizes.calibrated)]
    made: dict[str, Path | str] = {
        "fp32": source,
        "codriver": _ours(case, folder / f"{source.stem}-ours", sizes),
        "onnxruntime static, its defaults": _made(
            source, folder, "default", lambda target: runtime_default(source, target, inputs)
        ),
        "nncf, its defaults": _nncf(source, folder, inputs),
    }
    rows, graphs = [], {}
    for system, file in made.items():
        if isinstance(file, str):
            rows.append(Row(system, case.name, "agreement", 0.0, "share", 0, note=file))
            continue
        rows.append(Row(system, case.name, "bytes", float(file.stat().st_size), "bytes", 1))
        for runtime in usable():
            graphs[system, runtime] = open_graph(file, runtime, 1)
    shown = spread(case.scoring, sizes.scored)
    named: dict[str, Graph] = {f"{system}|{runtime}": graph for (system, runtime), graph in graphs.items()}
    times = interleaved(named, [feed.read(file) for file in shown[:4]], sizes.rounds)
    return rows + _scored(case, (feed, task), shown, named) + _timed(case, times)


def _ours(case: Case, out: Path, sizes: Sizes) -> Path | str:
    """The product's own way, which sees the pictures for making alone; the nearest where it misses."""
    settings = VisionSettings(case.making, case.look, "", sizes.calibrated, sizes.scored, 1, sizes.rounds)
    settings = replace(settings, recipe=sizes.recipe)
    try:
        way = VisionOptimisation(case.file, out, settings, lambda step: lambda done, of: None)
        way.run(parse_requirements(_REQUIRED))
    except RequirementMissed:
        pass  # the rows say by how much
    return out / "model.onnx"


def _made(source: Path, folder: Path, kind: str, make: Callable[[Path], None]) -> Path | str:
    """The file, or why there is none."""
    target = folder / f"{source.stem}-{kind}.onnx"
    try:
        make(target)
        open_graph(target, "onnxruntime", 1)
    except (CodriverError, RuntimeError, ValueError) as error:
        return f"it makes no file that loads: {str(error)[:200]}"
    return target


def _nncf(source: Path, folder: Path, inputs: Sequence[Floats]) -> Path | str:
    python = Path(os.environ.get("CODRIVER_RIVALS") or "/nonexistent") / "bin" / "python"
    script = Path(__file__).with_name("compress_vision_rival.py")
    found = (
        python.exists()
        and not subprocess.run(
            [str(python), "-c", "import nncf, onnxruntime"], capture_output=True, check=False
        ).returncode
    )
    if not found:
        return _NO_RIVAL
    pictures = folder / "inputs.npz"
    np.savez(pictures, *inputs)

    def make(target: Path) -> None:
        command = [str(python), str(script), str(source), str(target), str(pictures)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise BadModelFile(f"NNCF ended with {done.returncode}: {lines[-1][:200]}")

    return _made(source, folder, "nncf", make)


def _scored(case: Case, how: tuple[Feed, Task], shown: Sequence[Path], graphs: dict[str, Graph]) -> list[Row]:
    feed, task = how
    outputs: dict[str, list[list[Floats]]] = {name: [] for name in graphs}
    pixels: dict[str, list[NDArray[np.int64]]] = {name: [] for name in graphs}
    for file in shown:
        picture, labels = feed.read(file), _labels(file)
        for name, graph in graphs.items():
            outputs[name].append(graph.run(picture))
            pixels[name].append(_pixels(task.boxes(outputs[name][-1]).sure(_SURE), labels, feed))
    reference = outputs["fp32|onnxruntime"]
    boxes = sum(len(task.boxes(one).sure().scores) for one in reference)
    rows = []
    for name in graphs:
        system, _, runtime = name.partition("|")
        label = f"{case.name} in {runtime}"
        agreed = task.agreements(reference, outputs[name])
        value, again = agreed(np.arange(len(shown))), _resampled(len(shown), agreed)
        note = f"AP@0.5:0.95 against {boxes} boxes of fp32"
        rows.append(Row(system, label, "agreement", value, "share", len(shown), *again, note))
        counts = np.array(pixels[name])
        again = _resampled(len(shown), lambda at, counts=counts: _iou(counts[at]))  # type: ignore[misc]
        rows.append(Row(system, label, "label_iou", _iou(counts), "share", len(shown), *again, "CamVid's labels"))
    return rows


def _timed(case: Case, times: dict[str, Times]) -> list[Row]:
    rows = []
    fastest = min((name for name in times if name.startswith("fp32|")), key=lambda name: times[name].p50_ms)
    for name, one in times.items():
        system, _, runtime = name.partition("|")
        label, count = f"{case.name} in {runtime}", len(one.wall_ms)
        rows.append(Row(system, label, "latency_p50", one.p50_ms, "ms", count, *one.interval(), "one thread"))
        rows.append(Row(system, label, "cpu_p50", one.cpu_p50_ms, "ms", count, note="processor time"))
        best = f"the fastest fp32 is in {fastest.partition('|')[2]}"
        rows.append(Row(system, label, "speedup", times[fastest].p50_ms / one.p50_ms, "×", count, note=best))
        speedup = times[fastest].cpu_p50_ms / one.cpu_p50_ms
        rows.append(Row(system, label, "cpu_speedup", speedup, "×", count, note=f"processor time; {best}"))
    return rows


def _labels(file: Path) -> NDArray[np.uint8]:
    """CamVid's classes by pixel, as the picture is."""
    from PIL import Image

    with Image.open(file.parent.with_name(f"{file.parent.name}annot") / file.name) as opened:
        return np.array(opened, np.uint8)


def _pixels(found: Boxes, labels: NDArray[np.uint8], feed: Feed) -> NDArray[np.int64]:
    """(groups, 2): pixels in both, and in either, of the picture as it is."""
    height, width = labels.shape
    wide, high = feed.scaled(width, height)
    corners = np.rint(found.corners * np.array([width / wide, height / high] * 2)).astype(int)
    counts = []
    for labelled, classes in _GROUPS:
        covered = np.zeros(labels.shape, bool)
        for left, top, right, bottom in corners[np.isin(found.classes, classes)]:
            covered[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
        truth = np.isin(labels, labelled)
        counts.append([int((covered & truth).sum()), int((covered | truth).sum())])
    return np.array(counts, np.int64)


def _iou(counts: NDArray[np.int64]) -> float:
    """Over pictures (n, groups, 2), then the mean of the groups."""
    sums = counts.sum(0)
    return float((sums[:, 0] / np.maximum(1, sums[:, 1])).mean())


def _resampled(count: int, value: Callable[[NDArray[np.int64]], float]) -> tuple[float, float]:
    """95 % of the value over pictures drawn again (Efron 1979), from a fixed seed."""
    random = np.random.default_rng(0)
    drawn = [value(random.integers(0, count, count)) for _ in range(_RESAMPLED)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)
