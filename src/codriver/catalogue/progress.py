"""How a long pull tells what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often, from the event loop; must be cheap and must not raise."""

    def update(self, done_bytes: int, total_bytes: int, what: str) -> None:
        """``what`` is a short phrase ("fetching", "waiting for another pull"); ``done_bytes`` may fall on a restart."""
        ...


class Silent:
    """Progress nobody watches."""

    def update(self, done_bytes: int, total_bytes: int, what: str) -> None:
        return
