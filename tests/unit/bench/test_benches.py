"""``codriver bench all``: one after the other, those left out whose extra is missing."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from codriver.apps.cli import bench
from codriver.apps.cli.main import app
from codriver.bench.rows import Report
from codriver.core.errors import MissingExtra
from codriver.core.registry import Registry


def lacks(quick: bool) -> Report:
    raise MissingExtra("It is not installed.")


def runs(quick: bool) -> Report:
    return Report("runs", "a machine", "now", [])


def test_all_benches_go_on_where_one_lacks_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {name: f"{__name__}:{name}" for name in ("lacks", "runs")}
    monkeypatch.setattr(bench, "BENCHES", Registry("bench", "codriver.none", entries))
    found = CliRunner().invoke(app, ["bench", "all", "--quick"])
    assert found.exit_code == 0
    assert "lacks: left out: It is not installed." in found.output and "runs, now, a machine" in found.output
    alone = CliRunner().invoke(app, ["bench", "lacks"])
    assert isinstance(alone.exception, MissingExtra)
