"""What goes into matrices is read for as many of them at once as there is memory for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codriver.optimize import calibrate
from codriver.optimize.calibrate import Inputs, MomentsAhead, Read, moment_bytes, read_inputs, read_moments
from codriver.optimize.evaluate import Run


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
    widths = {"a": 8, "b": 8, "c": 8, "W": 64, "d": 8}
    sizes = {name: 2 * moment_bytes(width, 10**6) for name, width in widths.items()}
    ahead = MomentsAhead(sizes, text(1.0), text(2.0))
    for name in "abcWd":
        fit, held = ahead.inputs(name)
        assert (fit.moment(name) == 1).all() and (held.moment(name) == 4).all()
        assert np.array_equal(ahead.moment(name), fit.moment(name))
    assert asked == [(value, names) for names in ("ab", "c", "W", "d") for value in (1.0, 2.0)]


def test_few_rows_are_kept_as_they_are_and_say_the_same_as_their_moment() -> None:
    drawn = np.random.default_rng(3)
    parts = [drawn.standard_normal((rows, 16)).astype(np.float32) for rows in (7, 9, 5)]
    off = drawn.standard_normal((3, 16)).astype(np.float32)
    for count in (1, 2, 3):  # with the third there are more rows than columns
        found = Inputs(sum(map(len, parts[:count])))
        for part in parts[:count]:
            found.add("w", "x", part, True)
        assert bool(found._rows.get("x")) == (count < 3)
        rows = np.concatenate(parts[:count])
        moment = rows.T @ rows / len(rows)
        assert np.allclose(found.moment("w"), moment, atol=1e-5)
        assert np.allclose(found.moment("w", slice(4, 9)), moment[4:9, 4:9], atol=1e-5)
        assert found.loss("w", off) == pytest.approx(np.square(off @ rows.T).sum() / len(rows), rel=1e-4)


def test_moments_alone_are_those_of_a_whole_reading_and_no_window_is_read_to_its_end(
    plain_model: Path, sentences: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = frozenset({"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_gate.weight", "nothing.weight"})
    whole = read_inputs(plain_model, sentences, 4, Run(1), names.__contains__)
    assert "blk.1.ffn_down.weight" in whole and "nothing.weight" not in whole
    seen: list[str] = []
    add = Inputs.add

    def noted(self: Inputs, weight: str, given: str, values: np.ndarray, kept: bool) -> None:
        seen.append(weight)
        add(self, weight, given, values, kept)

    monkeypatch.setattr(Inputs, "add", noted)
    asked: list[str] = []
    watched = calibrate._Enough

    class Enough(watched):
        def __init__(self) -> None:
            asked.append("enough")

    monkeypatch.setattr(calibrate, "_Enough", Enough)
    found = read_moments(plain_model, sentences, 4, Run(1), names)
    assert found.n == whole.n and set(seen) == names - {"nothing.weight"} and len(seen) == 3 * 4
    assert len(asked) == 3, "the first window is read whole, for one that is not there"
    for name in names - {"nothing.weight"}:
        assert np.array_equal(found.moment(name), whole.moment(name))
        assert np.array_equal(found.importance(name), whole.importance(name))


def test_what_was_read_is_the_same_once_it_was_kept(tmp_path: Path) -> None:
    found = Inputs(2)
    given = np.arange(8, dtype=np.float32).reshape(2, 4)
    for name in ("a.weight", "b.weight"):  # share an input
        found.add(name, "x", given, False)
    (tmp_path / "inputs.npz").write_bytes(found.packed())
    again = Inputs.unpacked(tmp_path / "inputs.npz")
    assert "b.weight" in again and "c.weight" not in again
    for name in ("a.weight", "b.weight"):
        assert np.array_equal(again.importance(name), found.importance(name)) and again.width(name) == 4
