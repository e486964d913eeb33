"""Vision models in int8: Codriver's artifact beside ONNX Runtime's default static quantisation and NNCF's default, on
the same calibration pictures, each file in every runtime, timed in turn in one process.

Two figures stand for accuracy: ``agreement`` with the 32-bit model, COCO's average precision against its boxes or the
mean IoU with its labels per pixel, and ``label_iou``, from CamVid's human labels (``compress_vision_labels``). The
pictures that are scored are another part of the recordings than those that calibrated or chose. What the 32-bit graph
can be rid of without a change of what it computes (batch norms, TwinLiteNet's dead attention) it is rid of, as every
system starts from it; the speeds are over the fastest 32-bit run of all runtimes.
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
from codriver.optimize.vision.tasks import Task, task_of

from .compress_vision_labels import Counts, counted, labels_of, mean_iou
from .drive_inputs import data_folder
from .rows import Report, Row, machine

Floats = NDArray[np.float32]
_REQUIRED = "agreement>=0.95, latency<=0.66x"
_QUICK = Recipe((("cross-layer-equalise", Equalise()), ("static-int8", StaticInt8(most_noise=0.05))))
_RESAMPLED = 200
_NO_RIVAL = (
    "not measured: NNCF, or the runtime that it works on, is not in $CODRIVER_RIVALS; `make bench` installs it there"
)


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
    sizes = Sizes(6, 16, 12, _QUICK) if quick else Sizes(8, 40, 24)
    with tempfile.TemporaryDirectory(prefix="codriver-vision-") as folder:
        rows = [row for case in _cases(quick, Path(folder)) for row in _measure(case, Path(folder), sizes)]
    return Report("compress-vision", machine(), begun, rows)


def _cases(quick: bool, folder: Path) -> list[Case]:
    """YOLOv4-tiny, from the catalogue; those beside the recorded data, where not ``quick``."""
    vision = data_folder() / "vision"
    pictures = pictures_in(vision / "camvid" / "test")
    cut = 2 * len(pictures) // 5
    store, files = Store(), Catalogue.load()
    weights = folder / "yolov4-tiny.weights"
    weights.symlink_to(store.path(files.entry("yolov4-tiny")))
    weights.with_suffix(".cfg").symlink_to(store.path(files.entry("yolov4-tiny-cfg")))
    making, scoring = pictures[:cut], pictures[cut + 10 :]
    cases = [Case("YOLOv4-tiny 416", weights, "rgb 0..1", making, scoring)]
    beside = (
        Case("TwinLiteNet 640x360", vision / "twinlitenet" / "best.pth", "rgb 0..1 stretch", making, scoring),
        Case("YOLOX-Nano 416", vision / "yolox_nano" / "yolox_nano.onnx", "bgr 0..255", making, scoring),
    )
    return cases + [case for case in beside if case.file.is_file() and not quick]


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
            folder / f"{source.stem}-default.onnx", lambda target: runtime_default(source, target, inputs)
        ),
        "nncf, its defaults": _nncf(source, folder / f"{source.stem}-nncf.onnx", inputs),
        "nncf to OpenVINO IR, its defaults": _nncf(source, folder / f"{source.stem}-nncf.xml", inputs),
    }
    rows, graphs = [], {}
    for system, file in made.items():
        if isinstance(file, str):
            rows.append(Row(system, case.name, "agreement", 0.0, "share", 0, note=file))
            continue
        rows.append(Row(system, case.name, "bytes", float(_size(file)), "bytes", 1))
        for runtime in _runtimes(file):
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


def _made(target: Path, make: Callable[[Path], None]) -> Path | str:
    """The file, or why there is none."""
    try:
        make(target)
        for runtime in _runtimes(target):
            open_graph(target, runtime, 1)
    except (CodriverError, RuntimeError, ValueError) as error:
        return f"it makes no file that loads: {str(error)[:200]}"
    return target


def _runtimes(file: Path) -> tuple[str, ...]:
    """OpenVINO reads ONNX, and nobody else its IR."""
    return usable() if file.suffix == ".onnx" else ("openvino",)


def _size(file: Path) -> int:
    """An IR keeps its weights beside its graph."""
    weights = file.with_suffix(".bin")
    return file.stat().st_size + (weights.stat().st_size if file.suffix == ".xml" else 0)


def _nncf(source: Path, target: Path, inputs: Sequence[Floats]) -> Path | str:
    """``target``: ``.onnx``, or ``.xml`` for NNCF's way over OpenVINO's own graph."""
    python = Path(os.environ.get("CODRIVER_RIVALS") or "/nonexistent") / "bin" / "python"
    script = Path(__file__).with_name("compress_vision_rival.py")
    needs = "import nncf, onnxruntime" if target.suffix == ".onnx" else "import nncf, openvino"
    found = (
        python.exists() and not subprocess.run([str(python), "-c", needs], capture_output=True, check=False).returncode
    )
    if not found:
        return _NO_RIVAL
    pictures = target.with_suffix(".npz")
    np.savez(pictures, *inputs)

    def make(target: Path) -> None:
        command = [str(python), str(script), str(source), str(target), str(pictures)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise BadModelFile(f"NNCF ended with {done.returncode}: {lines[-1][:200]}")

    return _made(target, make)


def _scored(case: Case, how: tuple[Feed, Task], shown: Sequence[Path], graphs: dict[str, Graph]) -> list[Row]:
    feed, task = how
    outputs: dict[str, list[list[Floats]]] = {name: [] for name in graphs}
    pixels: dict[str, list[Counts]] = {name: [] for name in graphs}
    for file in shown:
        picture, labels = feed.read(file), labels_of(file)
        for name, graph in graphs.items():
            outputs[name].append(graph.run(picture))
            pixels[name].append(counted(task, outputs[name][-1], labels, feed))
    reference = outputs["fp32|onnxruntime"]
    against = "mean IoU with fp32's labels per pixel"
    if task.finds_boxes:
        boxes = sum(len(task.boxes(one).sure().scores) for one in reference)
        against = f"AP@0.5:0.95 against {boxes} boxes of fp32"
    rows = []
    for name in graphs:
        system, _, runtime = name.partition("|")
        label = f"{case.name} in {runtime}"
        agreed = task.agreements(reference, outputs[name])
        value, again = agreed(np.arange(len(shown))), _resampled(len(shown), agreed)
        rows.append(Row(system, label, "agreement", value, "share", len(shown), *again, against))
        counts = np.array(pixels[name])
        again = _resampled(len(shown), lambda at, counts=counts: mean_iou(counts[at]))  # type: ignore[misc]
        rows.append(Row(system, label, "label_iou", mean_iou(counts), "share", len(shown), *again, "CamVid's labels"))
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


def _resampled(count: int, value: Callable[[NDArray[np.int64]], float]) -> tuple[float, float]:
    """95 % of the value over pictures drawn again (Efron 1979), from a fixed seed."""
    random = np.random.default_rng(0)
    drawn = [value(random.integers(0, count, count)) for _ in range(_RESAMPLED)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)
