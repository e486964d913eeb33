"""A process is a table of services: started in order, stopped in reverse, whatever happens in between."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

P = TypeVar("P")


@dataclass(frozen=True)
class Service(Generic[P]):
    """One row: ``start`` takes the process's parts, adds its own to them, and takes them down on exit."""

    name: str
    start: Callable[[P], AbstractAsyncContextManager[None]]


async def run(table: Sequence[Service[P]], parts: P, serve: Callable[[P], Awaitable[None]]) -> None:
    """Start every service, then await ``serve``, which returns when the process should end; stop them all.

    Whatever a start raises goes to the caller once the services before it are down.
    """
    async with AsyncExitStack() as stack:
        for service in table:
            await stack.enter_async_context(service.start(parts))
        await serve(parts)


def write_ready_file(file: Path, url: str) -> None:
    """Tell whoever started this process where it serves. Written whole or not at all."""
    temporary = file.with_name(file.name + ".part")
    temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
    temporary.replace(file)
