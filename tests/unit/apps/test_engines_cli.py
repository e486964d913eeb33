"""``codriver engines``: what a user sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codriver.apps.cli.main import app
from codriver.core.errors import BadModelFile, MissingFile
from codriver.engines.registry import ENGINES

runner = CliRunner()


def test_every_engine_is_listed_with_why_it_cannot_be_used() -> None:
    told = json.loads(runner.invoke(app, ["engines", "list", "--json"]).output)
    assert told == {name: ENGINES.why_not(name) for name in ENGINES.names()}
    assert told["llama_cpp"] is None
    table = runner.invoke(app, ["engines", "list"]).output
    assert all(name in table for name in told)
    assert all(reason in table for reason in told.values() if reason and len(reason) < 100)


@pytest.mark.parametrize(
    ("name", "content", "kind", "says"),
    [
        ("none.gguf", None, MissingFile, "none.gguf"),
        ("zip.gguf", b"PK\x03\x04" * 20, BadModelFile, "does not begin with the letters GGUF"),
    ],
    ids=["missing", "zip"],
)
def test_a_file_that_is_none_is_told(
    tmp_path: Path, name: str, content: bytes | None, kind: type[Exception], says: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    found = runner.invoke(app, ["engines", "tune", str(file)])
    assert isinstance(found.exception, kind) and says in str(found.exception)
