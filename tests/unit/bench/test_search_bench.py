"""Every stock type is in the rows, whether it fits, is written, or not; and which trial met the requirement first."""

from __future__ import annotations

from pathlib import Path

from codriver.bench import search
from codriver.core.artifact import Measured
from codriver.core.errors import BadModelFile
from codriver.optimize.search_records import Found, Record
from tests.unit.engines.gguf_files import write_gguf

CALLED = ("llama.cpp Q4_0, imatrix", "a model", 10_000)


def scored(file: Path) -> list[Measured]:
    return [Measured("kl", 0.2, "nats/token", 255, 0.1, 0.3), Measured("size", float(file.stat().st_size), "bytes", 1)]


def test_a_stock_type_that_fits_is_scored(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "small.gguf", {}, [("blk.0.attn_q.weight", (576, 2), 2, bytes(2 * 18 * 18))])
    kl, size = search._stock_rows(CALLED, lambda: file, scored)
    assert (kl.metric, kl.value, kl.n, size.metric, size.value) == ("kl", 0.2, 255, "bytes", file.stat().st_size)


def test_one_that_does_not_fit_or_is_not_written_is_listed(tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    large.write_bytes(bytes(10_001))

    def refused() -> Path:
        raise BadModelFile("llama.cpp did not write IQ1_S: no imatrix.")

    (row,) = search._stock_rows(CALLED, lambda: large, scored)
    assert (row.metric, row.value, row.note) == ("bytes", 10_001, "does not fit: not scored")
    (row,) = search._stock_rows(CALLED, refused, scored)
    assert (row.n, row.note) == (0, "not written: llama.cpp did not write IQ1_S: no imatrix.")


def test_the_trial_that_met_it_first_is_told() -> None:
    def record(key: str, kl: float, missed: list[str], state: str = "measured") -> Record:
        return Record("none", "all", 0.1, key, 90, kl, state, {"kl": kl}, [], missed)  # type: ignore[arg-type]

    tried = [record("a", 0.4, ["kl<=0.1"]), record("b", 9.0, [], "expected"), record("c", 0.05, [])]
    first, *front = search._trials(Found(["kl<=0.1"], tried, [tried[2]]), "a model")
    assert (first.metric, first.value) == ("trials", 3.0)
    assert first.note == "2 measured, 0 scored, 1 expected; number 2 of the measured ones met it first"
    assert [(row.value, row.note) for row in front] == [(0.05, "90 B, none, all, damping 0.1")]
    assert search._trials(Found([], tried[:2], []), "a model")[0].note.endswith("; none met the requirement")
