"""Python environments of their own for toolkits that cannot share one, made on first use and kept.

An environment lies at ``<codriver home>/environments/<name>-<digest>``; the digest is over the requirements and the
Python that it is made with, so that another pin never finds the old one. The rules kept: an environment counts only
once its stamp is there, which is written last, so that what an interrupt leaves is made again; it is made in place, as
the scripts in one hold its path; one process makes it at a time, and the lock is held for as long as its pip lives.
Packages come by the user's own pip configuration: no index is named here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from codriver.catalogue import default_root
from codriver.catalogue.store import disk_errors, free_bytes
from codriver.core.errors import (
    BadConfigValue,
    ChildDied,
    CodriverError,
    DiskFull,
    MissingFile,
    SetupError,
    SourceUnavailable,
)

STAMP = "codriver.json"
_TOLD_OF_PIP = ("Collecting ", "Downloading ", "Building wheel", "Installing collected")
# What pip says of an index that it cannot reach, be it for want of a name server, a route or an answer.
_OFFLINE = (
    "connection broken by",
    "Failed to establish a new connection",
    "Could not fetch URL",
    "Max retries exceeded",
)
# What would count, or put, packages elsewhere than in the environment.
_NOT_FOR_CHILDREN = frozenset({"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"})


@dataclass(frozen=True)
class Toolkit:
    """``requirements``: pinned, ``package==version``; what these need in turn is pip's to choose."""

    name: str
    requirements: tuple[str, ...]

    def __post_init__(self) -> None:
        for line in self.requirements:
            if "==" not in line:
                raise BadConfigValue(f"The toolkit '{self.name}' does not pin '{line}': package==version.", param=line)

    def folder(self) -> Path:
        """Where its environment is, or will be."""
        made_of = [*sorted(self.requirements), str(sys.implementation.cache_tag), sys.base_prefix]
        digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
        return default_root() / "environments" / f"{self.name}-{digest}"


def python(toolkit: Toolkit, told: Callable[[str], None]) -> Path:
    """The interpreter of the toolkit's environment; made first where it is missing, which may fetch gigabytes.

    ``told`` gets a line per step. Errors, naming the toolkit: :class:`SourceUnavailable` where pip cannot reach its
    index or does not find a package there, :class:`DiskFull`, :class:`SetupError` for what else pip or the disk says.
    """
    folder = toolkit.folder()
    interpreter = folder / "bin" / "python"
    if _whole(folder):
        return interpreter
    with disk_errors(folder.parent, lambda: 0), _locked(folder.with_name(f"{folder.name}.lock"), toolkit, told) as lock:
        if not _whole(folder):  # another process may have made it while this one waited
            _make(toolkit, folder, lock, told)
    return interpreter


def call(toolkit: Toolkit, module_file: Path, arguments: Sequence[str], told: Callable[[str], None]) -> None:
    """Run one of our script files in the toolkit's environment. It must import nothing of codriver's.

    ``told`` gets each line that it prints. Python is isolated (``-I``): neither ``PYTHONPATH``, nor the current folder,
    nor the script's own is on its path. Errors: those of :func:`python`; :class:`MissingFile` for no such script;
    :class:`ChildDied` with the last line of what it wrote to stderr, or the signal that ended it.
    """
    interpreter = python(toolkit, told)
    if not module_file.is_file():
        raise MissingFile(f"The script {module_file} of the toolkit '{toolkit.name}' does not exist.")
    code, last = _run([str(interpreter), "-I", str(module_file), *arguments], told)
    if code:
        raise ChildDied(f"{module_file.name}, run with the toolkit '{toolkit.name}', failed: {last}")


def _whole(folder: Path) -> bool:
    # The interpreter is a link to the Python that it was made with, which may have been removed since.
    return (folder / STAMP).is_file() and (folder / "bin" / "python").exists()


def _make(toolkit: Toolkit, folder: Path, lock: int, told: Callable[[str], None]) -> None:
    told(f"makes the environment of {toolkit.name} (once): {', '.join(toolkit.requirements)}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # Our own pip installs into it: a Python without ensurepip, such as Debian's, makes environments as well.
        venv.create(folder, with_pip=False, symlinks=True)
        interpreter = str(folder / "bin" / "python")
        pip = [sys.executable, "-P", "-m", "pip", "--python", interpreter, "--no-input", "--disable-pip-version-check"]
        say = _only(_TOLD_OF_PIP, told)
        heard: list[str] = []
        code, last = _run([*pip, "install", "--retries", "2", *toolkit.requirements], say, heard, (lock,))
        if code:
            raise _pip_failed(toolkit, folder, last, heard)
        stamp = {"toolkit": toolkit.name, "requirements": toolkit.requirements, "python": sys.version}
        part = folder / f"{STAMP}.part"
        part.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        part.replace(folder / STAMP)
    except BaseException:  # an interrupt, too, should not leave gigabytes behind that nothing uses
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _pip_failed(toolkit: Toolkit, folder: Path, last: str, heard: list[str]) -> CodriverError:
    # After its error pip may still print a warning or advice.
    last = next((line for line in reversed(heard) if line.startswith("ERROR: ")), last).removeprefix("ERROR: ")[:400]
    everything = "\n".join(heard)
    what = f"The toolkit '{toolkit.name}' could not be installed"
    if any(sign in everything for sign in _OFFLINE):
        return SourceUnavailable(f"{what}: pip cannot reach its index (is this machine offline?). pip says: {last}")
    if "No space left on device" in everything:
        free = free_bytes(folder.parent)
        return DiskFull(
            f"{what}: {free} bytes are free in {folder.parent}, or too few where pip unpacks. Free some space, or set "
            "CODRIVER_HOME (and TMPDIR) to another disk."
        )
    if "No matching distribution" in everything:
        return SourceUnavailable(f"{what}. pip says: {last}")
    return SetupError(f"{what}. pip says: {last}")


def _only(beginnings: tuple[str, ...], told: Callable[[str], None]) -> Callable[[str], None]:
    def say(line: str) -> None:
        if line.strip().startswith(beginnings):
            told(line.strip()[:160])

    return say


def _run(
    command: list[str], told: Callable[[str], None], heard: list[str] | None = None, keep: tuple[int, ...] = ()
) -> tuple[int, str]:
    """Its exit code, and its last words; ``told`` gets what it prints, ``heard`` what it writes to stderr. Leaving
    early ends the process and all that it started. ``keep``: open files that it inherits.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            pass_fds=keep,
            env={name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN},
            start_new_session=True,
        )
        last = ""
        try:
            assert process.stdout is not None
            for line in process.stdout:
                told(line.rstrip())
                last = line.strip() or last
            code = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        errors.seek(0)
        said = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    if heard is not None:
        heard += said
    if code < 0:
        return code, f"signal {-code} ({signal.strsignal(-code)}) ended it."
    return code, (said[-1] if said else last or f"exit code {code}")[:400]


@contextmanager
def _locked(file: Path, toolkit: Toolkit, told: Callable[[str], None]) -> Iterator[int]:
    """The lock's file is never removed: that would let in two, of whom one had waited on the removed file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told(f"waits for another process that makes the environment of {toolkit.name}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
