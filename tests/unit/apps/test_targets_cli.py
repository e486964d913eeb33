"""``codriver targets`` and the report's commands, as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from codriver.apps.cli.main import app
from codriver.core.errors import BadConfigValue, MissingFile, UnknownEntry
from tests.unit.optimize.test_report import made

RUN = CliRunner()


def test_targets_are_listed_before_this_machine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODRIVER_HOME", str(tmp_path))
    told = RUN.invoke(app, ["targets", "list"])
    assert told.exit_code == 0, told.output
    assert "This machine was not measured yet" in told.output
    assert "orin-nx-16gb" in told.output and "102.4" in told.output


def test_a_target_is_shown_with_sources_reasons_and_actions() -> None:
    told = RUN.invoke(app, ["targets", "show", "orin-nx-16gb"])
    assert told.exit_code == 0, told.output
    assert "memory.bandwidth_gbps" in told.output and "wiki.seeedstudio.com" in told.output
    assert "tensorrt_llm" in told.output and "not from here: its engines are built on the device" in told.output
    assert "critical" in told.output and "not at all" in told.output


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (["targets", "show", "orion"], UnknownEntry, "There is no target 'orion'"),
        (["targets", "predict", "m.gguf", "--target", "thor"], MissingFile, "before this machine is calibrated"),
        (["targets", "calibrate", "m.gguf"], MissingFile, "This machine was not measured yet"),
        (
            ["targets", "sustain", "m.gguf", "--target", "thor"],
            BadConfigValue,
            r"thor has no 'power\.resistance_k_per_w'",
        ),
        (["optimize", "report", "nowhere"], MissingFile, "is no artifact"),
        (["optimize", "compare", "nowhere", "--plot", "p.png"], BadConfigValue, r"p\.png must end in \.svg or \.html"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], error: type[Exception], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODRIVER_HOME", str(tmp_path))
    result = RUN.invoke(app, arguments)
    with pytest.raises(error, match=told):
        raise result.exception or AssertionError(result.output)


def test_a_report_and_a_plot_are_written(tmp_path: Path) -> None:
    folders = [str(made(tmp_path / name, size, kl)) for name, size, kl in (("a", 60e6, 0.3), ("b", 80e6, 0.1))]
    out, plot = tmp_path / "r.html", tmp_path / "p.svg"
    told = RUN.invoke(app, ["optimize", "report", *folders, "--out", str(out)])
    assert told.exit_code == 0 and "r.html and r.json" in told.output
    assert out.exists() and out.with_suffix(".json").exists()
    told = RUN.invoke(app, ["optimize", "compare", *folders, "--plot", str(plot)])
    assert told.exit_code == 0 and plot.read_text().startswith("<svg xmlns=")
