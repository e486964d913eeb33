from __future__ import annotations

import numpy as np
import pytest

from codriver.optimize.blocks import FORMATS
from codriver.optimize.ggml import dequantise, quantise
from codriver.optimize.gptq import inverse_factor, output_error, output_loss, round_second_order

WIDTH = 512


def inputs(tokens: int, seed: int) -> np.ndarray:
    """Columns that lean on a few common causes, as a network's do."""
    chance = np.random.default_rng(3)
    causes = chance.standard_normal((24, WIDTH)) * np.exp(chance.standard_normal(WIDTH))
    drawn = np.random.default_rng(seed)
    given = drawn.standard_normal((tokens, 24)) @ causes + 0.3 * drawn.standard_normal((tokens, WIDTH))
    return given.astype(np.float32)


def moment_of(given: np.ndarray) -> np.ndarray:
    return given.T @ given / np.float32(len(given))


@pytest.mark.parametrize("kind", FORMATS)
def test_it_loses_less_of_the_output_than_rounding_to_the_nearest(kind: str) -> None:
    weights = np.random.default_rng(5).standard_normal((40, WIDTH)).astype(np.float32)
    moment, held = moment_of(inputs(4000, 1)), moment_of(inputs(1000, 2))
    second = dequantise(kind, round_second_order(kind, weights, moment), weights.shape)
    nearest = dequantise(kind, quantise(kind, weights, np.diagonal(moment).copy()), weights.shape)
    # On inputs that it did not see: what was made good there was no chance.
    assert output_loss(weights, second, held) < 0.7 * output_loss(weights, nearest, held)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_where_columns_have_nothing_in_common_it_is_rounding_to_the_nearest(kind: str) -> None:
    weights = np.random.default_rng(5).standard_normal((8, WIDTH)).astype(np.float32)
    moment = np.eye(WIDTH, dtype=np.float32)
    second = dequantise(kind, round_second_order(kind, weights, moment), weights.shape)
    form = FORMATS[kind]
    for begin in range(0, WIDTH, form.width):
        part = weights[:, begin : begin + form.width]
        grid = form.grid(form.begin(part, np.ones(form.width, np.float32)))
        for column in range(form.width):
            _, rounded = grid.round(column, part[:, column])
            assert np.array_equal(second[:, begin + column], rounded)


def test_a_column_that_nothing_ever_enters_harms_nobody() -> None:
    given = inputs(2000, 1)
    given[:, 10:20] = 0
    moment = moment_of(given)
    weights = np.random.default_rng(5).standard_normal((8, WIDTH)).astype(np.float32)
    read = dequantise("Q5_0", round_second_order("Q5_0", weights, moment), weights.shape)
    assert np.isfinite(read).all()
    assert np.isfinite(inverse_factor(np.zeros((32, 32), np.float32), 0.01)).all()


def test_errors_are_relative_to_the_output() -> None:
    weights = np.ones((2, 32), np.float32)
    importance = np.arange(32, dtype=np.float32)
    assert output_error(weights, weights, importance) == 0
    assert output_error(weights, 0 * weights, importance) == pytest.approx(1)
    assert output_error(0 * weights, weights, importance) == 0
