from __future__ import annotations

from pathlib import Path

import pytest

from codriver.core.errors import DiskFull
from codriver.optimize import predictions
from codriver.optimize.evaluate import Run, compare, evaluate
from codriver.optimize.predictions import kept_predictions


def test_what_is_kept_gives_the_same_figures(
    short_model: Path, sentences: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = kept_predictions(short_model, sentences, 1, 2, tmp_path)
    assert kept is not None and [row.shape for row in kept.rows] == [(255, 49152)]
    fit = evaluate(short_model, short_model, sentences, 1, Run(2))
    assert compare(short_model, kept.rows, kept.pieces, Run(2)) == fit
    monkeypatch.setattr(predictions, "predictions", lambda *_: pytest.fail("they were worked out again"))
    assert kept_predictions(short_model, sentences, 1, 2, tmp_path) is not None
    # Another text has predictions of its own; there is no room for them here.
    monkeypatch.setattr(predictions, "LIMIT_BYTES", 50_000_000)
    assert kept_predictions(short_model, sentences[9:], 1, 2, tmp_path) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_fills_up_keeps_no_part(
    short_model: Path, sentences: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions, "predictions", full)
    with pytest.raises(DiskFull, match=r"no room for .*predictions-[0-9a-f]{16}\.f32; nothing of it was kept"):
        kept_predictions(short_model, sentences, 1, 2, tmp_path)
    assert list(tmp_path.iterdir()) == []
