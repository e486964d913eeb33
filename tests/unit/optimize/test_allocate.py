from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codriver.core.errors import BadConfigValue
from codriver.optimize.allocate import Choice, allocate, hull

SIZES = st.integers(1, 30)
LOSSES = st.floats(0, 10)
TABLES = st.lists(st.lists(st.tuples(SIZES, LOSSES), min_size=1, max_size=4), min_size=1, max_size=5)


def choices_of(table: list[list[tuple[int, float]]]) -> dict[str, list[Choice]]:
    return {
        f"t{at}": [Choice(f"k{number}", size, loss) for number, (size, loss) in enumerate(row)]
        for at, row in enumerate(table)
    }


@given(TABLES, st.integers(0, 120))
def test_it_keeps_the_budget_and_its_bound_is_one(table: list[list[tuple[int, float]]], spare: int) -> None:
    choices = choices_of(table)
    budget = sum(min(one.size_bytes for one in of) for of in choices.values()) + spare
    found = allocate(choices, budget)
    best = min(
        sum(one.loss for one in chosen)
        for chosen in itertools.product(*choices.values())
        if sum(one.size_bytes for one in chosen) <= budget
    )
    picked = [next(one for one in choices[name] if one.kind == kind) for name, kind in found.kinds.items()]
    assert sum(one.size_bytes for one in picked) == found.size_bytes <= budget
    assert sum(one.loss for one in picked) == pytest.approx(found.loss, abs=1e-9)
    assert found.bound - 1e-9 <= best <= found.loss + 1e-9


@given(st.lists(st.tuples(SIZES, LOSSES), min_size=1, max_size=8))
def test_a_hull_saves_less_for_each_further_byte(row: list[tuple[int, float]]) -> None:
    steps = hull(choices_of([row])["t0"])
    slopes = [(a.loss - b.loss) / (b.size_bytes - a.size_bytes) for a, b in itertools.pairwise(steps)]
    assert all(slope > 0 for slope in slopes)
    assert slopes == sorted(slopes, reverse=True)
    assert steps[0].size_bytes == min(size for size, _ in row)
    assert steps[-1].loss == min(loss for _, loss in row)


def test_a_budget_that_nothing_fits_is_told() -> None:
    with pytest.raises(BadConfigValue, match=r"smallest types that are allowed take 10 bytes; the budget is 9\."):
        allocate({"a": [Choice("x", 10, 1.0)]}, 9)
