from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from codriver.route.words import Slots, parts, runs

WORDS = st.lists(
    st.sampled_from(["more", "than2", "_what", "²", "ß", "İ", "١٢", "a1b2", "é", "中文", "22.5", "ſ", "\ud800", "ª"])
)
GAPS = st.sampled_from(["", " ", "\n", "_", ".", "\x1c", "\x85", "\u00a0", "’"])


@given(st.one_of(st.text(), st.builds(lambda gap, words: gap.join(words), GAPS, WORDS)))
def test_a_table_finds_what_an_expression_finds(text: str) -> None:
    assert runs(text) == re.findall(r"\w+", text)
    assert parts(runs(text)) == re.findall(r"[^\W\d_]+|\d+", text)


def test_a_words_slot_is_worked_out_once_while_it_is_kept_and_the_table_stays_small() -> None:
    asked: list[str] = []

    def slot_of(word: str) -> int:
        asked.append(word)
        return len(word)

    slots = Slots(slot_of)
    assert [slots["one"], slots["one"], slots["three"]] == [3, 3, 5]
    assert asked == ["one", "three"]
    for number in range(20_000):
        assert slots[str(number)] == len(str(number))
    assert len(slots) <= 1 << 13
