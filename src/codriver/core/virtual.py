"""Virtual time: an asyncio event loop whose clock jumps to the next timer instead of waiting for it.

Ordinary ``asyncio.sleep``, ``asyncio.timeout`` and everything built on them then cost no wall time, in the same order
as ever, so that hours of a drive run in seconds. Limits: real input and output does not belong on this loop. A socket
or a thread that is slow in wall time is infinitely slow here: any pending timer fires first. A loop on which every task
waits for something that no timer will bring raises :class:`Stalled` instead of hanging.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A thread that was asked for (``asyncio.to_thread``, closing the executor) gets this long to report back.
THREAD_GRACE_S = 1.0


class Stalled(RuntimeError):
    """Every task waits and no timer is set: a deadlock in the program that runs in virtual time."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never blocks while a timer is set: it moves the time on by what it was asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is not None:
            self.now_s += max(0.0, timeout)
            return events
        events = super().select(THREAD_GRACE_S)
        if not events:
            raise Stalled("Every task waits for what no timer will bring; real I/O cannot run in virtual time.")
        return events


class _Moment(float):
    """A point in time that comes after an equal one that was set earlier: on a real clock no two are equal."""

    __slots__ = ("_turn",)
    _turn: int

    def __new__(cls, when_s: float, turn: int) -> _Moment:
        moment = super().__new__(cls, when_s)
        moment._turn = turn
        return moment

    def __lt__(self, other: float) -> bool:
        if float.__lt__(self, other):
            return True
        return isinstance(other, _Moment) and float.__eq__(self, other) and self._turn < other._turn


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which starts at ``start_s``."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._jumping = _JumpingSelector()
        self._jumping.now_s = start_s
        self._turns = itertools.count()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(_Moment(when, next(self._turns)), callback, *args, context=context)


class LoopClock:
    """A :class:`~codriver.core.clock.Clock` that reads the running loop's time, virtual or real.

    ``wall_start_s`` is the Unix time at which the loop's clock stood at zero.
    """

    def __init__(self, wall_start_s: float = 0.0) -> None:
        self._wall_start_s = wall_start_s

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        return self._wall_start_s + self.monotonic_s()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run_virtual(main: Coroutine[Any, Any, T], start_s: float = 0.0) -> T:
    """``asyncio.run`` in virtual time. What ``main`` raises is raised here. Errors: :class:`Stalled`."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(start_s)) as runner:
        return runner.run(main)
