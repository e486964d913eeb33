"""What a vehicle's requests may cost in a day, all together.

Rules: the day is UTC's by the wall clock; what was spent survives a restart; a request that is under way when the
budget ends is not cut, so that a day may cost as much more as the requests that were open then. What cannot be written
down still counts until the process ends.
"""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from codriver.core.clock import SYSTEM_CLOCK, Clock

_log = logging.getLogger("codriver.route")


class NoSpending:
    """Where nobody counts."""

    def left_usd(self) -> float:
        """US dollars that the rest of the day may cost."""
        return math.inf

    def spend(self, usd: float) -> None:
        """An attempt has cost this much."""


NO_SPENDING = NoSpending()


class _Spent(msgspec.Struct):
    day: str
    usd: float


class DaySpending(NoSpending):
    """At most ``limit_usd`` a day; ``file`` keeps what was spent."""

    def __init__(self, limit_usd: float, file: Path | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._limit_usd = limit_usd
        self._file = file
        self._clock = clock
        self._spent = _Spent("", 0.0)
        if file is not None and file.is_file():
            try:
                self._spent = msgspec.json.decode(file.read_bytes(), type=_Spent)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                # Better to begin anew than not to drive: the file holds one number of one day.
                _log.warning("the record of today's costs cannot be read; it begins anew", extra={"file": str(file)})

    def left_usd(self) -> float:
        self._turn_page()
        return max(0.0, self._limit_usd - self._spent.usd)

    def spend(self, usd: float) -> None:
        self._turn_page()
        self._spent.usd += usd
        if self._file is None:
            return
        part = self._file.with_name(self._file.name + ".part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.encode(self._spent))
            part.replace(self._file)
        except OSError as error:
            _log.warning("today's costs cannot be written down", extra={"reason": str(error.strerror)})

    def _turn_page(self) -> None:
        day = datetime.fromtimestamp(self._clock.wall_s(), UTC).date().isoformat()
        if day != self._spent.day:
            self._spent = _Spent(day, 0.0)
