"""What a vision file says of itself, held against what the runtime makes of it; two files compared on pictures."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from codriver.core.errors import BadConfigValue, BadModelFile
from codriver.optimize.evaluate import Run
from codriver.optimize.recipe import Workshop
from codriver.optimize.vision.evaluate import Judging, evaluate
from codriver.optimize.vision.inspect import inspect
from codriver.optimize.vision.runtime import OrtGraph, usable
from codriver.optimize.vision.static import Placed, StaticInt8
from tests.unit.optimize.vision_graphs import classifier, pictures, saved


def quantised(folder: Path, placed: Placed) -> Path:
    """Of a net whose activations ONNX Runtime does not fuse."""
    source, target = saved(classifier(activation="Sigmoid"), folder / "a.onnx"), folder / f"{placed}.onnx"
    shop = Workshop(folder, lambda step: Run(), pictures=pictures(folder / "p"))
    StaticInt8(weights="s7", placed=placed).apply(source, target, shop)
    return target


def test_floats_have_no_substitutions_and_32_bits(tmp_path: Path) -> None:
    found = inspect(saved(classifier(), tmp_path / "a.onnx"))
    assert (found.named, found.bits, found.layers, found.integer) == ("float", 32.0, 3, 0)
    assert found.weights == 16 * 27 + 16 * 9 + 160 + 42
    assert found.substitutions == () and found.sentences() == []
    assert found.operators["Conv"] == 3


def test_what_is_told_of_a_file_is_what_the_runtime_computes(tmp_path: Path) -> None:
    for placed, integer, floats, open_ended in (("throughout", 3, 0, 0), ("inputs", 2, 1, 2)):
        file = quantised(tmp_path, placed)  # type: ignore[arg-type]
        found = inspect(file)
        assert (found.integer, len(found.substitutions), found.open_ended) == (integer, floats, open_ended)
        OrtGraph(file, 1, optimised_to=tmp_path / "seen.onnx")
        seen = [node.op_type for node in onnx.load(tmp_path / "seen.onnx").graph.node]
        assert seen.count("QLinearConv") == integer - open_ended, "what ONNX Runtime computes in integers"
    (left,) = found.substitutions
    assert (left.node, left.stored, left.wanted, left.extra_bytes) == ("one", "F32", "INT8", 3 * 16 * 27)
    told = found.sentences()
    assert told[0] == "2 of 3 layers with weights have integer weights and inputs."
    assert told[1] == "1 compute in floats, as their weights are: one."
    assert told[2].startswith("Nothing rounds what 2 of the integer layers give: ONNX Runtime computes these in floats")
    shares = {one.type: one for one in found.shares()}
    assert shares["INT8"].weights == 16 * 9 + 160 and shares["INT8"].bits == 8
    assert found.weights == 16 * 27 + 16 * 9 + 160 + 42, "scales are bytes, and no weights"


def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadModelFile, match=r"x\.onnx is no ONNX graph"):
        inspect(tmp_path / "x.onnx")


def test_a_hurt_file_is_told_or_refused_and_never_more(tmp_path: Path) -> None:
    whole, dice, told = quantised(tmp_path, "inputs").read_bytes(), random.Random(2), 0
    file = tmp_path / "hurt.onnx"
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        file.write_bytes(bytes(raw))
        try:
            inspect(file).sentences()
            told += 1
        except BadModelFile as error:
            assert str(file) in str(error)
    assert 10 < told < 140


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    one, other = saved(classifier(), tmp_path / "a.onnx"), saved(classifier(side=16), tmp_path / "b.onnx")
    how = Judging(pictures(tmp_path / "p"))
    with pytest.raises(BadConfigValue, match=r"inputs of .*a\.onnx are \[\(1, 3, 32, 32\)\] and those of .*b\.onnx"):
        evaluate(one, other, how, lambda line: None)
    model = classifier()
    model.graph.output.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, 10, 1, 1]))
    with pytest.raises(BadConfigValue, match=r"outputs of .*a\.onnx are .*: they cannot be compared"):
        evaluate(one, saved(model, tmp_path / "c.onnx"), how, lambda line: None)
    silent = classifier()
    del silent.metadata_props[:]
    with pytest.raises(BadConfigValue, match=r"does not say how pictures go in; say it with --look"):
        evaluate(saved(silent, tmp_path / "d.onnx"), None, how, lambda line: None)


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as the command is: two runtimes' threads stay in one that ran them."""
    command = [sys.executable, "-m", "codriver", "optimize", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_commands_take_a_vision_file(tmp_path: Path) -> None:
    file = quantised(tmp_path, "inputs")
    told = called("inspect", str(file), "--tensors")
    assert told.returncode == 0, told.stderr
    assert "int8 (QDQ), 0.0 M weights" in told.stdout and "one.w" in told.stdout and "16 × 3 × 3 × 3" in told.stdout
    assert "Operators: " in told.stdout and "· 1 compute in floats" in told.stdout
    told_json: Any = json.loads(called("inspect", str(file), "--json").stdout)
    assert told_json["substitutions"] == [{"tensor": "one.w", "wanted": "INT8", "stored": "F32", "bytes": 1296}]
    assert told_json["operators"]["Conv"] == 3

    reference, shown = str(tmp_path / "a.onnx"), str(tmp_path / "p")
    told = called("evaluate", str(file), "--reference", reference, "--pictures", shown, "--threads", "1")
    assert told.returncode == 0, told.stderr
    card = {words[0]: words[1] for line in told.stdout.splitlines() if len(words := line.split()) == 2}
    for runtime in usable():
        assert 0.5 <= float(card[f"agreement@{runtime}"]) <= 1
        assert float(card[f"latency_ms@{runtime}"]) > 0 and float(card[f"rss@{runtime}"].replace(",", "")) > 0
        assert f"latency_ratio@{runtime}" in card
    assert np.isclose(float(card["size"].replace(",", "")), file.stat().st_size)
    missing = called("evaluate", str(file))
    assert missing.returncode == 2 and "A vision model needs a folder of pictures: --pictures FOLDER." in missing.stderr
