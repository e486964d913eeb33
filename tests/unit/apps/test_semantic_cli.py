"""``codriver routes`` and a vehicle that is given a routes file: what a user sees of mistakes, and of a sound file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import codriver

GOOD = '[route.a]\nexamples = ["call my sister", "ring my brother", "phone my mother"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "routes.toml"
    made.write_text(GOOD, encoding="utf-8")
    return made


def test_a_mistake_in_the_file_is_told(file: Path) -> None:
    file.write_text(GOOD + 'polcy = "auto"\n', encoding="utf-8")
    for ended in (codriver("routes", "check", str(file)), codriver("routes", "match", str(file), "hello")):
        assert ended.returncode == 2
        assert (
            f"error [unknown_config_key]: {file}, route 'a': unknown key 'polcy'. Did you mean 'policy'?"
            in ended.stderr
        )


def test_without_an_embedder_it_says_what_is_missing(file: Path, tmp_path: Path) -> None:
    ended = codriver("routes", "check", str(file))
    assert ended.returncode == 2
    assert "Semantic routes need the sentence embedder, and engine.embedder is empty." in ended.stderr
    ended = codriver("vehicle", "--port", "0", "--set", f"route.semantic_file={file}")
    assert ended.returncode == 2
    assert "Semantic routes need the sentence embedder" in ended.stderr
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'codriver[onnx]'")
    model = {"CODRIVER_ENGINE_EMBEDDER": "all-minilm-l6-v2-int8", "CODRIVER_HOME": str(tmp_path)}
    ended = codriver("routes", "check", str(file), **model)
    assert "codriver models pull all-minilm-l6-v2-int8 all-minilm-l6-v2-tokenizer" in ended.stderr


@pytest.mark.model
def test_check_and_match_with_the_real_model(file: Path, model_file: Callable[[str], Path]) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'codriver[onnx]'")
    settings = {
        "CODRIVER_ENGINE_EMBEDDER": str(model_file("minilm.onnx")),
        "CODRIVER_ENGINE_EMBEDDER_TOKENIZER": str(model_file("minilm-tokenizer.json")),
    }
    more = '[route.b]\nexamples = ["will it rain", "is it snowing", "how is the weather"]\n'
    file.write_text(GOOD + more, encoding="utf-8")
    ended = codriver("routes", "check", str(file), **settings)
    assert (ended.returncode, "The routes can be told apart." in ended.stdout) == (0, True)
    told = json.loads(codriver("routes", "match", str(file), "any rain today", "--json", **settings).stdout)
    assert told["route"] == "b"
    assert "route: none" in codriver("routes", "match", str(file), "prove fermat's theorem", **settings).stdout
    file.write_text(GOOD + more + '[route.c]\nexamples = ["will it rain", "is it snowing", "how is it"]\n')
    ended = codriver("routes", "check", str(file), **settings)
    assert ended.returncode == 1
    assert "duplicate “will it rain” in b, c" in ended.stdout
    assert "Some routes cannot be told apart" in ended.stdout
    assert json.loads(codriver("routes", "check", str(file), "--json", **settings).stdout)["sound"] is False
