"""A file that grows block by block and knows the sha256 of what it holds.

Opened again after a crash it hashes what is there and goes on. A lock makes ``close`` wait for a write that is still
running in a worker thread, so that a cancelled pull never writes to a descriptor that is no longer its own.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from .store import BLOCK_BYTES


class PartFile:
    """``count`` is the number of bytes held. Raises ``OSError`` as the disk does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._closed = False

    def recover(self) -> int:
        """Hash what an earlier pull left and place the end there; returns ``count``."""
        self._rewind()
        with self._lock:
            while block := os.read(self._descriptor, BLOCK_BYTES):
                self._digest.update(block)
                self.count += len(block)
        return self.count

    def write(self, block: bytes) -> None:
        """Append. A block that was written in part only (disk full) is hashed as far as it went."""
        view = memoryview(block)
        with self._lock:
            while view and not self._closed:
                written = os.write(self._descriptor, view)
                self._digest.update(view[:written])
                self.count += written
                view = view[written:]

    def restart(self) -> None:
        """Forget everything."""
        self._rewind()
        os.ftruncate(self._descriptor, 0)

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def flush(self) -> None:
        """Wait until the disk has it."""
        with self._lock:
            os.fsync(self._descriptor)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    def _rewind(self) -> None:
        with self._lock:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._digest = hashlib.sha256()
            self.count = 0
