"""The route bench: no question on both sides, honest yardsticks, and figures that follow from the outcomes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from codriver.bench.datasets import Outcome
from codriver.bench.folds import FOLDS, group_of
from codriver.bench.outcome_sets import EmbeddingCache, OutcomeSet, examples_of
from codriver.bench.route import decision_times, judge_set
from codriver.bench.route_systems import category_mean, cross_fit, nearest, ranking, within_folds
from codriver.bench.route_training import own_examples, read_outcomes, train_from
from codriver.core.errors import BadConfigValue, MissingFile
from codriver.route.evaluate import Ranking
from codriver.route.fit import fit_model
from tests.unit.route.judging import FakeEmbedder, embed, prompt_of


def small_set(count: int = 300) -> OutcomeSet:
    """The strong model helps with trivia only, three times in four."""
    chance = random.Random(2)
    made = []
    for number in range(count):
        topic = chance.choice(["climate", "trivia"])
        weak = chance.random() < (0.8 if topic == "climate" else 0.2)
        strong = weak if topic == "climate" else weak or chance.random() < 0.75
        made.append(Outcome(f"q{number}", "made", topic, prompt_of(topic, number), weak, strong))
    return OutcomeSet("made", "weak", "strong", tuple(made))


@pytest.fixture(scope="module")
def made() -> OutcomeSet:
    return small_set()


def test_equal_questions_share_a_fold_whatever_their_options() -> None:
    first = "What is  a Whale?\nA. fish\nB. mammal\nAnswer:"
    assert group_of(first) == group_of("what is a whale?\nA. mammal\nB. bird\nC. fish")
    assert group_of(first) != group_of("What is a shark?\nA. fish\nB. mammal\nAnswer:")


def test_a_score_that_is_constant_per_fold_knows_nothing(made: OutcomeSet) -> None:
    folds = made.folds()
    means = np.array([made.gains()[folds != fold].mean() for fold in folds])
    assert ranking(made, means).area() == pytest.approx(0.5, abs=0.02)
    assert Ranking(within_folds(np.zeros(len(folds)), folds), made.gains()).area() == pytest.approx(0.5, abs=0.02)


def test_the_category_mean_does_not_see_the_own_fold(made: OutcomeSet) -> None:
    scores, folds, gains = category_mean(made), made.folds(), made.gains()
    here = (folds == 0) & np.array([name == "trivia" for name in made.categories()])
    others = (folds != 0) & np.array([name == "trivia" for name in made.categories()])
    assert scores[here] == pytest.approx(gains[others].mean())


def test_the_quality_model_finds_who_gains(made: OutcomeSet) -> None:
    examples = examples_of([made], embed)
    fitted = cross_fit(made, examples)
    ours, best = ranking(made, fitted.scores).area(), ranking(made, category_mean(made)).area()
    assert best > 0.65
    assert ours > best - 0.06
    assert ranking(made, nearest(made, examples.embeddings, 30)).area() > 0.6


def test_outcomes_of_the_own_fold_change_nothing(made: OutcomeSet) -> None:
    examples = examples_of([made], embed)
    before = cross_fit(made, examples)
    turned = OutcomeSet("made", "weak", "strong", tuple(
        Outcome(o.id, o.source, o.category, o.prompt, not o.weak_ok, o.strong_ok) if fold == 0 else o
        for o, fold in zip(made.outcomes, made.folds(), strict=True)
    ))  # fmt: skip
    after = cross_fit(turned, examples_of([turned], embed))
    here = made.folds() == 0
    assert np.allclose(before.weak[here], after.weak[here])
    assert not np.allclose(before.weak[~here], after.weak[~here])


def test_rows_of_a_set(made: OutcomeSet) -> None:
    rows = judge_set(made, examples_of([made], embed), rounds=50)
    found = {(row.system, row.metric): row for row in rows}
    assert found["oracle", "apgr"].value > found["codriver", "apgr"].value > found["random at equal rate", "apgr"].value
    ours = found["codriver", "apgr"]
    assert ours.low is not None and ours.high is not None and ours.low < ours.value < ours.high
    assert {m for s, m in found if s == "codriver"} >= {
        "calls_at_50%", "calls_at_80%", "calls_at_95%", "apgr_over_category_mean", "weak_ece", "strong_brier"
    }  # fmt: skip
    difference = found["codriver", "apgr_over_category_mean"]
    assert difference.value == pytest.approx(ours.value - found["category mean", "apgr"].value, abs=2e-4)
    assert all(row.n == len(made.outcomes) for row in rows)


def test_decision_times_are_taken_with_and_without_embedding(made: OutcomeSet) -> None:
    embedder = FakeEmbedder()
    model = fit_model(examples_of([made], embed))
    rows = decision_times([one.prompt for one in made.outcomes[:40]], model, embedder)  # type: ignore[arg-type]
    assert [(row.case, row.metric) for row in rows] == [
        (case, metric)
        for case in ("with embedding", "without embedding")
        for metric in ("decision_p50_ms", "decision_p99_ms")
    ]
    assert embedder.calls == 40
    assert all(row.value > 0 and row.n == 20 for row in rows)


class Counting(FakeEmbedder):
    async def aclose(self) -> None:
        return None


def test_embeddings_are_kept(tmp_path: Path) -> None:
    engine = Counting()
    first = EmbeddingCache(tmp_path, lambda: engine, lambda line: None)(["a warm seat", "a river", "a river"])  # type: ignore[arg-type,return-value]
    again = EmbeddingCache(tmp_path, lambda: engine, lambda line: None)(["a river", "a warm seat"])  # type: ignore[arg-type,return-value]
    assert engine.calls == 1
    assert np.allclose(first[0], again[1], atol=1e-3) and np.allclose(first[1], first[2])


def test_training_from_a_file_of_ones_own(tmp_path: Path) -> None:
    chance, file = random.Random(1), tmp_path / "outcomes.jsonl"
    lines = []
    for number in range(200):
        topic = "climate" if number % 2 else "trivia"
        good = "true" if chance.random() < (0.9 if topic == "climate" else 0.1) else "false"
        lines.append(f'{{"prompt": "{prompt_of(topic, number)}", "engine": "vehicle", "good": {good}}}')
    file.write_text("\n".join(lines) + "\n\n")
    model = train_from(file, lambda line: None, embed)
    assert list(model.file.heads) == ["vehicle"]
    assert model.file.heads["vehicle"].n == 200
    assert model.file.heads["vehicle"].brier < 0.2


def test_an_engine_asked_twice_counts_by_its_mean(tmp_path: Path) -> None:
    file = tmp_path / "o.jsonl"
    file.write_text('{"prompt":"p","engine":"e","good":true}\n{"prompt":"p","engine":"e","good":false}\n')
    assert own_examples(read_outcomes(file), embed).good["e"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ('{"prompt": "p", "engine": "e", "good": true}\n{"prompt": 1}', r"Line 2 of .*o\.jsonl is no outcome"),
        ('{"prompt": "p", "engine": "e", "good": "yes"}', r"Line 1 of .* `\$\.good`"),
        ("not json", "Line 1 of"),
    ],
)
def test_a_file_that_is_no_outcomes_names_its_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "o.jsonl"
    file.write_text(text)
    with pytest.raises(BadConfigValue, match=told):
        read_outcomes(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"The file of outcomes .*none\.jsonl does not exist"):
        read_outcomes(tmp_path / "none.jsonl")


def test_there_are_five_folds(made: OutcomeSet) -> None:
    assert set(made.folds().tolist()) == set(range(FOLDS))
