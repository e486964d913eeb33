"""A file is written whole or not at all, and a disk that is full is told in a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BadConfigValue, DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EBUSY,
    errno.EXDEV,
    errno.ENAMETOOLONG,
)


@contextmanager
def writing(target: Path, *parts: Path) -> Iterator[None]:
    """While ``target`` is written. ``parts`` are removed where that ends early, for whatever reason.

    Errors: :class:`DiskFull`, also for a quota or a limit to a file's size; :class:`BadConfigValue` where the place
    cannot be written; what else was raised within.
    """
    try:
        yield
    except BaseException as error:
        for part in parts:
            part.unlink(missing_ok=True)
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL:
            raise DiskFull(f"There is no room for {target}; nothing of it was kept.") from error
        if number in _REFUSED and isinstance(error, OSError):
            raise BadConfigValue(f"{target} cannot be written: {error.strerror}.") from error
        raise
