"""The whole way, on two layers of a real model or their corners: types chosen, weights rounded, the file judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from codriver.core.artifact import Measured, load_artifact, sha256_of
from codriver.core.errors import BadConfigValue, RequirementMissed
from codriver.optimize.calibrate import Inputs
from codriver.optimize.evaluate import Run
from codriver.optimize.ggml import quantise
from codriver.optimize.gguf_file import Changes, GgufFile, rewrite
from codriver.optimize.optimise import SENSITIVITY, Optimisation
from codriver.optimize.requirement import parse_requirements
from codriver.optimize.rounding import Rounder, Text, write_rounded
from codriver.optimize.sensitivity import Group, choices
from codriver.optimize.task import Settings, begin
from codriver.optimize.task_sets.asking import ask
from codriver.optimize.task_sets.questions import Question, TaskSet
from codriver.optimize.variant import Variant


@pytest.fixture
def steps() -> list[str]:
    return []


ASKED = TaskSet("own", tuple(Question(f"Is {n} even?", "AB"[n % 2], ("yes", "no")) for n in range(4)), whole=4)


def optimisation(model: Path, out: Path, text: str, steps: list[str]) -> Optimisation:
    sizes = {"windows": 4, "judged": 1, "sensed": 1, "bands": 1, "runs": 1}
    settings = Settings(text, text[: len(text) // 2], kinds=("Q4_0", "Q5_0", "Q8_0"), task_sets=(ASKED,), **sizes)

    def told(step: str) -> Callable[[int, int], None]:
        steps.append(step)
        return lambda done, of: None

    return Optimisation(model, out, settings, told)


def test_an_artifact_meets_its_requirement_and_says_how_it_was_measured(
    narrow_model: Path, sentences: str, tmp_path: Path, steps: list[str]
) -> None:
    out = tmp_path / "artifact"
    required = parse_requirements("size<=6500kB, kl<=0.5, ttft_ms<=60000@64, own>=-100%, own_flips<=1", ["own"])
    trial = optimisation(narrow_model, out, sentences, steps).run(required)
    assert trial.missed == ()
    artifact = load_artifact(out)
    card = {one.metric: one for one in artifact.card}
    file = out / artifact.files[0].name
    assert file.stat().st_size == card["size"].value <= 6.5e6
    assert card["kl"].value < 0.5 and card["kl"].n == 255 and card["kl"].low is not None
    assert {"ppl", "same_top", "ttft_ms@64", "decode_tps", "rss"} <= set(card)
    (alone,) = ask(file, [ASKED], Run(2))
    assert card["own"].value == sum(alone.right) / 4 and card["own"].note.startswith("chance 0.5, 0 examples")
    assert {"own_change", "own_flips", "own_same"} <= set(card)
    assert 4.5 <= artifact.bits_per_weight < 8.5
    assert artifact.lineage[0] == f"sha256:{sha256_of(narrow_model)}"
    assert artifact.lineage[1].startswith("types by measured KL; matrices rounded: ")
    kinds = {tensor.type for tensor in GgufFile(file) if len(tensor.shape) == 2}
    assert len(kinds) > 1, "one type for all is no allocation"
    assert (out / SENSITIVITY).exists(), "the report shows it"
    assert len(card["ttft_ms@64"].samples) == card["ttft_ms@64"].n == 1
    # What took long is kept: the next run does not do it again.
    steps.clear()
    (tmp_path / "artifact.work").rename(tmp_path / "third.work")
    with pytest.raises(BadConfigValue, match=r"smallest types that are allowed take [\d,]+ bytes; the budget is"):
        optimisation(narrow_model, tmp_path / "third", sentences, steps).run(parse_requirements("size<=4MB"))
    assert steps == []


@pytest.mark.slow
def test_what_nothing_meets_keeps_the_nearest(
    narrow_model: Path, sentences: str, tmp_path: Path, steps: list[str]
) -> None:
    out = tmp_path / "artifact"
    told = r"No artifact meets kl<=1e-06 \(it has 0\.\d+\)\. The nearest is kept in"
    with pytest.raises(RequirementMissed, match=told) as raised:
        optimisation(narrow_model, out, sentences, steps).run(parse_requirements("size<=6500kB, kl<=0.000001"))
    assert raised.value.exit_code == 3
    assert load_artifact(out).files[0].size_bytes <= 6.5e6
    with pytest.raises(BadConfigValue, match=r"folder .*artifact is not empty; name another one"):
        optimisation(narrow_model, out, sentences, steps)


def test_a_work_folder_is_no_help_to_another_file(
    short_model: Path, sentences: str, tmp_path: Path, steps: list[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.gguf"
    optimisation(short_model, out, sentences, steps)
    optimisation(short_model, out, sentences, steps)
    source = GgufFile(short_model)
    coarse = Changes({"blk.0.attn_q.weight": "Q4_0"})
    rewrite(source, other, coarse, lambda tensor: quantise("Q4_0", source.weights(tensor)))
    optimisation(other, out, sentences, steps)
    assert steps == ["writes the reference (F32)"] * 2
    assert len(list((tmp_path / "out.work").iterdir())) == 2


def test_a_look_at_the_model_that_was_interrupted_goes_on(short_model: Path, sentences: str, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def telling(stop_at: int) -> Callable[[str], Callable[[int, int], None]]:
        def tell(step: str, done: int, of: int) -> None:
            told.append((step, done, of))
            if (step, done) == ("sees what the model suffers", stop_at):
                raise KeyboardInterrupt

        return lambda step: lambda done, of: tell(step, done, of)

    def variant(kinds: tuple[str, ...], stop_at: int = 0) -> Variant:
        told.clear()
        sizes = {"windows": 4, "judged": 1, "sensed": 1, "bands": 1}
        settings = Settings(sentences, sentences, kinds=kinds, threads=1, **sizes)
        return Variant(begin(short_model, tmp_path, settings, telling(stop_at)), settings.recipe)

    with pytest.raises(KeyboardInterrupt):
        _ = variant(("Q4_0", "Q8_0"), 3).options
    assert not [*tmp_path.glob("sensitivity*")], "neither a copy nor a result is left"
    found = variant(("Q4_0", "Q8_0")).options
    assert [one for one in told if one[0].startswith("sees")] == [
        ("sees what the model suffers", done, 5) for done in range(1, 6)
    ], "three of the eight groups were known"
    assert not [one for one in told if one[0].startswith("reads")], "and what goes into the matrices"
    losses = {one.kind: one.loss for one in found["blk.1.ffn_up.weight"]}
    assert losses["Q4_0"] > losses["Q8_0"] > 0
    # For other types nothing is read again, and what both may choose costs the same.
    more = variant(("Q4_0", "Q5_0")).options
    assert told == [] and more["blk.1.ffn_up.weight"][0] == found["blk.1.ffn_up.weight"][0]


def test_a_table_that_nothing_is_multiplied_with_gets_a_type_too(
    short_model: Path, plain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a token embedding does beside an output of its own; nobody read what goes into it."""
    files = (GgufFile(short_model), GgufFile(plain_model))
    name = "blk.0.attn_k.weight"
    found = choices(files, Inputs(), [Group((name,), error=0.1, kl=0.01)], ("Q4_0", "Q4_1", "Q8_0"), 1)
    losses = {one.kind: one.loss for one in found[name]}
    assert losses["Q4_0"] > losses["Q8_0"] > losses["Q4_1"] == 0, "the source has it as Q4_1"
    rounder = Rounder(*files, {name: "Q8_0"}, Text("", "", 0, 0), lambda step: Run())
    monkeypatch.setattr("codriver.optimize.rounding.read_moments", lambda *_: Inputs())
    assert len(rounder.data(name)) == 576 * 192 * 34 // 32
    assert rounder.how == {name: "nearest"}


def test_a_matrix_that_keeps_its_type_keeps_its_bytes(short_model: Path, plain_model: Path, tmp_path: Path) -> None:
    source = GgufFile(short_model)
    name = "blk.1.attn_q.weight"
    rounder = Rounder(source, GgufFile(plain_model), {name: "Q4_1"}, Text("", "", 0, 0), lambda step: Run())
    write_rounded(tmp_path / "out.gguf", rounder)
    made = GgufFile(tmp_path / "out.gguf")
    assert made.raw(made[name]).tobytes() == source.raw(source[name]).tobytes()
    assert rounder.how == {name: "as it was"}
    assert made.header.metadata["general.file_type"] == 1024


def test_a_calibration_text_that_is_too_short_is_told_before_anything_is_made(
    short_model: Path, tmp_path: Path, steps: list[str]
) -> None:
    with pytest.raises(BadConfigValue, match=r"too short: its last fifth has \d+ tokens, and 2048 are needed"):
        optimisation(short_model, tmp_path / "out", "A few words. " * 100, steps)
    assert steps == []


@pytest.mark.slow
def test_for_another_computer_the_card_is_predicted_and_judged(
    narrow_model: Path, sentences: str, tmp_path: Path, steps: list[str]
) -> None:
    out = tmp_path / "artifact"
    first = optimisation(narrow_model, out, sentences, steps)
    note = "predicted for a box, error on the host ±9 %"
    asked: list[Sequence[int]] = []

    def timing(file: Path, threads: int, runs: int, prompts: Sequence[int]) -> list[Measured]:
        asked.append(prompts)
        return [Measured("ttft_ms@64", 321.0, "ms", 0, 300.0, 340.0, note), Measured("rss", 1e8, "bytes", 0, note=note)]

    settings = replace(first.task.settings, target="a box", timing=timing)
    first.task = replace(first.task, settings=settings)
    with pytest.raises(RequirementMissed, match=r"No artifact meets ttft_ms<=300@64 \(it has 321\)"):
        first.run(parse_requirements("size<=6500kB, ttft_ms<=300@64"))
    artifact = load_artifact(out)
    assert artifact.target == "a box" and asked == [[64]]
    assert [one.note for one in artifact.card if one.metric in ("ttft_ms@64", "rss")] == [note, note]
