"""Zeros where they are missed least, in real matrices and in the files that are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codriver.core.errors import BadConfigValue
from codriver.optimize.evaluate import Run
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.gptq import output_loss
from codriver.optimize.passes.sparsify import Pattern, Sparsify, sparse_gpt
from codriver.optimize.recipe import Workshop, recipe_of

WIDTH = 256


def correlated(tokens: int, seed: int) -> np.ndarray:
    causes = np.random.default_rng(3).standard_normal((24, WIDTH)) * np.exp(np.random.default_rng(4).random(WIDTH))
    drawn = np.random.default_rng(seed)
    return (drawn.standard_normal((tokens, 24)) @ causes + 0.3 * drawn.standard_normal((tokens, WIDTH))).astype("f4")


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern(0.5, 2, 4), Pattern(0.5, 4, 8), Pattern(0.25, 3, 4)])
def test_each_method_that_knows_more_of_the_inputs_loses_less(pattern: Pattern) -> None:
    weights = np.random.default_rng(5).standard_normal((48, WIDTH)).astype(np.float32)
    given, held = correlated(4000, 1), correlated(1000, 2)
    moment, judge = given.T @ given / np.float32(4000), held.T @ held / np.float32(1000)
    size, wanda = np.abs(weights), np.abs(weights) * np.sqrt(np.diagonal(moment))
    thinned = [np.where(pattern.zeros(scores, False), np.float32(0), weights) for scores in (size, wanda)]
    thinned.append(sparse_gpt(weights, moment, pattern))
    for made in thinned:
        zero = made == 0
        assert zero.mean() == pytest.approx(pattern.share, abs=1e-3)
        if pattern.of:
            assert (zero.reshape(48, -1, pattern.of).sum(axis=2) == pattern.of - pattern.kept).all()
    lost = [output_loss(weights, made, judge) for made in thinned]
    assert lost[2] < 0.7 * lost[1] and lost[1] < lost[0]


def test_a_container_takes_what_values_and_places_take() -> None:
    assert Pattern(0.5, 2, 4).container_bits() == 9
    assert Pattern(0.5, 4, 8).container_bits() == 9.5
    assert Pattern(0.75).container_bits() == 5


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_matrix_of_every_block_is_thinned_and_the_file_is_as_large(
    tiny_model: Path, sentences: str, tmp_path: Path, method: str
) -> None:
    found = recipe_of({"pass": [{"use": "sparsify", "method": method, "windows": 4}]}, "test")
    made, told = found.run(tiny_model, tmp_path, Workshop(tmp_path, lambda step: Run(1), sentences[:15000]))
    assert told == (
        f"sparsify: {method} 2:4: 50% zero of 0.1 M weights; a dense file does not shrink by it, a sparse container "
        "would hold them in 56% of 16-bit weights' room",
    )
    source, file = GgufFile(tiny_model), GgufFile(made)
    assert made.stat().st_size == tiny_model.stat().st_size
    for tensor in file:
        weights, before = file.weights(tensor), source.weights(source[tensor.name])
        if len(tensor.shape) == 1 or tensor.name == "token_embd.weight":
            assert np.array_equal(weights, before)
            continue
        assert ((weights == 0).reshape(len(weights), -1, 4).sum(axis=2) >= 2).all()
        stays = weights[weights != 0] == before[weights != 0]
        assert stays.all() if method != "sparsegpt" else not stays.all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pattern": "4:2"}, r"The pattern '4:2' is neither 'unstructured' nor N:M"),
        ({"pattern": "half"}, r"The pattern 'half' is neither 'unstructured' nor N:M, with N of each M that stay"),
        ({"pattern": "2:7"}, r"Rows of \d+ of 'blk\.0\.\w+\.weight' are no whole groups of 7"),
        ({}, r"The calibration text has 3 tokens; \d+ are needed"),
    ],
)
def test_what_cannot_be_thinned_is_told(tiny_model: Path, tmp_path: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(BadConfigValue, match=says):
        Sparsify(**settings).apply(
            tiny_model, tmp_path / "out.gguf", Workshop(tmp_path, lambda step: Run(1), "A few words")
        )
    assert not list(tmp_path.iterdir())
