"""Environments of toolkits, made by the real venv and pip from a wheel that is written here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from codriver.core.errors import BadConfigValue, ChildDied, MissingFile, SourceUnavailable
from codriver.optimize.environments import STAMP, Toolkit, call, python

TOOL = Toolkit("tool", ("codriver-test-tool==1.0",))


def write_wheel(folder: Path, name: str, source: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", source)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(autouse=True)
def own_index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of wheels as pip's only source, and a home that the tests share: an environment takes seconds."""
    wheels = tmp_path_factory.getbasetemp() / "wheels"
    if not wheels.exists():
        wheels.mkdir()
        write_wheel(wheels, "codriver_test_tool", "ANSWER = 42\n")
    monkeypatch.setenv("CODRIVER_HOME", str(wheels.with_name("home")))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def test_a_script_runs_in_an_environment_that_is_made_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys, codriver_test_tool as tool\nprint(tool.ANSWER, sys.argv[1], sys.prefix)\n")
    shutil.rmtree(TOOL.folder(), ignore_errors=True)
    first: list[str] = []
    call(TOOL, script, ["x"], first.append)
    again: list[str] = []
    call(TOOL, script, ["y"], again.append)
    assert "codriver-test-tool==1.0" in first[0]
    assert first[-1] == f"42 x {TOOL.folder()}"
    assert again == [f"42 y {TOOL.folder()}"], "the second call makes nothing"


def test_the_environment_sees_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "stray.py").write_text("")
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util as u\nprint([n for n in ('codriver', 'msgspec', 'stray') if u.find_spec(n)])\n"
    )
    told: list[str] = []
    call(TOOL, script, [], told.append)
    assert told[-1] == "[]"


def test_another_pin_is_another_environment() -> None:
    assert Toolkit("tool", ("a==1", "b==2")).folder() == Toolkit("tool", ("b==2", "a==1")).folder()
    assert Toolkit("tool", ("a==1",)).folder() != Toolkit("tool", ("a==2",)).folder()
    with pytest.raises(BadConfigValue, match="does not pin 'a>=1'"):
        Toolkit("tool", ("a>=1",))


def test_what_an_interrupt_left_is_made_again() -> None:
    interpreter = python(TOOL, quiet)
    (TOOL.folder() / STAMP).unlink()
    stray = TOOL.folder() / "stray"
    stray.write_text("left by the interrupted one")
    assert python(TOOL, quiet) == interpreter
    assert (TOOL.folder() / STAMP).exists() and not stray.exists()


def test_an_interrupt_leaves_nothing() -> None:
    def interrupt(line: str) -> None:
        if line.startswith(("Processing", "Looking", "Installing collected")):
            raise KeyboardInterrupt

    other = Toolkit("interrupted", TOOL.requirements)
    with pytest.raises(KeyboardInterrupt):
        python(other, interrupt)
    assert not other.folder().exists()


def test_an_interpreter_whose_python_is_gone_is_made_again() -> None:
    interpreter = python(TOOL, quiet)
    interpreter.unlink()
    interpreter.symlink_to("/nowhere/python")
    assert python(TOOL, quiet).exists()


def test_a_package_that_is_nowhere_is_named() -> None:
    with pytest.raises(
        SourceUnavailable, match=r"toolkit 'none' could not be installed.*No matching.*no-such-thing==3"
    ):
        python(Toolkit("none", ("no-such-thing==3",)), quiet)
    assert not Toolkit("none", ("no-such-thing==3",)).folder().exists()


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(SourceUnavailable, match=r"toolkit 'far'.*cannot reach its index.*offline"):
        python(Toolkit("far", ("no-such-thing==3",)), quiet)


def test_a_failing_script_gives_its_last_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('begins')\nraise ValueError('the operator aten::foo is not known')\n")
    with pytest.raises(ChildDied, match=r"script\.py, run with the toolkit 'tool', failed: ValueError: the operator"):
        call(TOOL, script, [], quiet)
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(ChildDied, match="signal 9"):
        call(TOOL, script, [], quiet)
    with pytest.raises(MissingFile, match=r"none\.py"):
        call(TOOL, tmp_path / "none.py", [], quiet)


def test_two_processes_make_it_once() -> None:
    code = (
        "from codriver.optimize.environments import Toolkit, python\n"
        "python(Toolkit('both', ('codriver-test-tool==1.0',)), print)\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("(once)" in text for text in said) == 1


def test_ending_the_caller_ends_the_script(tmp_path: Path) -> None:
    """Leaving ``call`` early leaves no process behind."""
    script = tmp_path / "script.py"
    script.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    python(TOOL, quiet)
    pids: list[int] = []

    def stop(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(TOOL, script, [], stop)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], signal.SIGCONT)
