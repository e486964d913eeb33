"""What goes wrong around the load: the link goes down, flaps, or loses its connections; the upstream is killed.

Troubles come at random from one seed, one at a time; ``run`` goes on until it is cancelled, and leaves whatever was
wrong to :meth:`Troubles.mend`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from .shaper import LinkShaper, ShaperSettings
from .soak_processes import Upstream
from .traces import LinkTrace

_STEP_MS = 100
_RATE_BYTES = 2_500_000  # a step: 200 Mbit/s, so that only outages are felt
RESET_AFTER_S = 3.0


def clear_link(upstream_port: int) -> LinkShaper:
    """A link that is fast and always up, until it is told to be down."""
    trace = LinkTrace("clear", "made up", _STEP_MS, (_RATE_BYTES,), (_RATE_BYTES,))
    return LinkShaper(trace, ("127.0.0.1", upstream_port), ShaperSettings(5.0, reset_after_s=RESET_AFTER_S))


class Troubles:
    """``mean_s``: the mean quiet between two troubles. ``counts`` tells what there was."""

    def __init__(self, link: LinkShaper, upstream: Upstream, seed: int, mean_s: float) -> None:
        self._link = link
        self._upstream = upstream
        self._random = random.Random(seed)
        self._mean_s = mean_s
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        kinds = {
            "short outage": self._outage,
            "long outage": self._long_outage,
            "flapping link": self._flaps,
            "upstream killed": self._killed,
        }
        waiting: list[str] = []
        while True:
            await asyncio.sleep(0.3 * self._mean_s + self._random.expovariate(1 / (0.7 * self._mean_s)))
            # Each kind as often as the others, in an order of chance.
            waiting = waiting or self._random.sample(list(kinds), len(kinds))
            name = waiting.pop()
            self.counts[name] += 1
            await kinds[name]()

    async def mend(self) -> None:
        """The link is up and the upstream there."""
        self._link.force(True)
        if await self._upstream.working() < 0:
            await self._upstream.kill()
            await self._upstream.start()

    async def _down(self, seconds: float) -> None:
        self._link.force(False)
        await asyncio.sleep(seconds)
        self._link.force(True)

    async def _outage(self) -> None:
        await self._down(self._random.uniform(0.3, 2.5))

    async def _long_outage(self) -> None:
        await self._down(self._random.uniform(RESET_AFTER_S + 0.5, RESET_AFTER_S + 3.0))

    async def _flaps(self) -> None:
        for _ in range(self._random.randint(2, 5)):
            await self._down(self._random.uniform(0.1, 1.2))
            await asyncio.sleep(self._random.uniform(0.1, 1.0))

    async def _killed(self) -> None:
        await self._upstream.kill()
        await asyncio.sleep(self._random.uniform(0.0, 2.0))
        await self._upstream.start()
