from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codriver.bench import quantise
from codriver.core.errors import BadModelFile
from codriver.optimize.gguf_file import GgufFile


def test_a_rival_that_is_not_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODRIVER_RIVALS", str(tmp_path))
    assert quantise.stock(tmp_path / "r", tmp_path / "t", "Q2_K", tmp_path / "i") is None


def test_a_rival_that_fails_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / quantise._LIBRARIES).mkdir(parents=True)
    monkeypatch.setenv("CODRIVER_RIVALS", str(tmp_path))
    with pytest.raises(BadModelFile, match=r"llama\.cpp did not write Q2_K: .* has no libggml-base\.so"):
        quantise.stock(tmp_path / "r", tmp_path / "t", "Q2_K", tmp_path / "i")


@pytest.fixture
def bench(
    short_model: Path, sentences: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], quantise.Bench]:
    monkeypatch.setattr(quantise, "texts", lambda: (sentences, sentences[: len(sentences) // 2]))
    subject = quantise.Subject("short", ("Q4_1", "Q5_1"), quantise.Sizes(4, 1, 1, 1))
    return lambda: quantise.Bench(subject, short_model, tmp_path / "kept")


def test_without_the_rival_there_is_no_size_to_meet(
    bench: Callable[[], quantise.Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODRIVER_RIVALS", str(tmp_path))
    assert [row.note for row in bench().measured("Q2_K", ["codriver"])] == [quantise.MISSING]


@pytest.mark.slow
def test_ours_takes_no_more_bytes_and_what_was_measured_is_kept(
    bench: Callable[[], quantise.Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (Path(os.environ.get("CODRIVER_RIVALS") or "/nonexistent") / quantise._LIBRARIES).is_dir():
        pytest.skip("llama.cpp's own quantisation is not installed; CODRIVER_RIVALS names it")
    system = "codriver, without the source's own grid"
    rows = bench().measured("Q3_K_M", [system])
    found = {(row.system == system, row.metric): row.value for row in rows}
    assert found[True, "bytes"] <= found[False, "bytes"]
    assert 0 < found[True, "kl"] < found[False, "kl"]
    assert 0 < found[True, "peak_rss"] < quantise.RSS_CEILING_BYTES
    types = {tensor.type for tensor in GgufFile(tmp_path / "kept" / "ours-Q3_K_M-1.gguf") if len(tensor.shape) == 2}
    assert types and not types & {"Q4_1", "Q5_1"}
    # Of another go nothing is measured, or made, again.
    monkeypatch.setattr(quantise, "card", None)
    monkeypatch.setattr(quantise, "stock", None)
    assert bench().measured("Q3_K_M", [system]) == rows
