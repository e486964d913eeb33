"""How often periodic work is done now: a number that one part of a process sets, and those with periodic work read."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Cadence:
    """``factor``: work is done every so many of its periods; 1 is as configured, 0 is not at all."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self._owed = 0.0

    def stretched_s(self, period_s: float) -> float:
        """The period as it is now; where nothing is to be done, when to look again whether that still holds."""
        return period_s * max(1.0, self.factor)

    def due(self) -> bool:
        """For work that events offer: true every ``factor``-th time that it is asked."""
        if not self.factor:
            return False
        self._owed += 1 / max(1.0, self.factor)
        if self._owed < 1 - 1e-9:
            return False
        self._owed -= 1
        return True


@runtime_checkable
class Periodic(Protocol):
    """Something whose own periodic work follows a cadence that is put here."""

    cadence: Cadence
