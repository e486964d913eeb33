"""The note beside a pulled file that says which bytes were hashed, so that a later start need not hash them again.

``FILE.verified`` holds the file's inode, size and time of change with the sha256 that was found. It counts only while
all three are still the file's: whoever writes to the file makes the note worthless. It also remembers a wrong hash,
so a damaged file is known as such without reading it twice. Limit: bytes that the disk itself changed under an
untouched inode are seen by ``codriver models verify`` only.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec


class _Note(msgspec.Struct):
    sha256: str
    inode: int
    size_bytes: int
    mtime_ns: int


def note_of(file: Path) -> Path:
    """Where the note of ``file`` lies."""
    return file.with_name(file.name + ".verified")


def known_sha256(file: Path) -> str | None:
    """The sha256 that was found when the file, as it is now, was hashed; ``None`` when that is not known."""
    try:
        note = msgspec.json.decode(note_of(file).read_bytes(), type=_Note)
        now = file.stat()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    same = (note.inode, note.size_bytes, note.mtime_ns) == (now.st_ino, now.st_size, now.st_mtime_ns)
    return note.sha256 if same else None


def remember(file: Path, sha256: str, hashed: os.stat_result) -> None:
    """Write the note. ``hashed`` is the file's state from before it was read, so that a write meanwhile shows.

    A store that cannot be written to is hashed at every start instead.
    """
    note = _Note(sha256, hashed.st_ino, hashed.st_size, hashed.st_mtime_ns)
    draft = note_of(file).with_name(f".{file.name}.{os.getpid()}.verified")
    with contextlib.suppress(OSError):
        draft.write_bytes(msgspec.json.encode(note))
        os.replace(draft, note_of(file))
