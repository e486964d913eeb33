"""Who is answered now, and for how long: rates by key, a driver's request before a background one, an end for each.

Rules: a request that must wait is told so at once, with the seconds after which it may come again; nothing queues here.
When everything is taken, a request of the driver takes the place of the background request that came last. No timer per
request: one look at all of them, four times a second while there are any, finds those whose time is over.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

from codriver.core.clock import Clock
from codriver.core.errors import BadConfigValue, DeadlineExceeded, EngineBusy, RateLimited

from .auth import ApiKeys
from .config import GatewayConfig
from .exchange import Exchange

_BURST_S = 10.0
_BACKGROUND_WAIT_S = 5.0
_LOOK_S = 0.25


@dataclass(slots=True)
class _Bucket:
    """A token bucket: ``rate`` a second flow in, up to ``most``."""

    rate: float
    most: float
    held: float
    at_s: float

    def take(self, now_s: float) -> float:
        """0.0 when a request may go, else the seconds until one may."""
        self.held = min(self.most, self.held + self.rate * (now_s - self.at_s))
        self.at_s = now_s
        if self.held >= 1.0:
            self.held -= 1.0
            return 0.0
        return (1.0 - self.held) / self.rate


class Admission:
    """``open`` are the exchanges being answered, by their tasks.

    Errors: :class:`BadConfigValue` for a rate of a key that may not call.
    """

    def __init__(self, config: GatewayConfig, keys: ApiKeys, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._rates = dict(_rate_of(entry, keys) for entry in config.key_rates)
        self._buckets: dict[str, _Bucket] = {}
        self.open: dict[asyncio.Task[Any], Exchange] = {}
        self._look: asyncio.TimerHandle | None = None

    def enter(self, exchange: Exchange) -> asyncio.Task[Any]:
        """Count the exchange in. Errors: :class:`RateLimited`."""
        self._take(exchange.caller)
        exchange.background = exchange.head.background
        if len(self.open) >= self._config.max_in_flight and not self._make_room(exchange):
            raise RateLimited(f"{len(self.open)} requests are being answered, which is the most; try again shortly.")
        task = asyncio.current_task()
        assert task is not None
        self.open[task] = exchange
        return task

    def in_background(self, exchange: Exchange) -> None:
        """The exchange turned out to be a background one. Errors: :class:`RateLimited` when too many are."""
        exchange.background = True
        most = self._config.background_most
        if sum(one.background for one in self.open.values()) > most:
            raise RateLimited(
                f"{most} background requests are being answered, which is the most; try again later.",
                retry_after_s=_BACKGROUND_WAIT_S,
            )

    def leave(self, task: asyncio.Task[Any]) -> None:
        self.open.pop(task, None)

    def limit(self, exchange: Exchange, limit_s: float) -> None:
        """Cut the exchange, unless it is over by then, a grace after ``limit_s`` from its arrival: the engine reports a
        passed deadline itself, and this is for one that hangs.
        """
        exchange.limit_s = limit_s
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_at_all)

    def _look_at_all(self) -> None:
        late_s = self._clock.monotonic_s() - self._config.grace_s
        for task, exchange in self.open.items():
            if exchange.arrived_s + exchange.limit_s < late_s and exchange.cut_by is None:
                exchange.cut_by = DeadlineExceeded(f"The answer was not complete within {exchange.limit_s:g} seconds.")
                task.cancel()
        self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_at_all) if self.open else None

    def _make_room(self, newcomer: Exchange) -> bool:
        """Cut the background request that came last, unless the newcomer is one itself."""
        if newcomer.background:
            return False
        for task, exchange in reversed(self.open.items()):
            if exchange.background and exchange.cut_by is None:
                exchange.cut_by = EngineBusy(
                    "The request was in the background and gave way to one of the driver. Send it again later.",
                    retry_after_s=_BACKGROUND_WAIT_S,
                )
                task.cancel()
                return True
        return False

    def _take(self, caller: str) -> None:
        per_minute = self._rates.get(caller, self._config.rate_per_minute)
        if not per_minute:
            return
        now_s = self._clock.monotonic_s()
        bucket = self._buckets.get(caller)
        if bucket is None:
            rate = per_minute / 60
            most = max(1.0, rate * _BURST_S)
            bucket = self._buckets[caller] = _Bucket(rate, most, most, now_s)
        wait_s = bucket.take(now_s)
        if wait_s:
            raise RateLimited(
                f"This key may send {per_minute:g} requests a minute; the next may come in {math.ceil(wait_s)} s.",
                retry_after_s=wait_s,
            )


def _rate_of(entry: str, keys: ApiKeys) -> tuple[str, float]:
    number, _, key = entry.partition("=")
    try:
        rate = float(number)
    except ValueError:
        rate = -1.0
    if not 0 < rate < math.inf or not key:
        # The entry is not quoted: it may hold a key.
        raise BadConfigValue(
            "gateway.key_rates holds an entry that is not RATE=KEY; allowed rates: requests a minute, above 0.",
            param="gateway.key_rates",
        )
    caller = keys.caller_of(key)
    if caller is None:
        raise BadConfigValue(
            "gateway.key_rates limits a key that is neither in gateway.api_keys nor in gateway.keys_file.",
            param="gateway.key_rates",
        )
    return caller, rate
