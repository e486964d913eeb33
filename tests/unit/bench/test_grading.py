"""Right grades right and, above all, wrong grades wrong."""

from __future__ import annotations

import json
import random

import pytest

from codriver.bench.grading import grade, letter_in, number_in
from codriver.bench.workload import WorkItem
from codriver.core.errors import BadConfigValue


def item(how: str, answer: str | None) -> WorkItem:
    return WorkItem("x", "question", [], answer, how, None, 8, 4.0, 2.0)


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", " B.", "(B)", "**B**", '"B"', "B. bank", "B) bank", "B: bank", "Answer: B", "The answer is (B).",
        "The correct answer is: **B**", "the answer is b.", "Option B is right", '{"answer":"B"}',
        '{"answer": "B. bank"}',
        '```json\n{"answer": "B"}\n```', "I think it is B because A is wrong", "A is tempting, but the answer is B.",
    ],
)  # fmt: skip
def test_a_letter_is_found_in_the_ways_models_write_it(text: str) -> None:
    assert letter_in(text) == "B"
    assert grade(item("letter", "B"), text).correct is True
    for other in "ACDE":
        assert grade(item("letter", other), text).correct is False


@pytest.mark.parametrize(
    "text",
    ["", "   ", "Bank", "A dog", "I would say that", "the answer is a bank", '{"domain":"B"}', "It's fine", "42"],
)
def test_no_letter_is_no_answer(text: str) -> None:
    assert letter_in(text) is None
    for letter in "ABCDE":
        assert grade(item("letter", letter), text).correct is False


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5), ("5.", 5), ("1,200 apples", 1200), ("= 18", 18), ("2*4-1=7", 7), ("-3.5", -3.5), ("$18", 18),
        ("The answer is $1,234.50.", 1234.5), ("she has 3\n#### 42", 42), ("answer: 7 apples in 2 bags", 7),
        (".5", 0.5), ('{"answer": 12}', 12), ('{"answer": "12 eggs"}', 12), ("1e3", 1000), ("50%", 50), ("\u22124", -4),
        ("3/4", 0.75), ("5 - 10 = -5", -5), ("3 + 4 = 7.", 7), ("12/3=4", 4), ("$ 18", 18),
    ],
)  # fmt: skip
def test_a_number_is_found_with_units_commas_and_decimals(text: str, number: float) -> None:
    assert number_in(text) == pytest.approx(number)
    assert grade(item("number", str(number)), text).correct is True
    assert grade(item("number", str(number + 1)), text).correct is False
    assert grade(item("number", str(-number - 0.5)), text).correct is False


@pytest.mark.parametrize("text", ["", "no", "20-5", "10 - 5", "2 * 4", "x2", "seven", "{}", "true", "1/0", "1e999"])
def test_an_unfinished_calculation_or_none_is_no_answer(text: str) -> None:
    assert number_in(text) is None
    assert grade(item("number", "5"), text).correct is False


def test_numbers_are_equal_within_a_millionth() -> None:
    assert grade(item("number", "3.333333"), "3.3333333").correct is True
    assert grade(item("number", "3.333"), "3.334").correct is False
    assert grade(item("number", "590125"), "590125.01").correct is False


def test_random_numbers_survive_writing_and_nothing_else_passes() -> None:
    rng = random.Random(3)
    for _ in range(500):
        value = rng.choice([rng.randint(-999_999, 999_999), round(rng.uniform(-5000, 5000), 2)])
        other = value + rng.choice([-1, 1]) * rng.choice([0.01, 1, 10, 1000])
        written = rng.choice(
            [f"{value}", f"{value:,}", f"The answer is {value:,} km.", f"1+1={value}", f"#### {value}"]
        )
        assert grade(item("number", str(value)), written).correct is True, written
        assert grade(item("number", str(other)), written).correct is False, written


def test_nothing_makes_grading_fail() -> None:
    rng = random.Random(4)
    alphabet = 'ABCE abc{}[]":,.-+*/=0123456789$\n#()\u2212é'
    for _ in range(2000):
        text = "".join(rng.choices(alphabet, k=rng.randrange(30)))
        for how, answer in (("letter", "B"), ("number", "7"), ("domain", "seats"), ("answered", None)):
            grade(item(how, answer), text)


def test_a_domain_is_read_from_a_json_object_only() -> None:
    seats = item("domain", "seats")
    assert grade(seats, json.dumps({"domain": "seats"}, indent=2)).correct is True
    assert grade(seats, '{"domain":"lights"}').correct is False
    assert grade(seats, '{"domain":["seats"]}').correct is False
    assert grade(seats, '{"domain":"seats"').why == "not a JSON object"
    assert grade(seats, "seats").correct is False
    assert grade(seats, '"seats"').correct is False
    assert grade(seats, '{"part":"seats"}').why == "no domain in the object"


def test_small_talk_is_answered_or_not() -> None:
    assert grade(item("answered", None), "Hello there!").correct is None
    assert grade(item("answered", None), " \n...").correct is False


@pytest.mark.parametrize(("how", "text"), [("answered", "Once upon a"), ("letter", "B"), ("number", "7")])
def test_an_answer_that_broke_off_is_wrong_whatever_it_says(how: str, text: str) -> None:
    assert grade(item(how, {"letter": "B", "number": "7"}.get(how)), text, complete=False).correct is False


def test_an_unknown_way_of_grading_names_the_known_ones() -> None:
    with pytest.raises(BadConfigValue, match=r"no grade 'vibes'.*letter, number, domain, reference, answered"):
        grade(item("vibes", None), "x")
