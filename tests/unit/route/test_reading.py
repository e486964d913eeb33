"""What is read of a request."""

from __future__ import annotations

import pytest

from codriver.core.messages import ChatRequest, Message
from codriver.route.reading import BUCKETS, FORMS, asked, read, read_text


def test_every_form_has_a_value_and_words_are_of_unit_length() -> None:
    reading = read_text("How many 12 V batteries fit?\nA. 1\nB. 22 or more\nC. none\nAnswer:")
    assert len(reading.forms) == len(FORMS)
    assert dict(zip(FORMS, reading.forms, strict=True))["options"] == pytest.approx(3 / 5)
    assert sum(value**2 for value in reading.words.values()) == pytest.approx(1.0)
    assert all(0 <= slot < BUCKETS for slot in reading.words)


def test_the_embedder_reads_the_question_and_not_its_options() -> None:
    assert read_text("Which is a fruit?\nA. Apple\nB. Steel").start == "Which is a fruit?"


@pytest.mark.parametrize("text", ["word " * 500, "数" * 500, "x" * 5000, "+-*/" * 200, "a¹²³ ½ ٣"])
def test_the_embedder_reads_a_short_start_of_anything(text: str) -> None:
    assert 0 < len(read_text(text).start) <= 300


@pytest.mark.parametrize("text", ["", "   ", "\ud800", "\x00", "½ ² ٣ ①"])
def test_odd_texts_are_read(text: str) -> None:
    assert len(read_text(text).forms) == len(FORMS)


def test_the_last_user_message_is_what_was_asked() -> None:
    said = [
        Message(role="user", content="one"),
        Message(role="assistant", content="two"),
        Message(role="user", content="3"),
    ]
    assert asked(ChatRequest(messages=said)) == "3"
    assert read(ChatRequest(messages=said)) == read_text("3")
    assert asked(ChatRequest(prompt="on and")) == "on and"
