"""The quality model learns, is calibrated, and survives its file; bad files and thin data are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codriver.core.errors import BadConfigValue, MissingFile
from codriver.route.fit import fit_model
from codriver.route.outcome_model import Forest, OutcomeModel, Packed, load_model, save_model
from codriver.route.reading import read_text
from codriver.route.trees import fit_trees
from tests.unit.route.judging import prompt_of, vector_of, world


@pytest.fixture(scope="module")
def model() -> OutcomeModel:
    return fit_model(world(), "fake")


def good(model: OutcomeModel, topic: str, number: int = 9000) -> dict[str, float]:
    reading = read_text(prompt_of(topic, number))
    return model.good(reading, vector_of(reading.start))


def test_a_small_specialist_wins_on_its_own_ground(model: OutcomeModel) -> None:
    climate = [good(model, "climate", n) for n in range(9000, 9030)]
    trivia = [good(model, "trivia", n) for n in range(9000, 9030)]
    assert sum(one["small"] > one["large"] for one in climate) >= 27
    assert sum(one["large"] > one["small"] for one in trivia) >= 27


def test_probabilities_are_calibrated(model: OutcomeModel) -> None:
    small = model.file.heads["small"]
    assert small.ece < 0.1
    assert small.brier < 0.6 * small.rate * (1 - small.rate)
    assert np.mean([good(model, "climate", n)["small"] for n in range(9000, 9030)]) == pytest.approx(0.9, abs=0.12)


def test_chance_is_told_as_the_base_rate(model: OutcomeModel) -> None:
    told = [good(model, topic, n)["large"] for topic in ("climate", "trivia") for n in range(9000, 9020)]
    assert np.mean(told) == pytest.approx(model.file.heads["large"].rate, abs=0.06)


def test_an_engine_that_was_not_always_asked_learns_from_what_there_is() -> None:
    whole = world()
    small = whole.good["small"].copy()
    small[200:] = np.nan
    model = fit_model(replace(whole, good={"small": small, "large": whole.good["large"]}))
    assert model.file.heads["small"].n == 200
    assert good(model, "climate")["small"] > 0.6 > good(model, "trivia")["small"]


def test_the_file_gives_the_same_model(model: OutcomeModel, tmp_path: Path) -> None:
    file = tmp_path / "there" / "model.json"
    save_model(model, file)
    assert good(load_model(file), "climate") == pytest.approx(good(model, "climate"), abs=1e-6)
    assert not list(file.parent.glob("*.part"))


def test_packing_keeps_a_thousandth() -> None:
    matrix = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    assert np.abs(Packed.of(matrix).matrix() - matrix).max() < 1e-3 * np.abs(matrix).max()


def test_trees_say_what_scikit_learn_says() -> None:
    chance = np.random.default_rng(2)
    rows = chance.normal(size=(3000, 6)).astype(np.float32)
    good = (rows[:, 0] * rows[:, 1] + chance.normal(0, 0.5, 3000) > 0).astype(float)
    trees, odds = fit_trees(rows, good, rows[:500])
    assert np.abs(odds).max() > 1.0
    assert np.allclose(Forest(trees, 6).log_odds(rows[:500]), odds, atol=1e-4)


def test_files_that_are_no_model(model: OutcomeModel, tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    with pytest.raises(MissingFile, match=r"model\.json does not exist: `codriver route train` makes one"):
        load_model(file)
    file.write_text('{"reading": 1')
    with pytest.raises(BadConfigValue, match=r"The quality model .*model\.json is not valid"):
        load_model(file)
    save_model(model, file)
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "reading": 0}))
    with pytest.raises(BadConfigValue, match="another version of Codriver: make it anew with `codriver route train`"):
        load_model(file)
    for broken in ({"form_means": [1.0]}, {"dimensions": 3}, {"topic_weights": {**whole["topic_weights"], "rows": 3}}):
        file.write_text(json.dumps({**whole, **broken}))
        with pytest.raises(BadConfigValue, match="is not valid"):
            load_model(file)


def test_too_little_to_learn_from() -> None:
    with pytest.raises(BadConfigValue, match="needs at least 40 outcomes of 'small'; there are 30"):
        fit_model(world(30))
    whole = world(60)
    always = replace(whole, good={"small": np.ones(60)})
    with pytest.raises(BadConfigValue, match="All outcomes of 'small' are the same"):
        fit_model(always)
