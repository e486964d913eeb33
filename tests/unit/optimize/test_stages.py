"""A full disk and interrupts at every stage: nothing that looks complete, and the next run goes on to the same file."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from codriver.core.artifact import load_artifact
from codriver.core.errors import MissingFile

ROOT = Path(__file__).resolve().parents[3]
STAGES = {
    "writes the reference": r"reference-F32-[0-9a-f]{16}\.gguf",
    "sees what the model suffers": r"sensitivity\.part",
    "rounds to": r"trial-0\.gguf",
    "scores it": r"predictions-[0-9a-f]{16}\.f32",
    "measures its speed": r"sensitivity\.json",
}


@pytest.fixture(scope="module")
def text(sentences: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(sentences)
    return file


def go(model: Path, text: Path, out: Path, stage: str = "", sent: int = 0, room: int = 0) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.unit.optimize.stages", str(model), str(text), str(out), stage]
    ended = subprocess.run(
        [*command, str(sent), str(room)], capture_output=True, text=True, timeout=600, check=False, cwd=ROOT
    )
    return ended.returncode, ended.stdout.strip() or ended.stderr.strip().splitlines()[-1]


def looks_complete(out: Path) -> list[str]:
    """What of the result is there, and what in the work folder is a model by its name and none by its content."""
    with pytest.raises(MissingFile, match=r"is no artifact: it has no artifact\.json"):
        load_artifact(out)
    return [path.name for path in out.iterdir()] if out.exists() else []


@pytest.mark.slow
def test_interrupts_leave_nothing_that_looks_complete_and_the_rest_is_done_later(
    narrow_model: Path, text: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    for stage, sent in zip(STAGES, signals, strict=True):
        code, _ = go(narrow_model, text, out, stage, sent)
        assert code == -sent or (sent == signal.SIGINT and code in (1, 130))
        assert looks_complete(out) == []
    assert go(narrow_model, text, out)[0] == 0
    assert go(narrow_model, text, whole)[0] == 0
    files = [load_artifact(folder).files[0] for folder in (out, whole)]
    assert files[0].sha256 == files[1].sha256


@pytest.mark.slow
def test_a_full_disk_is_told_at_every_stage(narrow_model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for stage, file in STAGES.items():
        code, said = go(narrow_model, text, out, stage, room=100)
        assert code == 2 and said.startswith("disk_full: There is no room for "), said
        pattern = re.compile(rf"no room for \S*{file}; nothing of it was kept\.$")
        assert pattern.search(said), said
        assert looks_complete(out) == []
        assert not list((tmp_path / "out.work").rglob("*.part"))
    assert go(narrow_model, text, out)[0] == 0
    assert load_artifact(out).files[0].size_bytes <= 8e6
