"""The roofline: against a machine made of its own formula, on a real file's layout, and what it refuses to tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from codriver.core.errors import BadConfigValue, BadModelFile, MissingFile
from codriver.optimize.ggml import dequantise, quantise
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.requirement import parse_requirements
from codriver.optimize.rounding import GUESSED
from codriver.optimize.targets import predict as predicting
from codriver.optimize.targets.calibrating import calibrate, timed_here, variants
from codriver.optimize.targets.host import KINDS, HostFigures, keep, kept, machine_name, measure, profile
from codriver.optimize.targets.matmul import Shape, product
from codriver.optimize.targets.predict import Fitted, Timed, fit, here, layout_of, leave_one_out
from codriver.optimize.targets.predictor import predict, predictor_for, predictor_here
from codriver.optimize.targets.sustain import sustain
from codriver.optimize.targets.target import find_target, read_target
from tests.unit.optimize import calibrations


@pytest.fixture
def figures() -> HostFigures:
    return calibrations.figures()


def timed(file: Path, figures: HostFigures, truth: Fitted, noise: float = 1.0) -> Timed:
    """What a machine would show that is as the model says it is."""
    layout, rates = layout_of(file), here(figures)
    prompts = {str(n): noise * predicting.prompt_s(layout, rates, truth, n) for n in (64, 256)}
    memory = predicting.memory_bytes(layout, truth, 256 + 32)
    return Timed(layout, prompts, noise * predicting.token_s(layout, rates, truth), memory)


@pytest.fixture(scope="module")
def four(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [short_model, *variants(short_model, tmp_path_factory.mktemp("variants"))]


def test_what_a_file_is_made_of_is_read_from_its_header(short_model: Path) -> None:
    layout = layout_of(short_model)
    assert (layout.layers, layout.width, layout.kv_width, layout.vocabulary) == (2, 576, 192, 49152)
    per_layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    assert sum(weights for weights, _ in layout.blocks.values()) == 2 * per_layer
    assert layout.head[1] == 576 * 49152, "no output of its own: the embedding is the output"


def test_a_file_that_is_not_written_yet_is_known_as_well_as_one_that_is(four: list[Path]) -> None:
    made = GgufFile(four[2])
    layout = layout_of(four[0], {tensor.name: tensor.type for tensor in made})
    written = layout_of(four[2])
    assert (layout.blocks, layout.head, layout.vocabulary) == (written.blocks, written.head, written.vocabulary)
    assert abs(layout.file_bytes - written.file_bytes) < 1000


def test_variants_hold_what_their_names_say(four: list[Path]) -> None:
    kinds = [{tensor.type for tensor in GgufFile(file) if len(tensor.shape) == 2} for file in four[1:]]
    assert kinds[0] == {"Q8_0"} and kinds[1] == {"Q4_0"}
    assert kinds[2] == {"Q6_K", "Q8_0"}, "rows of 576 are no whole blocks of 256"
    assert all(GgufFile(file).header.metadata["general.file_type"] == GUESSED for file in four[1:]), "no name fits them"
    written = four[1].stat().st_mtime_ns
    variants(four[0], four[1].parent)
    assert four[1].stat().st_mtime_ns == written, "made once"


def test_a_fit_finds_the_machine_and_a_file_left_out_is_predicted(four: list[Path], figures: HostFigures) -> None:
    truth = calibrations.TRUTH
    exact = [timed(file, figures, truth) for file in four]
    found = fit(exact, here(figures))
    assert (found.prompt_s, found.token_s, found.memory_bytes) == pytest.approx((2e-5, 3e-4, 5e6))
    wrong = leave_one_out(exact, here(figures))
    assert max(abs(value) for of in wrong.values() for value in of.values()) < 1e-6
    # One file that is a quarter slower than the others say shows as predicted too fast, and by how much.
    odd = [*exact[:3], timed(four[3], figures, truth, noise=1.25)]
    assert leave_one_out(odd, here(figures))["ttft_ms"][four[3].name] == pytest.approx(-0.2, abs=0.01)


def test_predictions_say_that_they_are_and_how_wrong(
    four: list[Path], figures: HostFigures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODRIVER_HOME", str(tmp_path / "home"))
    with pytest.raises(MissingFile, match="before this machine is calibrated: codriver targets measure"):
        predict(four[0], find_target("raspberry-pi-5"), [64])
    keep(figures)
    kept_file = tmp_path / "home" / "targets" / "calibration.json"
    kept_file.write_bytes(msgspec.json.encode(calibrations.calibration()))
    assert predictor_here(2) is None, "another machine was calibrated"
    keep(calibrations.figures(machine_name()))
    kept_file.write_bytes(msgspec.json.encode(calibrations.calibration(machine_name())))
    assert predictor_here(2) is not None and predictor_here(1) is None, "with other threads than were measured"
    here_rows = {row.metric: row for row in predict(four[0], find_target("host"), [64])}
    there = {row.metric: row for row in predict(four[0], find_target("raspberry-pi-5"), [64])}
    assert set(there) == {"ttft_ms@64", "decode_tps", "rss"}
    assert all(row.note == "predicted for raspberry-pi-5, error on the host ±10 %" for row in there.values())
    assert all(row.n == 0 and row.low is not None and row.low < row.value < (row.high or 0) for row in there.values())
    # Four cores of 2.4 GHz and 64 operations a cycle against two of 2.5 and 64: 1.92 times the arithmetic.
    ratio = here_rows["ttft_ms@64"].value / there["ttft_ms@64"].value
    assert 1.5 < ratio <= 1.92 + 1e-9
    bound = {row.metric: row for row in predict(four[0], find_target("tda4vh"), [64])}
    assert set(bound) == {"decode_tps", "rss"} and bound["decode_tps"].high is None
    assert bound["decode_tps"].note == "predicted for tda4vh: what its memory allows, and no more than that"
    for require, told in (("ttft_ms<=300@64", "int8_ops_per_cycle"), ("decode_tps>=1", "int8_ops_per_cycle")):
        with pytest.raises(BadConfigValue, match=f"tda4vh has no 'cpu.{told}'"):
            predictor_for(find_target("tda4vh"), parse_requirements(require))
    assert predictor_for(find_target("tda4vh"), parse_requirements("kl<=1")).timing(four[0], 2, 5, [64])
    none = dataclasses.replace(
        find_target("thor"), runtimes=find_target("thor").runtimes.__class__((), {"llama_cpp": "x"})
    )
    with pytest.raises(BadConfigValue, match="thor cannot be served by llama_cpp: x"):
        predictor_for(none, [])


def test_too_few_files_are_refused(figures: HostFigures) -> None:
    with pytest.raises(BadConfigValue, match="needs 4 files at least, each predicted from the others; 1 were given"):
        calibrate([Path("a.gguf")], figures, 1, lambda done, of: None)


def test_this_machines_profile_is_a_target_like_any_other(figures: HostFigures, tmp_path: Path) -> None:
    file = tmp_path / "host.toml"
    file.write_text(profile(figures))
    found = read_target(file, "host")
    assert found.memory.bandwidth_gbps == 30.0 and found.cpu.int8_gops == 100.0 and found.cpu.flags == ("avx2",)
    assert {key for key, _ in found.figures()} == set(found.about.sources)
    assert found.about.sources["memory.bandwidth_gbps"] == "measured 2026-01-01T00:00:00, load 0.1, medians of 9"


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "Q4_K", "Q4_1"])
def test_a_product_is_computed_and_takes_time(kind: str) -> None:
    with product(kind, Shape(64, 512, tokens=4, times=2), 1) as seconds:
        assert seconds() > 0
    assert Shape(64, 512, tokens=4, times=2).operations == 2 * 64 * 512 * 4 * 2
    # What is multiplied are weights of that type: their rounding is what ggml reads back.
    row = np.linspace(-1, 1, 512, dtype=np.float32)[None]
    assert dequantise(kind, quantise(kind, row), (1, 512)).shape == (1, 512)


@pytest.mark.slow
def test_a_real_file_is_measured_in_a_process_of_its_own(short_model: Path, model_file: Callable[[str], Path]) -> None:
    found = timed_here(short_model, 1, 1)
    assert found.layout == layout_of(short_model)
    assert 0 < found.token_s < found.prompts["64"] < found.prompts["256"]
    assert found.memory_bytes > short_model.stat().st_size


@pytest.mark.slow
def test_this_machine_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODRIVER_HOME", str(tmp_path))
    found = measure(1, 3)
    assert kept() == found and find_target("host").memory.bandwidth_gbps > 0.1
    assert set(found.one) == set(found.many) == set(KINDS)
    every = [*found.bandwidth.values(), *found.one.values(), *found.many.values()]
    assert all(0 < spread.low <= spread.median <= spread.high and spread.n == 3 for spread in every)


@pytest.mark.slow
def test_a_load_is_sustained_in_a_process_of_its_own(short_model: Path) -> None:
    found = sustain(short_model, 1, 5, 16)
    assert len(found.runs) == 5 and found.prompt_tokens == 16
    began = [run.began_s for run in found.runs]
    assert began == sorted(began) and all(run.ttft_ms > 0 and run.decode_tps > 0 for run in found.runs)
    assert found.drift("ttft_ms").low <= found.drift("ttft_ms").percent <= found.drift("ttft_ms").high
    with pytest.raises(BadModelFile, match=r"nowhere\.gguf could not be measured"):
        sustain(Path("nowhere.gguf"), 1, 4, 16)
