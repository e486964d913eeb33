"""Runtimes measured in processes of their own, and the choice made of what they showed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from codriver.core.errors import BadModelFile, EngineDied, EngineUnavailable, MissingFile
from codriver.core.machine import processor
from codriver.engines import tuning
from codriver.engines.null import Null, NullConfig
from codriver.engines.registry import ENGINES
from codriver.engines.tuning import Amounts, Tuning, candidates, load, save, trials_of, tune
from codriver.engines.tuning_process import CONFIGS, ReadTask, done
from codriver.engines.tuning_trial import Candidate, Figures, Spread, Trial
from tests.unit.engines.gguf_files import write_gguf

FEW = Amounts(
    starts=1, rounds=1, written=4, tokens=3, questions=("What is 2 + 2?", "Which animal barks?"), prompts=(64, 10**6)
)


def figures(runtime: str, ttft_ms: float, tps: float, rss: int, agreement: float) -> Figures:
    def one(value: float) -> Spread:
        return Spread(value, value, value, 5)

    first = {64: one(1.0), 512: one(ttft_ms), 2048: one(9.0)}
    return Figures(runtime, one(100.0), first, one(tps), rss, rss, agreement, agreement - 0.02, 200)


@pytest.fixture
def measured() -> Tuning:
    runtimes = [
        figures("llama_cpp", 900.0, 50.0, 200, 1.0),
        figures("openvino", 300.0, 60.0, 400, 0.97),
        figures("hasty", 10.0, 900.0, 10, 0.6),
    ]
    return Tuning(
        "ab" * 32, processor(), "2026-11-28", 0, 0.9, {"llama_cpp": tuning.version_of("llama_cpp")}, runtimes, {}
    )


def test_the_policy_picks_among_those_that_agree(measured: Tuning) -> None:
    assert [measured.pick(by).runtime for by in ("ttft", "decode", "memory")] == ["openvino", "openvino", "llama_cpp"]
    alone = msgspec.structs.replace(measured, bound=0.99)
    assert [one.runtime for one in alone.eligible()] == ["llama_cpp"]
    assert alone.pick("ttft").runtime == "llama_cpp"


def test_a_measurement_counts_on_its_machine_and_versions_only(measured: Tuning, tmp_path: Path) -> None:
    save(measured, tmp_path)
    assert load(tmp_path, measured.sha256) == (measured, "")
    assert load(tmp_path, "cd" * 32) == (None, "its runtimes were not measured on this machine")
    save(msgspec.structs.replace(measured, processor="Z80, 1 cores"), tmp_path)
    assert load(tmp_path, measured.sha256) == (None, "they were measured on another machine (Z80, 1 cores)")
    save(msgspec.structs.replace(measured, versions={"llama_cpp": "0.0.1"}), tmp_path)
    none, reason = load(tmp_path, measured.sha256)
    assert none is None and reason.startswith("llama_cpp was measured in version 0.0.1, and ")
    (tmp_path / f"{measured.sha256}.json").write_text('{"sha256": 3}')
    with pytest.raises(BadModelFile, match=r"The measurement .*\.json is not valid: .*Measure again, or remove it"):
        load(tmp_path, measured.sha256)


async def test_real_runtimes_are_measured_and_compared(model_file: Callable[[str], Path]) -> None:
    file = model_file("smollm2.gguf")
    found, left = candidates(file)
    assert found[0].runtime == "llama_cpp"
    assert {name.split(" ")[0] for name in left} | {one.runtime for one in found} == set(CONFIGS)
    forms = {"onnx_genai (onnx-genai)", "onnx_genai (onnx-genai-w8a8)"}
    assert forms <= set(left), "nobody wrote them"
    steps: list[str] = []
    trials = trials_of([*found, Candidate("openvino", file.with_name("none.gguf"))], 0, FEW.prompts)
    made = await tune(trials, "ab" * 32, FEW, steps.append)
    reference = made.runtimes[0]
    assert reference.agreement == 1.0 and reference.positions >= 4
    assert list(reference.ttft_ms) == [64], "a prompt that the context has no room for is left out"
    assert reference.ttft_ms[64].n == reference.decode_tps.n == reference.start_ms.n == 1
    assert reference.ttft_ms[64].value > 0 and reference.decode_tps.value > 0
    assert reference.rss_bytes > file.stat().st_size, "the file is mapped"
    assert made.versions["llama_cpp"] != "not known"
    assert steps[0] == "starts each runtime" and steps[-1] == "compares answers"
    assert "does not exist" in made.left_out["openvino"]


async def test_a_reference_that_fails_ends_it(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "mamba.gguf", {"general.architecture": "mamba"}, [])
    with pytest.raises(EngineUnavailable, match=r"The reference runtime failed: .*mamba"):
        await tune(trials_of([Candidate("llama_cpp", file)], 0), "ab" * 32, FEW, lambda step: None)


async def test_an_answer_of_nothing_took_its_time_too() -> None:
    """A first token may be the end: no time at all would pull the median down."""
    took = await done(Null(NullConfig(text="")), ReadTask(10, 1))
    assert took.seconds > 0


async def test_a_process_that_ends_is_told() -> None:
    trial = Trial(Candidate("no such runtime", Path("none.gguf")), 512, 0)
    with pytest.raises(EngineDied, match="The process of no such runtime ended with code 1"):
        await trial.start()
    await trial.close()


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="does not exist"):
        candidates(tmp_path / "none.gguf")
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04" * 20)
    with pytest.raises(BadModelFile, match="does not begin with the letters GGUF"):
        candidates(tmp_path / "zip.gguf")


def test_each_tuned_runtime_is_an_engine() -> None:
    assert set(CONFIGS) <= set(ENGINES.names())
