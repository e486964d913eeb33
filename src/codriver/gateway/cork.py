"""A transport that writes once per turn of the event loop.

uvicorn writes a response's head and body apart, and every write is a system call of its own. Here writes are held until
the turn ends or :meth:`Cork.flush` is called. Rule: never more than ``LIMIT_BYTES`` are held, so that back-pressure
still reaches the application.
"""

from __future__ import annotations

import asyncio
from typing import Any

LIMIT_BYTES = 64 << 10


class Cork:
    """Stands where the transport of a connection stands; everything but writing goes straight through."""

    __slots__ = ("_held", "_loop", "_planned", "_size", "_transport", "is_closing", "pause_reading", "resume_reading")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._size = 0
        self._planned = False
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        if self._size > LIMIT_BYTES:
            self.flush()
        elif not self._planned:
            self._planned = True
            self._loop.call_soon(self._turn_ended)

    def flush(self) -> None:
        """Write what is held, now."""
        if self._held:
            held, self._held, self._size = self._held, [], 0
            self._transport.write(b"".join(held))

    def _turn_ended(self) -> None:
        self._planned = False
        self.flush()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def abort(self) -> None:
        self._held, self._size = [], 0
        self._transport.abort()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
