"""Two attempts at one answer at once: when the first is slow to begin, the next one starts beside it.

After Dean and Barroso, "The Tail at Scale" (CACM 56(2), 2013): the second request is sent once the first has been out
for longer than a high quantile of the times to a first token. Whoever brings a token first gives the answer, the other
is told to stop. Rules: the client gets one engine's words only; who fails leaves the other running; where nobody else
may start, this is an ordinary wait. A link that goes down is reason enough not to wait for the quantile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from codriver.core.errors import CodriverError

from .link import LinkView
from .live import Live
from .turn import READ_S, STOOD_S

_TICK_S = 0.001


class Race:
    """``second`` begins the attempt that may start beside the first, if there is one; ``failed`` books a contender that
    died while the other runs on. ``running`` are those who have neither won nor died.
    """

    def __init__(
        self, link: LinkView, second: Callable[[Live], Live | None], failed: Callable[[Live, CodriverError], None]
    ) -> None:
        self._link, self._second, self._failed = link, second, failed
        self._bell = asyncio.Event()
        self.running: list[Live] = []

    async def leader(self, first: Live) -> Live:
        """Who gives the answer: the first with a token, or the last one left, dead or alive, for its reader to see."""
        self._enter(first)
        unwatch = self._link.on_down(self._bell.set)
        hedged = False
        try:
            while True:
                self._bell.clear()
                for live in self.running:
                    if live.shows:
                        return self._won(live)
                await self._bury()
                alone = self.running[0] if len(self.running) == 1 else None
                if alone is not None and (hedged or alone.dead):
                    return self._won(alone)
                wait_s = min(live.left_s for live in self.running)
                if not hedged:
                    lost = first.attempt.locality == "cloud" and self._link.state == "down"
                    patience_s = 0.0 if lost else first.attempt.hedge_s - first.waited_s
                    if patience_s <= 0:
                        hedged = True
                        if (second := self._second(first)) is not None:
                            self._enter(second)
                        continue
                    wait_s = min(wait_s, patience_s)
                await self._wait(wait_s)
        finally:
            unwatch()

    async def _wait(self, wait_s: float) -> None:
        """For the bell; and when this process stood still meanwhile, for what the engines sent to be read."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + wait_s
        with contextlib.suppress(TimeoutError):
            # A rounding error must not become a wait of nothing, again and again.
            async with asyncio.timeout(max(wait_s, _TICK_S)):
                await self._bell.wait()
                return
        if loop.time() - due_s > STOOD_S:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_S):
                    while not any(live.shows for live in self.running):
                        self._bell.clear()
                        await self._bell.wait()

    def _enter(self, live: Live) -> None:
        self.running.append(live)
        with live.span.activate():
            live.turn.hold(self._bell)

    def _won(self, live: Live) -> Live:
        self.running.remove(live)
        live.catch_up()
        return live

    async def _bury(self) -> None:
        """Of two contenders, take out the one that died."""
        for live in list(self.running):
            if live.dead and len(self.running) > 1:
                self.running.remove(live)
                live.catch_up()
                try:
                    async for _ in live.timed():
                        pass
                except CodriverError as failure:
                    self._failed(live, failure)
