"""Known texts are found whatever the case and the white space, and however many there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codriver.route.spellings import Spellings, plain


def known(*texts: str) -> Spellings:
    spellings = Spellings()
    for number, text in enumerate(texts):
        spellings.add(text, str(number))
    return spellings


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Call Anna Schmidt now", ["Anna Schmidt"]),
        ("call ANNA \t\n schmidt", ["ANNA \t\n schmidt"]),
        ("  Anna\N{NO-BREAK SPACE}Schmidt", ["Anna\N{NO-BREAK SPACE}Schmidt"]),
        ("xAnna Schmidty", ["Anna Schmidt"]),
        ("Bo said so", ["Bo"]),
        ("Bob, a bo_ and Abo", []),
        ("Bo, BO: bo", ["Bo", "BO", "bo"]),
        ("Große Straße 7 and GROSSE STRASSE 7", ["Große Straße 7", "GROSSE STRASSE 7"]),
        ("Anna Schmidt-Meier", ["Anna Schmidt-Meier"]),
        ("Anna Schmid", []),
        ("", []),
        (" \n ", []),
    ],
)
def test_what_is_found(text: str, found: list[str]) -> None:
    spellings = known("Anna  Schmidt", "Bo", "große straße 7", "Anna Schmidt-Meier")
    assert [text[start:end] for start, end, _ in spellings.find(text)] == found


def test_what_it_stands_for_is_the_newest_meaning() -> None:
    spellings = known("Bo")
    spellings.add("BO", "later")
    assert spellings.find("to Bo") == [(3, 5, "later")]


def test_white_space_and_nothing_are_no_known_text() -> None:
    assert known("", " \n").find("a b") == []


def test_no_character_is_cut_in_two() -> None:
    # As it is compared, the text has "ss" where the sharp s stands.
    assert known("strasse7s").find("Straße7ß") == []
    assert known("sehr lang").find("ßehr lang") == []


@pytest.mark.parametrize(
    ("text", "begun"), [("to Anna Sch", True), ("to An", True), ("to Bo", True), ("toAn", False), ("to x", False)]
)
def test_a_text_that_ends_in_the_beginning_of_a_known_one(text: str, begun: bool) -> None:
    assert known("Anna Schmidt", "Bob").begun_by(text) is begun


_TEXTS = st.text(alphabet="abAB ß\n", max_size=40)


@given(st.lists(_TEXTS, max_size=6), _TEXTS)
def test_it_finds_what_a_look_at_every_place_finds(texts: list[str], text: str) -> None:
    meanings = {plain(one) for one in texts} - {""}
    found, at = [], 0
    while at < len(text):
        ends = [end for end in range(len(text), at, -1) if _stands(meanings, text, at, end)]
        if ends:
            found.append((at, ends[0]))
        at = ends[0] if ends else at + 1
    assert [(start, end) for start, end, _ in known(*texts).find(text)] == found


def _stands(meanings: set[str], text: str, at: int, end: int) -> bool:
    part = text[at:end]
    if part != part.strip() or plain(part) not in meanings:
        return False
    around = text[at - 1 : at] + text[end : end + 1]
    return len(plain(part)) >= 8 or not any(one.isalnum() or one == "_" for one in around)
