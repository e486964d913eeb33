"""Files on disk: ``ROOT/models/<first 16 digits of sha256>/<file>``.

The sha256 in the path means that a changed pin never finds the old bytes, and that two names for one file share it.
Rule: the final path appears only by ``os.replace`` of a verified, flushed file, so a file of the right size there is a
whole one; and :meth:`Store.checked` hashes it once more whenever it was touched since. Work in progress lives in
``.pull`` beside it. One writer at a time: an advisory lock per file, held in ``ROOT/locks`` (never deleted, as deleting
a lock file that another process waits on would let two in).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import ChecksumMismatch, DiskFull, MissingFile, SetupError

from .entry import CatalogueEntry
from .progress import Progress, Silent
from .proof import known_sha256, note_of, remember

State = Literal["missing", "partial", "present", "corrupt"]

BLOCK_BYTES = 1 << 20
LOCK_POLL_S = 0.2
_NOT_WRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
    | {errno.ENOENT, errno.EINVAL}  # what a file system that takes no folders (such as /proc) says
)


def default_root() -> Path:
    """``$CODRIVER_HOME``, or ``codriver`` in the user's cache folder."""
    if home := os.environ.get("CODRIVER_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "codriver"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "codriver"


class Store:
    """Where pulled files lie. ``root`` need not exist yet."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else default_root()

    def target(self, entry: CatalogueEntry) -> Path:
        """Where the file is, or will be."""
        return self.root / "models" / entry.sha256[:16] / entry.file

    def workspace(self, entry: CatalogueEntry) -> Path:
        """Where a pull keeps what it has so far. Only the holder of the lock may touch it."""
        return self.target(entry).parent / ".pull"

    def state(self, entry: CatalogueEntry) -> State:
        """By name and size, without hashing. A file of the wrong size counts as ``partial``: a pull mends it.

        ``corrupt`` is told only of a file that was hashed before, as it is now, and was wrong; a pull mends it, too.
        """
        target = self.target(entry)
        if target.is_file():
            if target.stat().st_size != entry.bytes:
                return "partial"
            return "present" if known_sha256(target) in (None, entry.sha256) else "corrupt"
        workspace = self.workspace(entry)
        return "partial" if workspace.is_dir() and any(workspace.iterdir()) else "missing"

    def path(self, entry: CatalogueEntry) -> Path:
        """The local path of a pulled file. ``MissingFile``, ``ChecksumMismatch``: with the command that mends it."""
        state = self.state(entry)
        if state == "present":
            return self.target(entry)
        if state == "corrupt":
            raise _corrupt(entry, self.target(entry), known_sha256(self.target(entry)) or "other bytes")
        what = "is not on this machine" if state == "missing" else "is only partly on this machine"
        raise MissingFile(f"{entry.name} {what}. Run: codriver models pull {entry.name}", param=entry.name)

    def checked(self, entry: CatalogueEntry) -> Path:
        """The path, as :meth:`path`, of a file whose bytes are the pinned ones: hashed now, if not as it is before.

        The first time reads the whole file (about a second per gigabyte) and leaves a note; later ones read the note.
        """
        path = self.path(entry)
        if known_sha256(path) is None:
            before = path.stat()
            got = hash_file(path)
            remember(path, got, before)
            if got != entry.sha256:
                raise _corrupt(entry, path, got)
        return path

    @asynccontextmanager
    async def writing(
        self, entry: CatalogueEntry, on_wait: Callable[[], None], clock: Clock = SYSTEM_CLOCK
    ) -> AsyncIterator[None]:
        """Hold the lock on ``entry``'s file, waiting for another process that holds it."""
        with disk_errors(self.root, lambda: entry.bytes):
            descriptor = self._open_lock(entry)
        try:
            while not _try_lock(descriptor):
                on_wait()
                await clock.sleep(LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def writing_now(self, entry: CatalogueEntry) -> Iterator[None]:
        """Hold the lock, or raise ``SetupError`` at once when a pull holds it."""
        with disk_errors(self.root, lambda: 0):
            descriptor = self._open_lock(entry)
        try:
            if not _try_lock(descriptor):
                raise SetupError(f"{entry.name} is being pulled by another process. Wait for it or stop it first.")
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self, entry: CatalogueEntry) -> int:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / f"{entry.sha256[:16]}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def disk_errors(folder: Path, needed_bytes: Callable[[], int]) -> Iterator[None]:
    """Turn "no space left" and "not allowed" while writing into the errors an operator can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder, needed_bytes()) from error
        if error.errno in _NOT_WRITABLE:
            raise SetupError(
                f"Cannot write in {folder}: {error.strerror}. Set CODRIVER_HOME to a folder that you may write in."
            ) from error
        raise


def disk_full(folder: Path, needed_bytes: int) -> DiskFull:
    free = free_bytes(folder)
    return DiskFull(
        f"Not enough room in {folder}: {needed_bytes} bytes needed, {free} bytes free. "
        "Free some space or set CODRIVER_HOME to another disk; the next pull goes on from what was fetched."
    )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds ``folder`` (or its nearest parent that exists)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def tree_bytes(folder: Path) -> int:
    """Bytes in the files under ``folder``; 0 when it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda done: None) -> str:
    """The sha256 (hex) of a file, read in blocks."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            on_bytes(done)
    return digest.hexdigest()


async def verify(entry: CatalogueEntry, store: Store, progress: Progress | None = None) -> Path:
    """Hash the file again. ``MissingFile`` when absent; ``ChecksumMismatch`` (and the file is removed) when wrong."""
    path = store.target(entry) if store.state(entry) == "corrupt" else store.path(entry)
    watch = progress or Silent()
    loop = asyncio.get_running_loop()

    def tell(done: int) -> None:
        loop.call_soon_threadsafe(watch.update, done, entry.bytes, "verifying")

    before = path.stat()
    got = await asyncio.to_thread(hash_file, path, tell)
    if got != entry.sha256:
        path.unlink(missing_ok=True)
        note_of(path).unlink(missing_ok=True)
        raise mismatch(path.name, entry.sha256, got)
    remember(path, got, before)
    return path


def _corrupt(entry: CatalogueEntry, path: Path, got: str) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{path} was changed since it was pulled: sha256 {entry.sha256} expected, got {got}. "
        f"It is not used. Run: codriver models pull {entry.name}",
        param=entry.name,
    )


def mismatch(what: str, expected: str, got: str, hint: str = "Pull it again.") -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{what} is not the pinned file and was removed: sha256 {expected} expected, got {got}. {hint}"
    )


def remove(entry: CatalogueEntry, store: Store) -> int:
    """Delete the file and what an unfinished pull left; returns the bytes freed (0 when nothing was there)."""
    folder = store.target(entry).parent
    if not folder.is_dir():
        return 0
    with store.writing_now(entry):
        workspace, target = store.workspace(entry), store.target(entry)
        freed = tree_bytes(workspace) + (target.stat().st_size if target.is_file() else 0)
        shutil.rmtree(workspace, ignore_errors=True)
        target.unlink(missing_ok=True)
        note_of(target).unlink(missing_ok=True)
        if not any(folder.iterdir()):  # an entry with the same bytes under another file name may share the folder
            folder.rmdir()
    return freed
