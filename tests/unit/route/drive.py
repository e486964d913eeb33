"""One request through the router in virtual time, and what the client got of it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.errors import CodriverError
from codriver.core.messages import ChatChunk, ChatRequest, Message, RequestOptions
from codriver.core.plan import AttemptPlan
from codriver.core.virtual import LoopClock, run_virtual
from codriver.route.config import BreakerConfig, RouteConfig
from codriver.route.execute import Run
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.quality import Quality
from tests.unit.route.faulty import Faulty, Weather

Schedule = tuple[tuple[float, Any], ...]  # (seconds from the start, link state)


def ask(stream: bool = True, codriver: dict[str, Any] | None = None, **members: Any) -> ChatRequest:
    options = RequestOptions(**codriver) if codriver else None
    messages = members.pop("messages", None) or [Message(role="user", content="Where is the next charger?")]
    return ChatRequest(messages=messages, stream=stream, codriver=options, **members)


@dataclass
class Got:
    """What a client saw: ``chunks``, the ``error`` at the end if any, the time it took, and what is still running."""

    chunks: list[ChatChunk] = field(default_factory=list)
    error: CodriverError | None = None
    took_s: float = 0.0
    cancelled: bool = False
    records: list[Any] = field(default_factory=list)
    still_open: dict[str, int] = field(default_factory=dict)
    tasks_left: int = 0

    @property
    def answer(self) -> Answer:
        answer = Answer()
        for chunk in self.chunks:
            answer.add(chunk)
        return answer

    @property
    def text(self) -> str:
        return self.answer.text

    @property
    def extension(self) -> dict[str, Any]:
        return self.answer.codriver or {}

    @property
    def finishes(self) -> list[str]:
        return [choice.finish_reason for chunk in self.chunks for choice in chunk.choices if choice.finish_reason]

    def outcomes(self) -> list[tuple[str, str]]:
        return [(a["engine"], a["outcome"]) for a in self.extension["attempts"]]


def lineup_of(*engines: Faulty, link: Weather | None = None, **more: Any) -> Lineup:
    more.setdefault("quality", Quality())
    return Lineup({engine.name: engine for engine in engines}, link=link or Weather(), clock=LoopClock(), **more)


async def collect(stream: Any, got: Got, pause_s: float = 0.0) -> None:
    try:
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                got.chunks.append(chunk)
                if pause_s:
                    await asyncio.sleep(pause_s)
    except CodriverError as error:
        got.error = error


async def weather(link: Weather, schedule: Schedule) -> None:
    past_s = 0.0
    for at_s, state in schedule:
        await asyncio.sleep(at_s - past_s)
        past_s = at_s
        link.become(state)


async def watch(stream: Any, lineup: Lineup, schedule: Schedule = (), cancel_s: float | None = None, **how: Any) -> Got:
    """Consume ``stream`` under a link schedule; the client leaves after ``cancel_s``."""
    got, loop = Got(), asyncio.get_running_loop()
    began_s = loop.time()
    sky = asyncio.ensure_future(weather(lineup.link, schedule))  # type: ignore[arg-type]
    client = asyncio.ensure_future(collect(stream, got, **how))
    try:
        await asyncio.wait([client], timeout=cancel_s)
        if not client.done():
            client.cancel()
            await asyncio.wait([client])
        got.cancelled = client.cancelled()
        if not got.cancelled:
            client.result()
    finally:
        sky.cancel()
        await asyncio.wait([sky])
    got.took_s = loop.time() - began_s
    got.still_open = {name: engine.open for name, engine in lineup.engines.items() if engine.open}  # type: ignore[attr-defined]
    got.tasks_left = len(asyncio.all_tasks()) - 1
    return got


def through_router(
    request: ChatRequest,
    *engines: Faulty,
    config: RouteConfig | None = None,
    link: Weather | None = None,
    schedule: Schedule = (),
    **how: Any,
) -> Got:
    async def main() -> Got:
        lineup = lineup_of(*engines, link=link)
        hybrid = HybridEngine(lineup, config or RouteConfig())
        return await watch(hybrid.generate(request, Deadline.never(LoopClock())), lineup, schedule, **how)

    return run_virtual(main())


def through_plan(
    plan: AttemptPlan, request: ChatRequest, *engines: Faulty, schedule: Schedule = (), link: Weather | None = None,
    **how: Any,
) -> Got:  # fmt: skip
    async def main() -> Got:
        lineup = lineup_of(*engines, link=link, breaker_config=BreakerConfig())
        run = Run(lineup, RouteConfig(), plan, request, Deadline.never(LoopClock()))
        got = await watch(run.chunks(), lineup, schedule, **how)
        got.records = run.records
        return got

    return run_virtual(main())
