"""One engine's answer in the making: waited for under a time limit, or held in the background while another engine is
tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError
from codriver.core.messages import ChatChunk, ChatRequest


class Turn:
    """``next`` gives chunks until ``None``. After ``hold`` the engine goes on writing while nobody waits; ``next``
    still works.
    """

    def __init__(self, engine: Engine, request: ChatRequest, deadline: Deadline) -> None:
        self._stream: AsyncIterator[ChatChunk] = engine.generate(request, deadline)
        self._scope: asyncio.Timeout | None = None
        self._pump: asyncio.Task[None] | None = None
        self._kept: deque[ChatChunk] = deque()
        self._fresh = asyncio.Event()
        self._ended = False
        self._error: CodriverError | None = None

    async def next(self, wait_s: float) -> ChatChunk | None:
        """The next chunk, or ``None`` at the end. Raises ``TimeoutError`` after ``wait_s``, and whatever the engine
        raised.
        """
        if self._pump is not None:
            return await self._next_held(wait_s)
        if math.isinf(wait_s):
            return await anext(self._stream, None)
        async with asyncio.timeout(wait_s) as self._scope:
            return await anext(self._stream, None)

    def hurry(self, within_s: float) -> None:
        """Shorten the wait that is going on: there is reason to doubt that anything will come."""
        scope = self._scope
        soon = asyncio.get_running_loop().time() + within_s
        if scope is not None and not scope.expired():
            when = scope.when()
            if when is None or when > soon:
                # The scope may have been left between two waits; then there is nothing to shorten.
                with contextlib.suppress(RuntimeError):
                    scope.reschedule(soon)

    def hold(self) -> None:
        self._pump = asyncio.ensure_future(self._pump_all())

    async def aclose(self) -> None:
        """Stop the engine's work."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()

    async def _pump_all(self) -> None:
        try:
            async for chunk in self._stream:
                self._kept.append(chunk)
                self._fresh.set()
        except CodriverError as error:
            self._error = error
        finally:
            self._ended = True
            self._fresh.set()

    async def _next_held(self, wait_s: float) -> ChatChunk | None:
        async with asyncio.timeout(None if math.isinf(wait_s) else wait_s):
            while not self._kept:
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    return None
                self._fresh.clear()
                await self._fresh.wait()
        return self._kept.popleft()
