"""A vision net from torch to the runtimes of car computers: the whole way (slow), and what is refused before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy", reason="needs the extra: pip install 'codriver[optimize]'")

import numpy as np

from codriver.catalogue import default_root
from codriver.core.artifact import load_artifact
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import BadConfigValue, BadModelFile, MissingFile, SourceUnavailable
from codriver.core.messages import Tensor, TensorRequest
from codriver.engines.executorch import ExecuTorch, ExecuTorchConfig
from codriver.engines.litert import LiteRt, LiteRtConfig
from codriver.optimize.vision.export import Exporting, agreement, export

Shared = Callable[[str], Path]
HOME = default_root()  # as it was when the run began: environments are made once


def quiet(line: str) -> None:
    """Progress that nobody reads."""


async def never(file: Path, python: Path) -> Engine:
    raise AssertionError("nothing was written that an engine could load")


def test_what_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    photo, other, checkpoint, out = (tmp_path / name for name in ("a.jpg", "b.jpg", "net.pth", "out"))
    for file in (photo, other, checkpoint):
        file.write_bytes(b"")
    with pytest.raises(BadConfigValue, match="int8 needs photos"):
        Exporting("pte", (photo,), precision="int8")
    with pytest.raises(BadConfigValue, match="int8 needs photos"):
        Exporting("tflite", (photo,), precision="int8")
    with pytest.raises(BadConfigValue, match=r"a\.jpg is both a calibration photo and a scored one"):
        Exporting("pte", (photo,), (other, photo), "int8")
    with pytest.raises(BadConfigValue, match="no photo to compare"):
        Exporting("pte", ())
    wrong: Any = "trt"
    with pytest.raises(BadConfigValue, match="'trt' is not known; there are: pte, tflite"):
        Exporting(wrong, (photo,))
    with pytest.raises(MissingFile, match=r"none\.pth does not exist"):
        export(tmp_path / "none.pth", out, Exporting("pte", (photo,)), never, quiet)
    out.mkdir()
    (out / "kept").write_text("")
    with pytest.raises(BadConfigValue, match="is not empty"):
        export(checkpoint, out, Exporting("pte", (photo,)), never, quiet)


def test_agreement_counts_pixels_and_names_the_worst_photo() -> None:
    chance = np.random.default_rng(1)
    expected = chance.normal(size=(2, 3, 4, 5)).astype(np.float32)
    rows = {row.metric: row for row in agreement("road", expected.copy(), expected)}
    assert rows["same_top@road"].value == 1.0 and rows["same_top@road"].n == 2 * 4 * 5
    assert rows["cosine@road"].value == pytest.approx(1.0, abs=1e-6)
    assert rows["max_abs@road"].value == 0.0
    got = expected.copy()
    got[1] = -got[1]
    rows = {row.metric: row for row in agreement("road", got, expected)}
    assert rows["cosine@road"].value == pytest.approx(-1.0, abs=1e-6)
    assert rows["cosine@road"].high == pytest.approx(1.0, abs=1e-6)
    assert rows["same_top@road"].value == 0.5 and rows["same_top@road"].low == 0.0
    assert rows["max_abs@road"].value == pytest.approx(2 * float(np.abs(expected[1]).max()))
    with pytest.raises(BadModelFile, match=r"'road' has shape \(2, 3, 4, 4\); the net in torch gives"):
        agreement("road", expected[..., :4], expected)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("to", ["pte", "tflite"])
def test_a_checkpoint_is_written_loaded_and_compared(
    to: Any, tmp_path: Path, shared_data: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetches the toolkit where it is not there yet: gigabytes."""
    monkeypatch.setenv("CODRIVER_HOME", str(HOME))
    folder = shared_data("vision/twinlitenet")
    photos = tuple(sorted(folder.glob("*.jpg")))
    used: list[Path] = []

    async def engine(file: Path, python: Path) -> Engine:
        used.append(python)
        if to == "pte":
            return await ExecuTorch.start(ExecuTorchConfig(model=file, python=python))
        return await LiteRt.start(LiteRtConfig(model=file, python=python))

    def make(checkpoint: Path, name: str) -> None:
        try:
            export(checkpoint, tmp_path / name, Exporting(to, photos, runs=3), engine, quiet)
        except SourceUnavailable as error:
            pytest.skip(error.message)

    make(folder / "best.pth", "out")
    artifact = load_artifact(tmp_path / "out")
    card = {row.metric: row for row in artifact.card}
    assert artifact.licence == "MIT"
    for head in ("drivable", "lanes"):
        assert card[f"same_top@{head}"].value > 0.9999
        assert card[f"same_top@{head}"].n == len(photos) * 360 * 640
        assert card[f"cosine@{head}"].value > 0.99999
    assert card["latency_ms"].n == 3

    async def again() -> tuple[int, ...]:
        opened: Any = await engine(tmp_path / "out" / artifact.files[0].name, used[0])
        ((name, spec),) = opened.inputs.items()
        feed = Tensor(name, spec.dtype, spec.shape, bytes(4 * 3 * 360 * 640))
        found = (await opened.infer(TensorRequest((feed,)), Deadline.never())).outputs
        await opened.aclose()
        return tuple(found[0].shape)

    assert asyncio.run(again()) == (1, 2, 360, 640)

    if to == "tflite":
        small = Exporting(to, photos[1:], photos[:1], "int8", runs=3)
        made = export(folder / "best.pth", tmp_path / "int8", small, engine, quiet)
        card = {row.metric: row for row in made.card}
        assert card["size"].value < artifact.files[0].size_bytes / 2.5
        assert 0.95 < card["same_top@drivable"].value < 1 and 0.97 < card["same_top@lanes"].value < 1
        assert any("int8 by ai-edge-quantizer" in step for step in made.lineage)

    cut = tmp_path / "cut.pth"
    cut.write_bytes((folder / "best.pth").read_bytes()[:5000])
    with pytest.raises(BadModelFile, match=r"cut\.pth is no checkpoint of plain tensors"):
        make(cut, "none")
    assert not (tmp_path / "none").exists()
