from __future__ import annotations

from pathlib import Path

import pytest

from codriver.bench import quantise
from codriver.core.errors import BadModelFile


def test_a_rival_that_is_not_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODRIVER_RIVALS", str(tmp_path))
    assert quantise.stock(tmp_path / "r", tmp_path / "t", "Q2_K", tmp_path / "i") is None


def test_a_rival_that_fails_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / quantise._LIBRARIES).mkdir(parents=True)
    monkeypatch.setenv("CODRIVER_RIVALS", str(tmp_path))
    with pytest.raises(BadModelFile, match=r"llama\.cpp did not write Q2_K: .* has no libggml-base\.so"):
        quantise.stock(tmp_path / "r", tmp_path / "t", "Q2_K", tmp_path / "i")
