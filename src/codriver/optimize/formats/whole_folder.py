"""A folder that has its name when it is whole: written beside it, and renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codriver.core.errors import BadConfigValue, DiskFull


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``target`` at the end; nothing is left of it when writing fails.

    Errors: :class:`BadConfigValue` where ``target`` is there already; :class:`DiskFull`.
    """
    if target.exists():
        raise BadConfigValue(f"{target} is there already; nothing is written over it.", param="out")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        for file in part.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        part.rename(target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"There is no room for {target}; nothing of it was kept.") from error
        raise
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
