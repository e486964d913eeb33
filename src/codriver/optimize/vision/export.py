"""From a checkpoint of a vision net in torch to a ``.pte`` or ``.tflite`` file, proven in the engine that loads it.

Torch is not installed where Codriver is: the export runs in the toolkit's own environment, which leaves beside the file
what the net in torch says of the scored photos. The written file then goes through the engine that the caller opens,
and what it says is compared. The rules kept: the card's figures are of the file that ships, in the runtime that loads
it; the folder is no artifact until all of them are there. Limits: TwinLiteNet is the one architecture that is known.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from codriver.core.artifact import Artifact, ArtifactFile, Measured, save_artifact, sha256_of
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import BadConfigValue, BadModelFile, ChildDied, MissingFile
from codriver.core.messages import Tensor, TensorRequest

from ..environments import Toolkit, call, python

Format = Literal["pte", "tflite"]
Precision = Literal["fp32", "int8"]
Open = Callable[[Path, Path], Awaitable[Engine]]  # the model file and the toolkit's Python, to the engine with it
Floats = NDArray[np.float32]

_TORCH = "torch==2.13.0"
TOOLKITS: Mapping[str, Toolkit] = {
    # ExecuTorch 1.4 asks for torch 2.13; 1.5 is made for a later one.
    "pte": Toolkit("executorch", ("executorch==1.4.1", _TORCH, "torchao==0.18.0", "pillow==13.0.0")),
    "tflite": Toolkit(
        "litert", ("litert-torch==0.10.0", "ai-edge-quantizer==0.10.0", _TORCH, "torchao==0.18.0", "pillow==13.0.0")
    ),
}
_ROUNDED_BY = {"pte": "PT2E", "tflite": "ai-edge-quantizer, convolutions alone"}
_SCRIPTS = {"pte": "export_executorch.py", "tflite": "export_litert.py"}
_INPUT = "input"
# Published weights, by sha256, and the licence that their source states.
_LICENCES = {"98ffc6c8abc98fda72052117249ce4e2dbc85e58cfcfc6ee2d42f5398c772463": "MIT"}


@dataclass(frozen=True)
class Exporting:
    """``calibration`` shows what goes into an int8 net; ``scored`` is what the file is compared with torch on."""

    to: Format
    scored: tuple[Path, ...]
    calibration: tuple[Path, ...] = ()
    precision: Precision = "fp32"
    runs: int = 20

    def __post_init__(self) -> None:
        for value, known, param in ((self.to, Format, "to"), (self.precision, Precision, "precision")):
            if value not in get_args(known):
                raise BadConfigValue(f"'{value}' is not known; there are: {', '.join(get_args(known))}.", param=param)
        if not self.scored:
            raise BadConfigValue("There is no photo to compare the file on.", param="scored")
        if self.precision == "int8" and not self.calibration:
            raise BadConfigValue("int8 needs photos that show what goes into the net.", param="calibration")
        if both := {file.resolve() for file in self.calibration} & {file.resolve() for file in self.scored}:
            raise BadConfigValue(f"{min(both)} is both a calibration photo and a scored one.", param="calibration")


def export(checkpoint: Path, out: Path, wanted: Exporting, open_engine: Open, told: Callable[[str], None]) -> Artifact:
    """``checkpoint`` to an artifact in ``out``. ``told`` gets a line per step.

    Errors: :class:`MissingFile`, :class:`BadConfigValue`; :class:`BadModelFile` naming the tensor of a checkpoint that
    is not known; those of :func:`codriver.optimize.environments.python`; those of the engine.
    """
    for file in (checkpoint, *wanted.calibration, *wanted.scored):
        if not file.is_file():
            raise MissingFile(f"The file {file} does not exist.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadConfigValue(f"The folder {out} is not empty; name another one.", param="out")
    toolkit = TOOLKITS[wanted.to]
    interpreter = python(toolkit, told)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as work:
        made = _written(checkpoint, Path(work), wanted, told)
        expected = dict(np.load(Path(work) / "expected.npz"))
        told("runs it in its engine")
        card = asyncio.run(_measured(made, interpreter, expected, (open_engine, wanted.runs)))
        out.mkdir(exist_ok=True)
        kept = out / made.name
        shutil.move(made, kept)
    size = kept.stat().st_size
    steps = (f"from {checkpoint.name}, sha256 {sha256_of(checkpoint)}", _how(wanted), *toolkit.requirements)
    artifact = Artifact(
        name=f"{checkpoint.stem}-{wanted.precision}",
        files=(ArtifactFile(kept.name, wanted.to, size, sha256_of(kept)),),
        bits_per_weight=8 * size / int(expected["weights"]),
        target="host",
        lineage=steps,
        licence=_LICENCES.get(sha256_of(checkpoint), "not stated by the source"),
        card=(Measured("size", float(size), "bytes", 1), *card),
    )
    save_artifact(artifact, out)
    return artifact


def _written(checkpoint: Path, work: Path, wanted: Exporting, told: Callable[[str], None]) -> Path:
    files = [*map(str, map(Path.absolute, wanted.calibration)), "--", *map(str, map(Path.absolute, wanted.scored))]
    script = Path(__file__).with_name(_SCRIPTS[wanted.to])
    try:
        call(TOOLKITS[wanted.to], script, [str(checkpoint.absolute()), wanted.precision, str(work), *files], told)
    except ChildDied as error:
        if "is no " in error.message:  # what the script says of a checkpoint or a photo
            raise BadModelFile(error.message.partition(" failed: ")[2] + ".") from error
        raise
    return work / f"model.{wanted.to}"


def _how(wanted: Exporting) -> str:
    if wanted.precision == "fp32":
        return f"exported to {wanted.to} as float32"
    by = _ROUNDED_BY[wanted.to]
    return f"exported to {wanted.to} as int8 by {by}, calibrated on {len(wanted.calibration)} photos"


async def _measured(
    file: Path, interpreter: Path, expected: Mapping[str, NDArray[Any]], how: tuple[Open, int]
) -> list[Measured]:
    open_engine, runs = how
    engine = await open_engine(file, interpreter)
    try:
        feeds = [_feed(engine, photo) for photo in expected[_INPUT]]
        said = [(await engine.infer(feed, Deadline.never())).outputs for feed in feeds]
        taken_ms = []
        for at in range(runs):
            began_s = time.perf_counter()
            await engine.infer(feeds[at % len(feeds)], Deadline.never())
            taken_ms.append(1e3 * (time.perf_counter() - began_s))
        peak = engine.peak_bytes() if hasattr(engine, "peak_bytes") else 0
    finally:
        await engine.aclose()
    heads = [name for name in expected if name not in (_INPUT, "weights")]
    rows = []
    for at, head in enumerate(heads):
        got = np.concatenate([np.frombuffer(one[at].data, one[at].dtype).reshape(one[at].shape) for one in said])
        rows += agreement(head, got.astype(np.float32), expected[head])
    low, middle, high = np.quantile(taken_ms, (0.05, 0.5, 0.95))
    note = "median; from the 5th to the 95th percentile; one thread, through the engine"
    rows.append(Measured("latency_ms", float(middle), "ms", runs, float(low), float(high), note))
    if peak:
        rows.append(Measured("rss", float(peak), "bytes", 1, note="the most that the runtime's process ever had"))
    return rows


def _feed(engine: Engine, photo: Floats) -> TensorRequest:
    ((name, spec),) = engine.inputs.items()  # type: ignore[attr-defined]
    shape = (1, *photo.shape)
    if tuple(spec.shape) != shape or spec.dtype != "float32":
        raise BadModelFile(f"The graph's input '{name}' is {spec.dtype} {spec.shape}, not float32 {shape}.")
    return TensorRequest((Tensor(name, "float32", shape, np.ascontiguousarray(photo, "<f4").tobytes()),))


def agreement(head: str, got: Floats, expected: Floats) -> list[Measured]:
    """How like are two sets of scores, (photos, classes, height, width)? Over all pixels the share of the same choice;
    of the photos the least cosine; the largest difference of a score. Errors: :class:`BadModelFile` for another shape.
    """
    if got.shape != expected.shape:
        raise BadModelFile(f"The output '{head}' has shape {got.shape}; the net in torch gives {expected.shape}.")
    same = got.argmax(1) == expected.argmax(1)
    per_photo = [float(one.mean()) for one in same]
    cosines = []
    for one, other in zip(got.reshape(len(got), -1), expected.reshape(len(got), -1), strict=True):
        cosines.append(float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12)))
    count = len(got)
    against = "against the net in torch"
    spread = f"{against}; pixels of {count} photos, from the worst photo to the best"
    return [
        Measured(
            f"same_top@{head}", float(same.mean()), "share", int(same.size), min(per_photo), max(per_photo), spread
        ),
        Measured(f"cosine@{head}", min(cosines), "", count, min(cosines), max(cosines), f"{against}; the worst photo"),
        Measured(f"max_abs@{head}", float(np.abs(got - expected).max()), "", int(got.size), note=against),
    ]
