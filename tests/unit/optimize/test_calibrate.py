"""What goes into matrices is read for as many of them at once as there is memory for."""

from __future__ import annotations

import numpy as np
import pytest

from codriver.optimize import calibrate
from codriver.optimize.calibrate import Inputs, MomentsAhead, Read


def test_moments_of_all_texts_count_against_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, str]] = []

    def text(value: float) -> Read:
        def read(names: frozenset[str]) -> Inputs:
            asked.append((value, "".join(sorted(names))))
            found = Inputs(1)
            for name in names:
                found.add(name, name, np.full((1, 8), value, np.float32), True)
            return found

        return read

    monkeypatch.setattr(calibrate, "_MOMENT_BYTES", 2 * 2 * 4 * 8**2)  # two matrices, two texts
    ahead = MomentsAhead({"a": 8, "b": 8, "c": 8, "W": 64, "d": 8}, text(1.0), text(2.0))
    for name in "abcWd":
        fit, held = ahead.inputs(name)
        assert (fit.moment(name) == 1).all() and (held.moment(name) == 4).all()
        assert np.array_equal(ahead.moment(name), fit.moment(name))
    assert asked == [(value, names) for names in ("ab", "c", "W", "d") for value in (1.0, 2.0)]
