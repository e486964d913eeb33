"""What a killed engine leaves behind is swept, and what lives is not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from codriver.engines import llama_cpp_folder
from codriver.engines.llama_cpp_folder import SOCKET, PrivateFolder, memory_folders, sweep

HOLDER = f"""
import sys, tempfile
from codriver.engines.llama_cpp_folder import PrivateFolder
tempfile.tempdir = sys.argv[1]
folder = PrivateFolder()
(folder.path / {SOCKET!r}).touch()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_only_what_a_killed_process_left_is_swept(parent: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        theirs = Path(process.stdout.readline().strip())
        ours = PrivateFolder()
        assert theirs.is_dir() and ours.path.is_dir()  # both live
        assert ours.path.stat().st_mode & 0o077 == 0
        process.kill()
    assert (theirs / SOCKET).exists()
    later = PrivateFolder()
    assert not theirs.exists() and ours.path.is_dir()
    for folder in (ours, later):
        folder.remove()
        folder.remove()
    assert not list(parent.iterdir())


def test_foreign_folders_stay(parent: Path) -> None:
    (parent / "codriver-llama-young").mkdir()  # its process has not locked it yet
    (parent / "codriver-up-x").mkdir()
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (parent / "codriver-llama-link").symlink_to(elsewhere)
    sweep(parent)
    assert len(list(parent.iterdir())) == 4


def test_a_long_temporary_folder_is_not_used(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = parent / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = PrivateFolder()
    assert folder.path.parent == Path("/tmp") and not list(deep.iterdir())
    folder.remove()


def test_states_lie_in_memory_where_there_is_such_a_place(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = parent / "memory"
    memory.mkdir()
    left = memory / "codriver-llama-left"
    left.mkdir()
    (left / "lock").touch()
    monkeypatch.setattr(llama_cpp_folder, "memory_folders", lambda: [memory])
    states = PrivateFolder(in_memory=True)
    assert states.path.parent == memory and states.path.stat().st_mode & 0o077 == 0
    assert not left.exists()
    left.mkdir()
    (left / "lock").touch()
    PrivateFolder().remove()  # whoever starts sweeps there, too
    assert not left.exists() and states.path.is_dir()
    states.remove()
    assert not list(memory.iterdir())
    monkeypatch.setattr(llama_cpp_folder, "_LEAST_FREE_BYTES", 1 << 60)  # no room there
    states = PrivateFolder(in_memory=True)
    assert states.path.parent == parent
    states.remove()


def test_only_folders_in_memory_that_can_be_written_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert set(memory_folders()) <= {Path("/dev/shm")}
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert tmp_path in memory_folders()
