"""The grids and codes of llama.cpp's block formats, judged by llama.cpp's own reader."""

from __future__ import annotations

import numpy as np
import pytest

from codriver.optimize.blocks import FORMATS
from codriver.optimize.ggml import bits, block, dequantise, quantise

ROWS = 7


def weights_of(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, width)).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_any_codes_are_read_as_the_weights_that_the_grid_says(kind: str) -> None:
    form, chance = FORMATS[kind], np.random.default_rng(1)
    blocks = form.begin(weights_of(form.width), chance.random(form.width).astype(np.float32))
    grid = form.grid(blocks)
    codes = chance.integers(0, len(grid.levels), (ROWS, form.width)).astype(np.uint8)
    form.fill(blocks, codes)
    columns = np.arange(form.width) // grid.step
    told = grid.scale[:, columns] * grid.levels[codes] - grid.offset[:, columns]
    assert np.array_equal(dequantise(kind, blocks.reshape(-1), (ROWS, form.width)), told.astype(np.float32))


@pytest.mark.parametrize("kind", FORMATS)
def test_rounding_to_the_grid_gives_ggmls_own_blocks_back(kind: str) -> None:
    form = FORMATS[kind]
    blocks = form.begin(weights_of(form.width), np.ones(form.width, np.float32))
    stored = dequantise(kind, blocks.reshape(-1), (ROWS, form.width))
    grid, codes = form.grid(blocks), np.empty((ROWS, form.width), np.uint8)
    for column in range(form.width):
        codes[:, column], rounded = grid.round(column, stored[:, column])
        assert np.array_equal(rounded, stored[:, column])
    again = blocks.copy()
    form.fill(again, codes)
    assert np.array_equal(again, blocks)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_code_is_nearer_than_the_one_that_rounding_chooses(kind: str) -> None:
    form = FORMATS[kind]
    values = 3 * weights_of(form.width, 2)
    grid = form.grid(form.begin(weights_of(form.width), np.ones(form.width, np.float32)))
    for column in range(0, form.width, 5):
        _, rounded = grid.round(column, values[:, column])
        at = column // grid.step
        all_of = grid.scale[:, [at]] * grid.levels - grid.offset[:, [at]]
        nearest = np.abs(all_of - values[:, [column]]).min(axis=1)
        assert np.allclose(np.abs(rounded - values[:, column]), nearest, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "told"), [("Q4_0", 4.5), ("Q4_K", 4.5), ("Q6_K", 6.5625), ("Q8_0", 8.5), ("F16", 16.0)]
)
def test_bits_per_weight(kind: str, told: float) -> None:
    assert bits(kind) == told


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "IQ4_XS", "IQ2_XXS", pytest.param("IQ1_S", marks=pytest.mark.slow)]
)
def test_what_is_written_is_read_again(kind: str) -> None:
    width = max(256, block(kind)[0])
    weights = weights_of(width)
    read = dequantise(kind, quantise(kind, weights), weights.shape)
    coarse = {"F32": 0.0, "F16": 1e-6, "BF16": 1e-4, "Q8_0": 1e-3, "IQ4_XS": 0.02, "IQ2_XXS": 0.4, "IQ1_S": 0.8}
    assert np.square(read - weights).mean() <= coarse[kind]


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_ternary_weights_stay_what_they_are(kind: str) -> None:
    weights = np.random.default_rng(0).integers(-1, 2, (ROWS, 256)).astype(np.float32) / 2
    assert np.array_equal(dequantise(kind, quantise(kind, weights), weights.shape), weights)
