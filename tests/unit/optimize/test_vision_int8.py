"""Passes over real graphs, run in the real runtime: what is equal stays equal, and what rounds loses what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from codriver.core.artifact import load_artifact, sha256_of
from codriver.core.errors import BadConfigValue, RequirementMissed
from codriver.optimize.evaluate import Run
from codriver.optimize.recipe import Recipe, Workshop, recipe_of
from codriver.optimize.requirement import parse_requirements
from codriver.optimize.vision.adaround import rounded
from codriver.optimize.vision.calibration import Histograms
from codriver.optimize.vision.equalise import Equalise
from codriver.optimize.vision.graph import Wiring, outputs_of
from codriver.optimize.vision.onnx_file import read_onnx
from codriver.optimize.vision.optimise import VisionOptimisation, VisionSettings
from codriver.optimize.vision.pictures import feed_of, pictures_in
from codriver.optimize.vision.prepare import Fold
from codriver.optimize.vision.static import DynamicInt8, StaticInt8
from codriver.optimize.vision.tasks import Boxes, average_precision, noise, suppressed, task_of

from .vision_graphs import classifier, pictures, saved


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "scratch", lambda step: Run(), pictures=pictures(tmp_path / "pictures"))


def read_all(model: Path, shop: Workshop) -> list[np.ndarray]:
    feed = feed_of(read_onnx(model), model)
    return [feed.read(file) for file in shop.pictures]


def loss(reference: Path, candidate: Path, shop: Workshop) -> float:
    seen = read_all(reference, shop)
    return noise(outputs_of(reference, seen), outputs_of(candidate, seen))


def test_folding_brings_old_operators_up_and_changes_nothing_that_is_computed(tmp_path: Path, shop: Workshop) -> None:
    source, target = saved(classifier(opset=11), tmp_path / "old.onnx"), tmp_path / "new.onnx"
    Fold().apply(source, target, shop)
    made = read_onnx(target)
    assert made.opset_import[0].version >= 13
    assert {one.key: one.value for one in made.metadata_props} == {"codriver.pictures": "rgb 0..1"}
    assert loss(source, target, shop) < 1e-10


def test_equalisation_evens_the_channels_and_changes_nothing_that_is_computed(tmp_path: Path, shop: Workshop) -> None:
    source, target = saved(classifier(), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    assert Equalise().apply(source, target, shop) == "2 pairs of convolutions"
    assert loss(source, target, shop) < 1e-10

    def unevenness(file: Path) -> float:
        weight = np.abs(Wiring(read_onnx(file)).floats("one.w")).reshape(16, -1).max(1)
        return float(weight.max() / weight.min())

    assert unevenness(target) < unevenness(source) / 5
    smooth = saved(classifier(activation="Sigmoid"), tmp_path / "c.onnx")
    assert "nothing here can be scaled across" in Equalise().apply(smooth, target, shop)


def test_static_int8_is_integer_in_the_file_and_loses_little(tmp_path: Path, shop: Workshop) -> None:
    source, target = saved(classifier(), tmp_path / "a.onnx"), tmp_path / "q.onnx"
    told = StaticInt8(weights="u8", rounding="adaround").apply(source, target, shop)
    assert told.startswith(
        "3 of 3 convolutions in int8, ranges by mse, weights u8 per channel, 3 layers rounded by Ada"
    )
    kinds = {one.name: one.data_type for one in read_onnx(target).graph.initializer}
    assert kinds["one.w_quantized"] == onnx.TensorProto.UINT8 and "one.w" not in kinds
    assert 0 < loss(source, target, shop) < 0.02
    again = tmp_path / "again.onnx"
    StaticInt8(weights="u8", rounding="adaround").apply(source, again, shop)
    assert sha256_of(again) == sha256_of(target), "the same pictures and settings give the same file"


def test_values_are_rounded_where_convolutions_read_them_and_nowhere_else(tmp_path: Path, shop: Workshop) -> None:
    source, target = saved(classifier(activation="Sigmoid"), tmp_path / "a.onnx"), tmp_path / "q.onnx"
    told = StaticInt8(weights="s7", placed="inputs").apply(source, target, shop)
    assert told.startswith("2 of 3 convolutions in int8") and told.endswith("values where convolutions read them")
    model = read_onnx(target)
    rounded_values = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(rounded_values) == ["deep.a", "one.a"], "not the picture, no result of a convolution"
    assert 0 < loss(source, target, shop) < 0.01


def test_layers_stay_float_until_the_noise_is_within_its_bound(tmp_path: Path, shop: Workshop) -> None:
    source, target = saved(classifier(), tmp_path / "a.onnx"), tmp_path / "q.onnx"
    how = StaticInt8(weights="u8", rounding="nearest", correct_bias=False)
    how.apply(source, target, shop)
    whole = loss(source, target, shop)
    told = StaticInt8("mse", 0.9999, "u8", "nearest", False, whole / 3).apply(source, target, shop)
    left = sum(one.name.endswith(".w") for one in read_onnx(target).graph.initializer)
    assert 0 < left < 3 and told.startswith(f"{3 - left} of 3 convolutions in int8")
    assert loss(source, target, shop) < whole / 2


def test_adaround_loses_less_than_nearest_where_inputs_go_together() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(0, 1, (8, 36)).astype(np.float32)
    inputs = (random.normal(0, 1, (500, 6)) @ random.normal(0, 1, (6, 36))).astype(np.float32)
    moment = (inputs.T @ inputs / 500)[None]
    scale = np.full(8, 0.25, np.float32)
    learned = rounded(weight, scale, moment, (-127, 127)) * scale[:, None]
    nearest = np.rint(weight / scale[:, None]) * scale[:, None]

    def error(made: np.ndarray) -> float:
        return float(np.square(inputs @ (made - weight).T).mean())

    assert error(learned) < 0.5 * error(nearest)
    assert np.abs(learned - weight).max() <= 0.25 + 1e-6, "one of the two neighbours"


def test_ranges_hold_zero_and_cut_what_is_rare(tmp_path: Path, shop: Workshop) -> None:
    source = saved(classifier(), tmp_path / "a.onnx")
    found = Histograms(read_onnx(source), ["images", "one.y"], read_all(source, shop))
    whole = found.ranges("minmax")
    assert whole["images"][0] == 0 and 0 < whole["images"][1] <= 1
    for method in ("percentile", "mse", "entropy"):
        cut = found.ranges(method, 0.99)  # type: ignore[arg-type]
        for name, (low, high) in cut.items():
            assert whole[name][0] <= low <= 0 <= high <= whole[name][1] + 1e-6
        assert cut["one.y"] != whole["one.y"]


def test_dynamic_int8_runs(tmp_path: Path, shop: Workshop) -> None:
    source, target = saved(classifier(), tmp_path / "a.onnx"), tmp_path / "q.onnx"
    DynamicInt8().apply(source, target, shop)
    assert 0 < loss(source, target, shop) < 0.2


def test_average_precision_against_cases_worked_out_by_hand() -> None:
    def boxes(*rows: tuple[float, float, float, float, float, int]) -> Boxes:
        table = np.array(rows, np.float32).reshape(-1, 6)
        return Boxes(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))

    truth = [boxes((0, 0, 10, 10, 1, 0), (20, 0, 30, 10, 1, 0))]
    assert average_precision(truth, truth) == 1
    one = [boxes((0, 0, 10, 10, 0.9, 0))]
    assert average_precision(one, truth) == pytest.approx(51 / 101), "recall 0.5 is reached by 51 of 101 points"
    shifted = [boxes((0, 0, 10, 8, 0.9, 0), (20, 0, 30, 10, 0.8, 0))]  # one overlaps by 0.8: 7 of 10 thresholds
    # Above 0.8 the best guess misses: precision 1/2 up to recall 1/2.
    assert average_precision(shifted, truth, [0.75]) == 1
    assert average_precision(shifted, truth, [0.85]) == pytest.approx(0.5 * 51 / 101)
    twice = boxes((0, 0, 10, 10, 0.9, 0), (1, 0, 11, 10, 0.8, 0), (1, 0, 11, 10, 0.7, 1))
    assert suppressed(twice).scores.tolist() == pytest.approx([0.9, 0.7]), "within a class only"
    assert np.isnan(average_precision(one, [boxes()]))


# ---------------------------------------------------------------- the whole way


def optimisation(source: Path, out: Path, files: list[Path], recipe: Recipe | None = None) -> VisionOptimisation:
    settings = VisionSettings(files, threads=1, rounds=6, recipe=recipe)
    return VisionOptimisation(source, out, settings, lambda step: lambda done, of: None)


def test_an_artifact_meets_its_requirement_and_says_how_it_was_measured(tmp_path: Path) -> None:
    source, out = saved(classifier(), tmp_path / "a.onnx"), tmp_path / "out"
    trial = optimisation(source, out, pictures(tmp_path / "p", 18)).run(
        parse_requirements("agreement>=0.5, size<=40kB")
    )
    assert trial.missed == ()
    artifact = load_artifact(out)
    card = {one.metric: one for one in artifact.card}
    assert card["agreement"].n == 12 and card["agreement"].low is not None
    assert card["latency_ms"].n == 6 and card["latency_ms"].low is not None and "threads" in card["latency_ms"].note
    assert card["size"].value == (out / "model.onnx").stat().st_size
    assert artifact.lineage[0] == f"sha256:{sha256_of(source)}"
    assert [line.split(":")[0] for line in artifact.lineage[1:4]] == ["fold", "cross-layer-equalise", "static-int8"]
    assert artifact.licence == "not stated by the source"


def test_what_nothing_meets_is_told_and_the_nearest_kept(tmp_path: Path) -> None:
    source, out = saved(classifier(), tmp_path / "a.onnx"), tmp_path / "out"
    told = recipe_of({"pass": [{"use": "cross-layer-equalise"}, {"use": "static-int8", "rounding": "nearest"}]}, "here")
    with pytest.raises(
        RequirementMissed, match=r"No artifact meets size<=10 \(it has .*\). The nearest is kept in"
    ) as no:
        optimisation(source, out, pictures(tmp_path / "p"), told).run(parse_requirements("size<=10B"))
    assert no.value.exit_code == 3
    assert load_artifact(out).lineage[2].startswith("cross-layer-equalise: 2 pairs")


def test_what_cannot_be_done_is_said_before_anything_long(tmp_path: Path) -> None:
    source = saved(classifier(), tmp_path / "a.onnx")
    with pytest.raises(BadConfigValue, match="4 pictures are too few to calibrate on some and score on others"):
        optimisation(source, tmp_path / "o", pictures(tmp_path / "four", 4))
    way = optimisation(source, tmp_path / "o", pictures(tmp_path / "p"))
    with pytest.raises(BadConfigValue, match="'ppl' cannot be required of a vision model; agreement, latency"):
        way.run(parse_requirements("ppl<=20"))
    with pytest.raises(BadConfigValue, match="Static int8 needs pictures to calibrate on; none were given"):
        StaticInt8().apply(source, tmp_path / "q.onnx", Workshop(tmp_path, lambda step: Run()))


@pytest.mark.slow
def test_a_real_detector_agrees_with_itself_in_int8(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    road = pictures_in(shared_data("vision/camvid") / "test")
    source = shared_data("vision/fastestdet/FastestDet.onnx")
    folded, target = tmp_path / "f.onnx", tmp_path / "q.onnx"
    shop = Workshop(tmp_path, lambda step: Run(), pictures=road[:60:10])
    Fold().apply(source, folded, shop)
    StaticInt8(weights="u8", look="bgr 0..1 stretch").apply(folded, target, shop)
    model = read_onnx(folded)
    feed = feed_of(model, folded, "bgr 0..1 stretch")
    task = task_of(model, feed.height, feed.width)
    seen = [feed.read(file) for file in road[100::20]]
    right = outputs_of(folded, seen)
    assert task.kind == "boxes-fastestdet"
    assert sum(len(task.boxes(one).sure().scores) for one in right) >= 5
    assert task.noise(right, outputs_of(target, seen)) < 0.5
