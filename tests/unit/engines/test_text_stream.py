from __future__ import annotations

import pytest

from codriver.engines.text_stream import TextStream

PIECES = ["Hel", "lo", " wor", "ld", "!", " STO", "P", " more"]


def decode(ids: list[int]) -> str:
    return "".join(PIECES[number] for number in ids)


def as_bytes(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def test_text_comes_as_it_is_made() -> None:
    stream = TextStream(decode, [])
    assert [stream.push([number]) for number in range(4)] == PIECES[:4]
    assert stream.flush() == ""


def test_a_stop_text_never_shows_nor_its_beginning() -> None:
    stream = TextStream(decode, ["STOP"])
    shown = [stream.push([number]) for number in range(7)]
    assert "".join(shown) == "Hello world! "
    assert stream.stopped and stream.flush() == ""


def test_the_beginning_of_a_stop_text_is_given_back() -> None:
    stream = TextStream(decode, ["STOPPED"])
    shown = "".join(stream.push([number]) for number in range(6))
    assert shown == "Hello world! "
    assert stream.flush() == "STO"


@pytest.mark.parametrize("text", ["Grüße", "日本", "a😀b"])
def test_half_characters_wait(text: str) -> None:
    stream = TextStream(as_bytes, [])
    shown = [stream.push([byte]) for byte in text.encode()]
    assert "".join(shown) + stream.flush() == text
    assert not any("\ufffd" in piece for piece in shown)
