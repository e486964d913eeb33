"""One runtime under measurement: its process, what it was asked, and what came of it."""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from codriver.core.errors import EngineDied, EngineUnavailable

from .tuning_process import AnswerTask, MemoryTask, NextTask, ReadTask, Result, Task, WriteTask

_GOODBYE_S = 10.0
_LINE_BYTES = 1 << 20
_TRIES = 6


@dataclass(frozen=True)
class Candidate:
    """``form`` is what the model was written as for the runtime; empty where it reads the model's own file."""

    runtime: str
    file: Path
    form: str = ""

    @property
    def name(self) -> str:
        return called(self.runtime, self.form)


def called(runtime: str, form: str) -> str:
    """One of a runtime's candidates, for tables and sentences."""
    return f"{runtime} ({form})" if form else runtime


class Spread(msgspec.Struct, frozen=True):
    """A median of ``n``, with the least and the most."""

    value: float
    low: float
    high: float
    n: int


class Figures(msgspec.Struct, frozen=True):
    """What a runtime did. ``start_ms``: from the process's start to a loaded model. ``ttft_ms`` by the prompt's tokens.
    ``rss_bytes`` of its process once all was asked, and the most there ever was. ``agreement``: the share of
    ``positions`` at which it named the reference's next token, ``agreement_low`` its 95 % bound.
    """

    runtime: str
    start_ms: Spread
    ttft_ms: dict[int, Spread]
    decode_tps: Spread
    rss_bytes: int
    peak_bytes: int
    agreement: float
    agreement_low: float
    positions: int
    form: str = ""

    @property
    def name(self) -> str:
        return called(self.runtime, self.form)


class Answer(msgspec.Struct, frozen=True):
    """``begins`` of the reference's answer to ``question``, and the piece that it says next behind each."""

    question: str
    begins: list[str]
    pieces: list[str]


class Trial:
    """``threads`` as the runtime's setting has it: 0 is its own choice."""

    def __init__(self, of: Candidate, context_tokens: int, threads: int) -> None:
        self.of, self.room, self.threads = of, context_tokens, threads
        self._arguments = (of.runtime, str(of.file), str(context_tokens), str(threads))
        self._process: asyncio.subprocess.Process | None = None
        self._start_ms: list[float] = []
        self._ttft_ms: dict[int, list[float]] = {}
        self._tps: list[float] = []
        self._same: list[bool] = []
        self._memory = Result()

    async def start(self) -> None:
        """From cold; a process that runs is ended first. Errors: :class:`EngineUnavailable` with what was said."""
        await self.close()
        begun_s = time.perf_counter()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "codriver.engines.tuning_process", *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LINE_BYTES,
        )
        await self._result()
        self.started(begun_s)

    def started(self, begun_s: float) -> None:
        self._start_ms.append(1e3 * (time.perf_counter() - begun_s))

    async def words(self, tokens: int) -> int:
        """How many words make a prompt of so many tokens, the chat template included."""
        words = tokens
        for _ in range(_TRIES):
            off = tokens - (await self.ask(ReadTask(words, 0))).tokens
            if off == 0 or words + off < 1:
                break
            words += off
        return words

    async def round(self, words: dict[int, int], number: int, written: int) -> None:
        """Round 0 warms up, and does not count."""
        for at, (tokens, count) in enumerate(words.items()):
            took = await self.ask(ReadTask(count, 31 * number + 7 * at + 1))
            if number:
                self._ttft_ms.setdefault(tokens, []).append(1e3 * took.seconds)
        wrote = await self.ask(WriteTask(written, number))
        if number and wrote.seconds > 0:
            self._tps.append(1 / wrote.seconds)

    async def answer(self, question: str, tokens: int) -> Answer:
        """As the reference says it: each begin is read anew, as the others must read it."""
        pieces = (await self.ask(AnswerTask(question, tokens))).pieces
        begins = ["".join(pieces[:at]) for at in range(len(pieces))]
        return Answer(question, begins, (await self.ask(NextTask(question, begins))).pieces)

    async def judge(self, right: list[Answer]) -> None:
        self._same = []
        for answer in right:
            said = (await self.ask(NextTask(answer.question, answer.begins))).pieces
            self._same += [a == b for a, b in zip(answer.pieces, said, strict=True)]
        self._memory = await self.ask(MemoryTask())

    def figures(self) -> Figures:
        share, low = _share(self._same)
        return Figures(
            runtime=self.of.runtime,
            start_ms=_spread(self._start_ms),
            ttft_ms={tokens: _spread(values) for tokens, values in self._ttft_ms.items()},
            decode_tps=_spread(self._tps),
            rss_bytes=self._memory.rss_bytes,
            peak_bytes=self._memory.peak_bytes,
            agreement=share,
            agreement_low=low,
            positions=len(self._same),
            form=self.of.form,
        )

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _GOODBYE_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def ask(self, task: Task) -> Result:
        """Errors: :class:`EngineDied` when the process ends, or says that the task failed."""
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(task) + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise EngineDied(f"The process of {self.of.runtime} ended.", engine=self.of.runtime) from None
        return await self._result()

    async def _result(self) -> Result:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise EngineDied(
                f"The process of {self.of.runtime} ended with code {await self._process.wait()}.",
                engine=self.of.runtime,
            )
        result = msgspec.json.decode(line, type=Result)
        if result.error:
            raise EngineUnavailable(result.error, engine=self.of.runtime)
        return result


def _spread(values: list[float]) -> Spread:
    if not values:
        return Spread(0.0, 0.0, 0.0, 0)
    return Spread(statistics.median(values), min(values), max(values), len(values))


def _share(same: list[bool]) -> tuple[float, float]:
    """The share, and the low end of its 95 % interval (Wilson 1927)."""
    n, z = len(same), 1.96
    if not n:
        return 0.0, 0.0
    share = sum(same) / n
    middle = share + z * z / (2 * n)
    off = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, (middle - off) / (1 + z * z / n)
