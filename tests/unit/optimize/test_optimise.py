"""The whole way, on two layers of a real model: types chosen, weights rounded, the file measured and judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from codriver.core.artifact import load_artifact
from codriver.core.errors import BadConfigValue, RequirementMissed
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.optimise import Optimisation, Settings
from codriver.optimize.requirement import parse_requirements


@pytest.fixture
def steps() -> list[str]:
    return []


def optimisation(model: Path, out: Path, text: str, steps: list[str]) -> Optimisation:
    settings = Settings(text, text[: len(text) // 2], windows=8, judged=1, sensed=1, bands=1, threads=2, runs=1)

    def told(step: str):  # type: ignore[no-untyped-def]
        steps.append(step)
        return lambda done, of: None

    return Optimisation(model, out, settings, told)


def test_an_artifact_meets_its_requirement_and_says_how_it_was_measured(
    short_model: Path, sentences: str, tmp_path: Path, steps: list[str]
) -> None:
    out = tmp_path / "artifact"
    required = parse_requirements("size<=28MB, kl<=0.5, ttft_ms<=60000@64")
    trial = optimisation(short_model, out, sentences, steps).run(required)
    assert trial.missed == ()
    artifact = load_artifact(out)
    card = {one.metric: one for one in artifact.card}
    file = out / artifact.files[0].name
    assert file.stat().st_size == card["size"].value <= 28e6
    assert card["kl"].value < 0.5 and card["kl"].n == 255 and card["kl"].low is not None
    assert {"ppl", "same_top", "ttft_ms@64", "decode_tps", "rss"} <= set(card)
    assert 4.5 <= artifact.bits_per_weight < GgufFile(short_model).header.tensor_bytes["Q8_0"]
    assert artifact.lineage[0].startswith("sha256:")
    kinds = {tensor.type for tensor in GgufFile(file) if len(tensor.shape) == 2}
    assert len(kinds) > 1, "one type for all is no allocation"
    # What took long is kept: the next runs do not do it again.
    steps.clear()
    work = tmp_path / "artifact.work"
    _nearest_is_kept(short_model, work.rename(tmp_path / "other.work"), sentences, steps)
    _too_small_is_told(short_model, work.parent / "other.work", sentences, steps)
    assert not any("suffers" in step for step in steps)


def _nearest_is_kept(model: Path, work: Path, text: str, steps: list[str]) -> None:
    out = work.with_name("other")
    with pytest.raises(
        RequirementMissed, match=r"No artifact meets kl<=1e-06 \(it has 0\.\d+\)\. The nearest is kept in"
    ):
        optimisation(model, out, text, steps).run(parse_requirements("size<=28MB, kl<=0.000001"))
    assert RequirementMissed.exit_code == 3
    assert load_artifact(out).files[0].size_bytes <= 28e6
    with pytest.raises(BadConfigValue, match=r"folder .*other is not empty; name another one"):
        optimisation(model, out, text, steps)


def _too_small_is_told(model: Path, work: Path, text: str, steps: list[str]) -> None:
    out = work.rename(work.with_name("third.work")).with_name("third")
    with pytest.raises(BadConfigValue, match=r"smallest types that are allowed take [\d,]+ bytes; the budget is"):
        optimisation(model, out, text, steps).run(parse_requirements("size<=10MB"))


def test_a_calibration_text_that_is_too_short_is_told_before_anything_is_made(
    short_model: Path, tmp_path: Path, steps: list[str]
) -> None:
    with pytest.raises(BadConfigValue, match=r"too short: its last fifth has \d+ tokens, and 2048 are needed"):
        optimisation(short_model, tmp_path / "out", "A few words. " * 100, steps)
    assert steps == []
