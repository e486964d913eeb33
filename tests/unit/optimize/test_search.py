"""A search that is led by what it measured, stops when its time is up, and goes on where it was interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("optuna", reason="the extra 'optimize' brings Optuna")

from codriver.core.artifact import load_artifact
from codriver.core.errors import BadConfigValue, BadModelFile, RequirementMissed
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.optimise import Optimisation
from codriver.optimize.recipe import NO_PASSES
from codriver.optimize.requirement import parse_requirements
from codriver.optimize.search import Search
from codriver.optimize.search_journal import Journal
from codriver.optimize.search_records import Record, front, read_found
from codriver.optimize.targets.predict import elsewhere, layout_of
from codriver.optimize.targets.predictor import Predictor
from codriver.optimize.targets.target import find_target
from codriver.optimize.task import Settings
from tests.unit.optimize.calibrations import calibration, figures


def record(key: str, size: int, kl: float, state: str = "measured") -> Record:
    found = {"recipe": "none", "kinds": "all", "damping": 0.1, "key": key, "size_bytes": size, "expected_kl": kl,
             "state": state, "values": {"kl": kl}, "broken": [kl - 0.1], "missed": []}  # fmt: skip
    return msgspec.convert(found, Record)


def test_the_front_holds_what_no_other_beats() -> None:
    records = [record("a", 30, 0.3), record("b", 20, 0.5), record("c", 40, 0.3), record("d", 25, 0.6),
               record("e", 10, 0.0, "scored"), record("b", 20, 0.5)]  # fmt: skip
    assert [one.key for one in front(records)] == ["b", "a"]
    assert front([]) == []


def test_what_was_proposed_and_not_told_is_proposed_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one", ["none", "awq"])
    first = journal.propose()
    assert (first.recipe, first.share, first.kinds) == ("none", 1.0, "all")
    journal.tell(first, record("a", 30, 0.3), (0.3, 30.0), [0.2])
    second = journal.propose()
    assert second.recipe == "awq"
    # The process dies here, and another goes on.
    again = Journal(tmp_path, "one", ["none", "awq"])
    assert again.records(Record) == [record("a", 30, 0.3)]
    third = again.propose()
    assert (third.recipe, third.kinds, third.damping, third.share) == (second.recipe, "all", 0.1, 1.0)
    assert Journal(tmp_path, "another", ["none"]).records(Record) == []


def test_proposals_move_to_where_requirements_are_met(tmp_path: Path) -> None:
    """The value falls with the share, and what is below a half breaks a requirement: seen by what is proposed late."""
    journal = Journal(tmp_path, "one", ["none"])
    shares = []
    for number in range(40):
        told = journal.propose()
        shares.append(told.share)
        journal.tell(told, record(str(number), 1, 1.0), (1 - told.share, 1.0), [0.5 - told.share])
    assert sum(shares[20:]) / 20 > 0.6 > sum(shares[1:9]) / 8


def test_a_search_ends_in_time_and_goes_on(tiny_model: Path, sentences: str, tmp_path: Path) -> None:
    sizes = {"windows": 4, "judged": 4, "sensed": 1, "bands": 1, "runs": 1}
    settings = Settings(sentences, sentences[: len(sentences) // 2], kinds=("Q4_0", "Q5_0", "Q8_0"), **sizes)  # type: ignore[arg-type]
    steps: list[str] = []

    def told(step: str) -> Callable[[int, int], None]:
        steps.append(step)
        return lambda done, of: None

    def search(out: Path, seconds: float, clock: Callable[[], float]) -> list[str]:
        steps.clear()
        optimisation = Optimisation(tiny_model, out, settings, told)
        found = Search(optimisation, {"none": NO_PASSES}, seconds, clock).run(parse_requirements("size<=4500kB, kl<=3"))
        assert found.missed == ()
        return [step for step in steps if step.startswith("trial ")]

    first, second = tmp_path / "first", tmp_path / "second"
    assert search(first, 0.0, lambda: 0.0) == ["trial 1: none"]
    kept = load_artifact(first)
    assert kept.lineage[1].startswith("types by measured KL; matrices rounded: ")
    # The artifact took its file; the rest of what was found stays, and a minute more brings more trials.
    (tmp_path / "first.work").rename(tmp_path / "second.work")
    minute = iter([0.0, 1.0, 2.0, 61.0])
    assert search(second, 60.0, lambda: next(minute)) == ["trial 2: none", "trial 3: none"]
    found = read_found(second)
    assert found is not None and len(found.records) >= 2
    best = {one.metric: one.value for one in load_artifact(second).card}
    assert best["kl"] == min(one.kl for one in found.front if not one.missed)
    assert [one.size_bytes for one in found.front] == sorted(one.size_bytes for one in found.front)


def test_what_is_predicted_to_miss_is_not_written(tiny_model: Path, sentences: str, tmp_path: Path) -> None:
    """For a board that is not here: the types decide how many tokens a second it writes, and that is told before."""
    rates, known = elsewhere(find_target("raspberry-pi-5"), figures())
    predictor = Predictor("raspberry-pi-5", rates, known, calibration(error=0.03))
    limits = {}
    for kind in ("Q4_0", "Q8_0"):
        kinds = {tensor.name: kind for tensor in GgufFile(tiny_model) if len(tensor.shape) == 2}
        rows = predictor.rows(layout_of(tiny_model, kinds), [64])
        limits[kind] = next(row.value for row in rows if row.metric == "decode_tps")
    least = 1.1 * limits["Q8_0"]
    assert least < 0.9 * limits["Q4_0"], "they are further apart than the model errs"
    sizes = {"windows": 4, "judged": 2, "sensed": 1, "bands": 1, "runs": 1}
    settings = Settings(
        sentences, sentences[: len(sentences) // 2], kinds=("Q4_0", "Q5_0", "Q8_0"), target="raspberry-pi-5",
        timing=predictor.timing, **sizes,  # type: ignore[arg-type]
    )  # fmt: skip
    steps: list[str] = []

    def told(step: str) -> Callable[[int, int], None]:
        steps.append(step)
        return lambda done, of: None

    out, seconds = tmp_path / "out", itertools.count()
    asked = parse_requirements(f"decode_tps>={least:.3f}")
    search = Search(
        Optimisation(tiny_model, out, settings, told),
        {"none": NO_PASSES},
        10.0,
        lambda: float(next(seconds)),
        predictor,
    )
    assert search.run(asked).missed == ()
    found = read_found(out)
    assert found is not None and found.limits == {"decode_tps": asked[0].limit}
    assert found.proxies[2].startswith("times and memory: predicted for raspberry-pi-5") and "±3 %" in found.proxies[2]
    left_out = [one for one in found.records if one.state == "expected"]
    # The first proposal is the largest file, which writes too slowly.
    assert left_out and left_out[0].missed == [str(asked[0])] and "decode_tps" in left_out[0].predicted
    assert sum(step.startswith("rounds to ") for step in steps) == len(found.records) - len(left_out)
    written = next(one for one in load_artifact(out).card if one.metric == "decode_tps")
    assert written.predicted and written.note == "predicted for raspberry-pi-5, error on the host ±3 %"
    assert set(found.front[0].predicted) == {"decode_tps", "rss", "ttft_ms@512"}


def test_where_all_is_predicted_to_miss_the_nearest_is_told_as_predicted(
    tiny_model: Path, sentences: str, tmp_path: Path
) -> None:
    rates, known = elsewhere(find_target("raspberry-pi-5"), figures())
    predictor = Predictor("raspberry-pi-5", rates, known, calibration())
    sizes = {"windows": 4, "judged": 2, "sensed": 1, "bands": 1, "runs": 1}
    settings = Settings(sentences, sentences[: len(sentences) // 2], kinds=("Q4_0",), timing=predictor.timing, **sizes)  # type: ignore[arg-type]
    optimisation = Optimisation(tiny_model, tmp_path / "out", settings, lambda step: lambda done, of: None)
    search = Search(optimisation, {"none": NO_PASSES}, 1e9, lambda: 0.0, predictor)
    with pytest.raises(
        RequirementMissed, match=r"meets decode_tps>=1e\+09 \(it is predicted to have .*\)\. The nearest"
    ):
        search.run(parse_requirements("decode_tps>=1000000000"))
    found = read_found(tmp_path / "out")
    assert found is not None and [one.state for one in found.records].count("measured") == 1
    # And where no types fit the size, there is nothing to measure: what they take is told.
    (tmp_path / "out.work").rename(tmp_path / "none.work")
    optimisation = Optimisation(tiny_model, tmp_path / "none", settings, lambda step: lambda done, of: None)
    with pytest.raises(BadConfigValue, match=r"The smallest types that are allowed take [0-9,]+ bytes; the budget is"):
        Search(optimisation, {"none": NO_PASSES}, 1e9, lambda: 0.0, predictor).run(parse_requirements("size<=1500kB"))


def test_trials_that_are_damaged_are_named(tmp_path: Path) -> None:
    assert read_found(tmp_path) is None
    (tmp_path / "search.json").write_text("[")
    with pytest.raises(BadModelFile, match=r"The trials of a search in .*search\.json are not valid"):
        read_found(tmp_path)


def test_what_nothing_meets_ends_with_the_nearest(tiny_model: Path, sentences: str, tmp_path: Path) -> None:
    sizes = {"windows": 4, "judged": 4, "sensed": 1, "bands": 1, "runs": 1}
    settings = Settings(sentences, sentences[: len(sentences) // 2], kinds=("Q4_0", "Q8_0"), **sizes)  # type: ignore[arg-type]
    out = tmp_path / "out"
    optimisation = Optimisation(tiny_model, out, settings, lambda step: lambda done, of: None)
    with pytest.raises(RequirementMissed, match=r"No artifact meets kl<=1e-12 \(it has .*\)\. The nearest is kept in"):
        Search(optimisation, {"none": NO_PASSES}, 0.0, lambda: 0.0).run(
            parse_requirements("size<=5MB, kl<=0.000000000001")
        )
    assert load_artifact(out).files and read_found(out) is not None
