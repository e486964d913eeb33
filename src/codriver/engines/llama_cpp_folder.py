"""The private folders of an engine, for its socket and its slots' states, and the sweeping of those that were left.

States hold the words of requests, which shall reach no disk: their folder lies in memory where the system has such a
place with 256 MiB free (``/dev/shm``, ``$XDG_RUNTIME_DIR``; the roomier one), else among the temporary files. The
socket stays among those: a service manager may clear the others when its user logs out, which costs states alone.

A folder holds a file ``lock`` that its process keeps locked: the kernel frees the lock with the process, however it
ended, and unlike a process number it is right across containers that share the folder. The rule kept here: only a
folder whose lock was had is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

SOCKET = "s.sock"  # llama.cpp takes a host name with this ending for a socket's path
_PREFIX = "codriver-llama-"
_SOCKET_PATH_LIMIT = 100  # bytes; the kernel's is 108
_LEAST_FREE_BYTES = 256 << 20
_LOCK, _UNLOCKED = "lock", "lock.new"


class PrivateFolder:
    """A folder only this user can enter, short enough for a socket's path. Making one sweeps what others left."""

    def __init__(self, in_memory: bool = False) -> None:
        self.path = _make(_roomy(memory_folders()) if in_memory else [])
        # Locked before it gets its name: a sweeper never sees the lock of a living process free.
        self._lock = os.open(self.path / _UNLOCKED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(self.path / _UNLOCKED, self.path / _LOCK)
        for parent in {self.path.parent, *memory_folders()}:
            sweep(parent)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def memory_folders() -> list[Path]:
    """Folders in memory where this user may write."""
    named = [Path(name) for name in ("/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "")) if name]
    return [path for path in named if path.is_dir() and os.access(path, os.W_OK | os.X_OK)]


def _roomy(folders: list[Path]) -> list[Path]:
    free = {folder: shutil.disk_usage(folder).free for folder in folders}
    return sorted(
        (folder for folder in folders if free[folder] >= _LEAST_FREE_BYTES), key=free.__getitem__, reverse=True
    )


def _make(parents: list[Path]) -> Path:
    for parent in parents:
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if len(os.fsencode(path / SOCKET)) > _SOCKET_PATH_LIMIT:
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
    return path


def sweep(parent: Path) -> None:
    """Remove this user's engine folders in ``parent`` whose process is gone."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or another process sweeps it now
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
