"""One engine's answer in the making: waited for under a time limit, or held in the background while another engine is
tried.

Every wait ends in time, even when the engine sends nothing, and even when it is slow to stop: it is told again, and
then left. Limits count on the running loop's time, so the clock of a request's deadline must be the machine's own or
the loop's (``core/virtual.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from codriver.core.errors import CodriverError, EngineDied
from codriver.core.messages import ChatChunk
from codriver.observe.logs import where

log = logging.getLogger("codriver.route")
# How long an engine may take to stop once it is told; then it is told again.
_STOP_S = 0.25
# The timer looks at the clock at least this often: waits that end later than that need not move it.
_LOOK_S = 1.0
# A timer that comes so late tells of a process that stood still. What the engine sent meanwhile lies unread: once in a
# wait there is this much time to read it before the engine is blamed.
STOOD_S, READ_S = 0.05, 0.25


class Turn:
    """``next`` gives chunks until ``None``. After ``hold`` the engine goes on writing while nobody waits; ``next``
    still works. One timer serves all waits and is hardly ever moved: most waits are over long before their limit.
    ``spared``: a wait went past its limit because this process stood still, and not the engine; whoever counts the
    engine's silence puts it back.
    """

    __slots__ = (
        "_at_s", "_doubt", "_due_s", "_error", "_fired", "_fresh", "_kept", "_loop", "_over", "_patience_s", "_pump",
        "_soon_s", "_spared_s", "_stream", "_timer", "_waiter", "spared",
    )  # fmt: skip

    def __init__(self, stream: AsyncIterator[ChatChunk]) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        # The timer's time is kept here: what uvloop gives for less than half a millisecond does not know its own.
        self._timer: asyncio.Handle | None = None
        self._at_s = float("inf")
        self._due_s = self._soon_s = self._patience_s = float("inf")
        self._spared_s = float("nan")
        self.spared = False
        self._doubt: Callable[[], bool] | None = None
        self._waiter: asyncio.Task[Any] | None = None
        self._fired = 0
        self._pump: asyncio.Task[None] | None = None
        self._kept: deque[ChatChunk] = deque()
        self._fresh: asyncio.Event | None = None
        self._over = False
        self._error: CodriverError | None = None

    @property
    def over(self) -> bool:
        """True when the engine has nothing more to give."""
        return self._over

    @property
    def kept(self) -> Iterable[ChatChunk]:
        """What a held answer has brought that nobody has taken yet."""
        return self._kept

    @property
    def ready(self) -> bool:
        """True when a held answer's next chunk (or its end) is here already."""
        return self._pump is not None and bool(self._kept or self._over)

    async def next(self, wait_s: float) -> ChatChunk | None:
        """The next chunk, or ``None`` at the end. Raises ``TimeoutError`` after ``wait_s``, and whatever the engine
        raised.
        """
        if self._kept:
            return self._kept.popleft()
        self._arm(wait_s)
        task = self._waiter = asyncio.current_task(self._loop)
        assert task is not None
        cancelling = task.cancelling()
        try:
            if self._pump is not None:
                return await self._next_held()
            return await self._stream.__anext__()
        except StopAsyncIteration:
            self._over = True
            return None
        except asyncio.CancelledError:
            # As asyncio.timeout does: a cancellation from outside, too, must still come through.
            if self._fired and self._forgive(task) <= cancelling:
                raise TimeoutError from None
            raise
        finally:
            self._waiter = None
            if self._fired:
                self._forgive(task)

    def hurry(self, within_s: float, doubt: Callable[[], bool]) -> None:
        """Give up waits after ``within_s``, as long as ``doubt`` says that there is reason to expect nothing."""
        self._patience_s, self._doubt = within_s, doubt
        self._soon_s = self._loop.time() + within_s
        if self._waiter is not None and (self._timer is None or self._at_s > self._soon_s):
            self._set_timer(self._soon_s)

    def hold(self, bell: asyncio.Event | None = None) -> None:
        """Let the engine write in the background; ``bell`` is set with each chunk and at the end."""
        self._fresh = bell or asyncio.Event()
        self._pump = asyncio.ensure_future(self._pump_all())

    async def aclose(self) -> None:
        """Stop the engine's work. What it says about being stopped is of no interest any more."""
        self._disarm()
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.wait({self._pump}, timeout=_STOP_S)
            self._pump.cancel()
        if self._over or (self._pump is not None and not self._pump.done()):
            return
        self._over = True
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            with contextlib.suppress(CodriverError, TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await close()

    # ------------------------------------------------------------ time

    def _arm(self, wait_s: float) -> None:
        now_s = self._loop.time()
        due_s = self._due_s = now_s + wait_s
        if self._doubt is not None:
            self._soon_s = now_s + self._patience_s
            due_s = self._end_s()
        if self._timer is None or self._at_s > due_s:
            self._set_timer(min(due_s, now_s + _LOOK_S))

    def _end_s(self) -> float:
        """When the wait under way ends: sooner, while there is doubt."""
        if self._doubt is None:
            return self._due_s
        if self._doubt():
            return min(self._due_s, self._soon_s)
        self._doubt = None
        return self._due_s

    def _set_timer(self, due_s: float) -> None:
        self._disarm()
        self._at_s = due_s
        self._timer = self._loop.call_at(due_s, self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        end_s = self._end_s()
        # A hair of tolerance, because a timer may fire a rounding error before its time.
        if not self._fired and self._at_s + 1e-4 < end_s:
            self._set_timer(min(end_s, self._at_s + _LOOK_S))
            return
        now_s = self._loop.time()
        if now_s - self._at_s > STOOD_S and self._spared_s != self._due_s:
            self._spared_s = self._due_s
            self.spared = True
            self._set_timer(now_s + READ_S)
            return
        self._fired += 1
        self._waiter.cancel()
        self._set_timer(now_s + _STOP_S)

    def _forgive(self, task: asyncio.Task[Any]) -> int:
        """Take back the cancellations that were this turn's own; how many are left."""
        while self._fired:
            self._fired -= 1
            task.uncancel()
        return task.cancelling()

    # ------------------------------------------------------------ in the background

    async def _pump_all(self) -> None:
        assert self._fresh is not None
        try:
            async for chunk in self._stream:
                self._kept.append(chunk)
                self._fresh.set()
        except CodriverError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001
            # Nobody waits for this task: asyncio would log what the error says, which may quote the request.
            log.error("an engine failed in an unforeseen way", extra={"at": where(error)})
            self._error = EngineDied("The engine failed in an unforeseen way; it has been logged.")
        finally:
            self._over = True
            self._fresh.set()

    async def _next_held(self) -> ChatChunk:
        assert self._fresh is not None
        while not self._kept:
            if self._over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._fresh.clear()
            await self._fresh.wait()
        return self._kept.popleft()
