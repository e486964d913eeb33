"""`engine.kind = auto`: the runtime that was measured best, and llama.cpp with a reason where nothing counts."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from codriver.apps.engines import genai_folder, measured_runtime, start_on_board, tuned_folder
from codriver.apps.settings import OnBoard
from codriver.catalogue import CatalogueConfig, ModelFile
from codriver.core.errors import MissingFile
from codriver.core.machine import processor
from codriver.engines.tuning import Tuning, save
from codriver.engines.tuning_trial import Figures, Spread


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    return ModelFile("model", file)


@pytest.fixture
def files(tmp_path: Path) -> CatalogueConfig:
    return CatalogueConfig(home=str(tmp_path))


def tuning(model: ModelFile) -> Tuning:
    def one(runtime: str, ttft_ms: float, rss: int) -> Figures:
        spread = Spread(ttft_ms, ttft_ms, ttft_ms, 3)
        return Figures(runtime, spread, {512: spread}, spread, rss, rss, 1.0, 0.98, 100)

    runtimes = [one("llama_cpp", 900.0, 100), one("openvino", 200.0, 300)]
    return Tuning(model.sha256, processor(), "2026-11-28", 0, 0.9, {}, runtimes, {})


def test_auto_takes_what_was_measured_best(model: ModelFile, files: CatalogueConfig) -> None:
    save(tuning(model), tuned_folder(files))
    assert measured_runtime(OnBoard(kind="auto"), model, files) == ("openvino", "")
    assert measured_runtime(OnBoard(kind="auto", best="memory"), model, files) == ("llama_cpp", "")


def test_what_only_llama_cpp_can_do_keeps_it(model: ModelFile, files: CatalogueConfig) -> None:
    save(tuning(model), tuned_folder(files))
    assert measured_runtime(OnBoard(kind="auto", prefix_file=Path("p.json")), model, files) == ("llama_cpp", "")
    assert measured_runtime(OnBoard(kind="auto", mmproj="projector.gguf"), model, files) == ("llama_cpp", "")


def test_without_a_measurement_that_counts_it_is_llama_cpp_and_the_log_says_why(
    model: ModelFile, files: CatalogueConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "codriver.apps"):
        assert measured_runtime(OnBoard(kind="auto"), model, files) == ("llama_cpp", "")
        save(msgspec.structs.replace(tuning(model), processor="Z80, 1 cores"), tuned_folder(files))
        assert measured_runtime(OnBoard(kind="auto"), model, files) == ("llama_cpp", "")
    reasons = [getattr(record, "reason", "") for record in caplog.records]
    assert reasons == [
        "its runtimes were not measured on this machine",
        "they were measured on another machine (Z80, 1 cores)",
    ]
    assert all("codriver engines tune " in getattr(record, "mend", "") for record in caplog.records)


async def test_onnx_genai_needs_the_model_in_its_form(model: ModelFile, files: CatalogueConfig) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs the extra: pip install 'codriver[onnx]'")
    told = r"The model model is not here as ONNX Runtime GenAI loads it; write it with: codriver engines tune "
    with pytest.raises(MissingFile, match=told):
        await start_on_board(OnBoard(kind="onnx_genai", model=str(model.path)), files, "vehicle")
    made = tuning(model)
    best = msgspec.structs.replace(made.runtimes[1], runtime="onnx_genai", form="onnx-genai-w8a8")
    save(msgspec.structs.replace(made, runtimes=[made.runtimes[0], best]), tuned_folder(files))
    genai_folder(files, model.sha256, "onnx-genai").mkdir()  # the other form does not stand in for it
    with pytest.raises(MissingFile, match=told):
        await start_on_board(OnBoard(kind="auto", model=str(model.path)), files, "vehicle")
    genai_folder(files, model.sha256, "onnx-genai-w8a8").mkdir()
    with pytest.raises(MissingFile, match=r"onnx-genai-w8a8/genai_config.json does not exist"):
        await start_on_board(OnBoard(kind="auto", model=str(model.path)), files, "vehicle")
