"""The verbs of ``codriver models``, run in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codriver.apps.cli.models import app
from codriver.core.errors import MissingFile, UnknownEntry

ENTRY = """
[[entry]]
name = "mine"
kind = "data"
file = "mine.bin"
bytes = 5
sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
licence = "MIT"
description = "five letters"
sources = ["file:{path}"]
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "source.bin").write_bytes(b"hello")
    toml = tmp_path / "mine.toml"
    toml.write_text(ENTRY.format(path=tmp_path / "source.bin"))
    return str(toml)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def rows(mine: str) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(run("list", "--json", "--catalogue", mine))}


def test_a_files_life(mine: str, tmp_path: Path) -> None:
    assert rows(mine)["mine"]["state"] == "missing"
    out = run("pull", "mine", "--catalogue", mine)
    path = tmp_path / "home" / "models" / "2cf24dba5fb0a30e" / "mine.bin"
    assert f"mine (MIT): {path}" in out
    assert path.read_bytes() == b"hello"
    assert rows(mine)["mine"]["path"] == str(path)
    assert "mine: sha256 2cf24dba" in run("verify", "--catalogue", mine)
    assert "mine: 0.0 MB freed" in run("rm", "mine", "--catalogue", mine)
    assert "was not on this machine" in run("rm", "mine", "--catalogue", mine)
    assert "No model is on this machine" in run("verify", "--catalogue", mine)


def test_the_list_shows_licence_and_state(mine: str) -> None:
    out = run("list", "--catalogue", mine)
    line = next(line for line in out.splitlines() if line.strip().startswith("gemma-3-270m"))
    assert "Gemma Terms of Use" in line
    assert "missing" in line


def test_all_names_are_checked_before_the_first_is_touched(mine: str) -> None:
    with pytest.raises(UnknownEntry, match="There is no catalogue entry called 'nope'"):
        run("pull", "mine", "nope", "--catalogue", mine)
    assert rows(mine)["mine"]["state"] == "missing"


def test_verifying_what_is_not_there(mine: str) -> None:
    with pytest.raises(MissingFile, match="Run: codriver models pull mine"):
        run("verify", "mine", "--catalogue", mine)


def test_the_configured_folder_is_the_one_used(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODRIVER_CATALOGUE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("CODRIVER_CATALOGUE_EXTRA", mine)
    assert str(tmp_path / "elsewhere") in run("pull", "mine")
    assert "freed" in run("rm", "mine")
    assert not list((tmp_path / "elsewhere").rglob("mine.bin"))
