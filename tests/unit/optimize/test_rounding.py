"""Large tensors are rounded in spans of columns and bands of rows, and some rows decide for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codriver.optimize import rounding
from codriver.optimize.calibrate import Inputs
from codriver.optimize.evaluate import Run
from codriver.optimize.ggml import dequantise, quantise
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.gptq import round_second_order
from codriver.optimize.rounding import Rounder, Text, spans

NAME = "blk.0.ffn_down.weight"  # rows of 1,536


@pytest.mark.parametrize(
    ("width", "found"),
    [
        (576, [(0, 576)]),
        (2560, [(0, 2560)]),
        (2592, [(0, 1536), (1536, 2592)]),
        (8960, [(0, 2304), (2304, 4608), (4608, 6912), (6912, 8960)]),
    ],
)
def test_spans_are_of_whole_blocks_and_cover_a_row(width: int, found: list[tuple[int, int]]) -> None:
    assert [(one.start, one.stop) for one in spans(width)] == found


def read(tokens: int, seed: int) -> Inputs:
    causes = np.random.default_rng(3).standard_normal((24, 1536))
    drawn = np.random.default_rng(seed)
    rows = drawn.standard_normal((tokens, 24)) @ causes + 0.3 * drawn.standard_normal((tokens, 1536))
    found = Inputs(tokens)
    found.add(NAME, "in", rows.astype(np.float32), True)
    return found


@pytest.fixture
def rounder(plain_model: Path, short_model: Path, monkeypatch: pytest.MonkeyPatch) -> Rounder:
    given = {"fit": read(3000, 1), "held": read(1000, 2)}
    monkeypatch.setattr(rounding, "read_moments", lambda model, text, *_: given[text])
    files = (GgufFile(short_model), GgufFile(plain_model))
    return Rounder(*files, {NAME: "Q4_K"}, Text("fit", "held", 4, 4), lambda step: Run(), threads=2)


def test_bands_and_spans_give_what_the_whole_would(rounder: Rounder, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = rounder.reference.weights(rounder.reference[NAME])
    whole = round_second_order("Q4_K", weights, read(3000, 1).moment(NAME))
    monkeypatch.setattr(rounding, "_BAND", 100 * 1536)  # 576 rows in six bands
    monkeypatch.setattr(rounding, "_DECIDE", 1 << 17)  # every sixth row decides
    made = rounder.data(NAME)
    assert rounder.how == {NAME: "second order"}
    assert np.mean(made != whole) < 1e-3, "the products of matrices differ in their last bits"
    # Columns that are spans apart know nothing of each other: a part of the gain is left.
    monkeypatch.setattr(rounding, "_SPAN", 512)
    apart = rounder.data(NAME)
    held = read(1000, 2)
    nearest = quantise("Q4_K", weights, read(3000, 1).importance(NAME))
    lost = [held.loss(NAME, weights - dequantise("Q4_K", data, weights.shape)) for data in (made, apart, nearest)]
    assert lost == sorted(lost) and lost[1] < 0.8 * lost[2]


def test_the_source_reads_the_text(
    short_model: Path, plain_model: Path, sentences: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    read_moments = rounding.read_moments

    def noted(model: Path, *rest: object) -> Inputs:
        asked.append(model)
        return read_moments(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rounding, "read_moments", noted)
    name = "blk.0.attn_q.weight"
    files = (GgufFile(short_model), GgufFile(plain_model))
    made = Rounder(*files, {name: "Q4_0"}, Text(sentences, sentences, 4, 4), lambda step: Run(1))
    assert len(made.data(name)) == 576 * 576 * 18 // 32 and asked == [short_model] * 2
    # Of the same weights, but for the eight bits that llama.cpp gives what it multiplies quantised ones with.
    found = read_moments(short_model, sentences, 4, Run(1), frozenset({name}))
    exact = read_moments(plain_model, sentences, 4, Run(1), frozenset({name}))
    assert np.allclose(found.importance(name), exact.importance(name), rtol=0.05)
