"""Writing a small file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from codriver.core.errors import DiskFull, SetupError


def save(file: Path, content: str) -> None:
    """Errors: :class:`DiskFull`, :class:`SetupError` naming the file."""
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(content, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            # It has failed already and that is what is told; a stray part does no harm.
            part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"There is no room for {file}; nothing of it was kept.") from error
        raise SetupError(f"The file {file} cannot be written: {error.strerror}.") from error
