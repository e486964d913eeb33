"""Documents in passages: nothing is lost, headings stay with what follows, the best are chosen and told in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codriver.route.passages import GAP, by_words, choose, cut, tokens_of, written

MANUAL = (
    "# Manual\n\n## Tyres\n\nThe cold tyre pressure is 2.4 bar. Check it every month.\n\n"
    "## Brakes\n\nBrake fluid is changed every two years. Ask your dealer for it.\n\n"
    "## Lights\n\nThe fuse of the headlights is number 17. Never take a stronger one.\n"
)
LONG = "The seats can be moved with the lever. Pull it up and slide the seat until it clicks. " * 40


def _flat(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(
    "document",
    [
        "",
        " \n ",
        "a",
        "x" * 5000,
        "word " * 3000,
        "。" * 3000,
        LONG,
        MANUAL,
        '"' * 3000,
        "line 17\r\n" * 500,
        "# a\n# b",
    ],
)
def test_passages_hold_all_of_a_document_and_are_short(document: str) -> None:
    passages = cut(document)
    assert _flat("".join(passage.text for passage in passages)) == _flat(document)
    assert all(len(passage.text.split()) <= 125 for passage in passages)
    assert all(document[passage.start : passage.end] == passage.text for passage in passages)


@given(st.text(alphabet='aB .\n#1。"\r\t', max_size=400))
def test_no_text_is_lost_whatever_it_is(document: str) -> None:
    assert _flat("".join(passage.text for passage in cut(document))) == _flat(document)


def test_a_heading_goes_with_what_follows_and_is_said_again_for_later_passages() -> None:
    sections = [passage.text for passage in cut(MANUAL)]
    assert [text.splitlines()[0] for text in sections] == ["# Manual", "## Brakes", "## Lights"]
    first, second, *_ = cut(f"Seats\n\n{LONG}")
    assert first.text.startswith("Seats\n\nThe seats") and not first.heading
    assert second.heading == "Seats" and second.said.startswith("Seats\n")


def test_a_sentence_does_not_end_between_an_abbreviation_and_its_number() -> None:
    text = "Call us. " * 50 + "Tel. 0170 1234567 is open. " + "Call us. " * 50
    assert any("Tel. 0170 1234567" in passage.text for passage in cut(text))


def test_the_words_of_the_question_choose_and_rare_ones_count_for_more() -> None:
    passages = cut(MANUAL)
    scores = by_words(passages, "What is the pressure of tyres?")
    assert 0.0 < scores[0] <= 1.0 and max(scores[1:]) < 0.75 * scores[0]
    assert by_words(passages, "xyzzy") == [0.0, 0.0, 0.0]
    assert by_words([], "anything") == []


def test_what_is_left_out_is_marked_and_the_order_is_that_of_the_documents() -> None:
    passages = [*cut(MANUAL), *cut("One thing. Another.")]
    numbers = [0, 0, 0, 1]
    text = written(passages, numbers, [0, 2, 3])
    assert text.splitlines()[0] == "Document 1:"
    assert text.index("Tyres") < text.index(GAP) < text.index("Lights") < text.index("Document 2:\nOne thing.")
    assert text.count(GAP) == 1
    assert written(passages, numbers, [1]).splitlines()[1] == GAP
    assert written(passages, numbers, [1]).splitlines()[-1] == GAP
    assert written(passages, numbers, []) == ""


def test_the_budget_is_kept_the_best_is_always_there_and_nothing_is_said_twice() -> None:
    passages = cut(LONG)
    scores = [1.0 / (1 + at) for at in range(len(passages))]
    assert choose(passages, scores, 10) == [0]
    passages = cut(MANUAL)
    assert choose(passages, [0.1, 0.2, 0.3], passages[2].tokens + passages[1].tokens) == [1, 2]
    assert len(choose([*passages, *passages], [1.0] * 6, 10_000)) == 3
    chosen = choose(passages, [1.0] * 3, 60)
    assert tokens_of(written(passages, [0] * 3, chosen)) <= 60 + 8
