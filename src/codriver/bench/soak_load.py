"""A steady load: requests at random moments at a fixed mean rate, each judged when its answer has come.

Arrivals do not wait for answers, as drivers do not. A request that is not over by its deadline and the grace is a hang.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from codriver.core.clock import SYSTEM_CLOCK

from .fault_verdict import Heard, Verdict, judge
from .soak_client import SoakClient
from .soak_requests import Ask, Drawer
from .soak_shapes import as_chat, engine_of

GRACE_S = 8.0  # beyond the deadline: the gateway's own grace, and a machine that is busy with other things
_MOST_OPEN = 400
_EXAMPLES = 5
_LATE = ("HTTP 504", "deadline", "its time ran out")


@dataclass
class Tally:
    """What became of a load's requests. ``unsheltered`` and ``late``: errors told where the vehicle could have
    answered, the latter because time was over. ``examples``: the first few of each bad sort, for people.
    """

    seconds: float = 0.0
    asked: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)
    told_why: Counter[str] = field(default_factory=Counter)
    unsheltered: int = 0
    late: int = 0
    whole_ms: list[float] = field(default_factory=list)
    not_sent: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def take(self, ask: Ask, heard: Heard) -> Verdict:
        """Book one answer; the verdict on it."""
        self.asked += 1
        self.statuses[heard.status] += 1
        if ask.manner == "leaves":
            self.kinds["left"] += 1
            return Verdict("told", "the client left")
        verdict = _verdict(ask, heard)
        kind = "refused" if ask.manner == "bad" and verdict.kind == "told" else verdict.kind
        self.kinds[kind] += 1
        if kind == "whole":
            engine = engine_of(heard) or "not said"
            self.engines[engine] += 1
            if engine == "not said":
                self._keep("nobody is named", ask, verdict)
            if ask.manner == "plain":
                self.whole_ms.append(heard.took_ms)
        elif kind == "told":
            self.told_why[verdict.why[:60]] += 1
            if ask.sheltered:
                late = any(word in verdict.why for word in _LATE)
                self.late += late
                self.unsheltered += not late
                self._keep("told where the vehicle could answer", ask, verdict)
        elif kind != "refused":
            self._keep(kind, ask, verdict)
        return verdict

    def _keep(self, sort: str, ask: Ask, verdict: Verdict) -> None:
        kept = self.examples.setdefault(sort, [])
        if len(kept) < _EXAMPLES:
            how = "streamed" if ask.streamed else "whole"
            kept.append(f"{ask.api} {ask.asks} {how} {ask.manner} {ask.headers} {ask.fault!r}: {verdict.why}")


def _verdict(ask: Ask, heard: Heard) -> Verdict:
    if ask.manner != "bad":
        return judge(as_chat(heard, ask.api), ask.asks, ask.streamed)
    if heard.ended == "not":
        return judge(heard, "text", streamed=False)
    if heard.status in ask.statuses:
        return Verdict("told", f"HTTP {heard.status}")
    return Verdict("lie", f"a bad request was answered with {heard.status}, not {ask.statuses}")


class Load:
    """One after the other, loads of the same requests on one vehicle. ``whole_turns`` are the sessions' turns whose
    answers came whole and with their end, ``other_turns`` those of which it is not known whether the vehicle took them
    for whole: a right text in front of an error is no answer to it.
    """

    def __init__(self, drawer: Drawer, client: SoakClient, seed: int) -> None:
        self._drawer = drawer
        self._client = client
        self._random = random.Random(seed)
        self._open: set[asyncio.Task[None]] = set()
        self.whole_turns: dict[str, list[int]] = {}
        self.other_turns: dict[str, set[int]] = {}

    async def run(self, seconds: float, rate: float, draw: Callable[[], Ask]) -> Tally:
        """Ask for ``seconds``, then wait for what is open: at most a deadline and the grace."""
        tally, clock = Tally(), SYSTEM_CLOCK
        began_s = due_s = clock.monotonic_s()
        while (due_s := due_s + self._random.expovariate(rate)) < began_s + seconds:
            await asyncio.sleep(max(0.0, due_s - clock.monotonic_s()))
            if len(self._open) >= _MOST_OPEN:
                tally.not_sent += 1
                continue
            self._start(draw(), tally)
        tally.seconds = clock.monotonic_s() - began_s
        if self._open:
            await asyncio.gather(*self._open)
        return tally

    def _start(self, ask: Ask, tally: Tally) -> None:
        if ask.session:
            self._drawer.busy.add(ask.session)
        task = asyncio.create_task(self.one(ask, tally))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def one(self, ask: Ask, tally: Tally) -> None:
        """Ask, judge and book one request."""
        try:
            heard = await self._client.ask(ask, ask.deadline_s + GRACE_S)
        finally:
            self._drawer.busy.discard(ask.session)
        verdict = tally.take(ask, heard)
        if not ask.session:
            return
        if verdict.kind == "whole" and not verdict.why:
            self.whole_turns.setdefault(ask.session, []).append(ask.turn)
        else:
            self.other_turns.setdefault(ask.session, set()).add(ask.turn)
