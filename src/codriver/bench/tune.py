"""Does the runtime that was picked answer sooner than plain llama.cpp, and say the same?

``codriver engines tune`` on the catalogue's default for the vehicle, with a plain llama.cpp server (the wheel's own, in
its own process, over HTTP, with all cores) among the runtimes, asked in the same turns. The ceiling: reading the
prompt at the speed at which this processor multiplies float32 matrices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from codriver.catalogue import Catalogue, Store
from codriver.core.gguf import read_header
from codriver.engines.registry import ENGINES
from codriver.engines.tuning import GENAI_FORMS, Amounts, Tuning, candidates, trials_of, tune
from codriver.engines.tuning_process import MemoryTask, NextTask, ReadTask, Result, Task, WriteTask
from codriver.engines.tuning_set import QUESTIONS, passage
from codriver.engines.tuning_trial import Candidate, Figures, Spread, Trial
from codriver.optimize.formats.export import export

from .engine_systems import PlainServer, Setup, chat_body, plain_server, resident_mb
from .rows import Report, Row, machine

_MODEL = "smollm2-135m-instruct-q4_1"
PLAIN = "llama.cpp server"


def run(quick: bool = False) -> Report:
    """Errors: :class:`MissingFile` when the model is not pulled."""
    entry = Catalogue.load().entry(_MODEL)
    file = Store().path(entry)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    amounts = Amounts(1, 2, 24, 4, QUESTIONS[:6], (64, 512)) if quick else Amounts(rounds=9)
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="codriver-tune-") as work:
        folders = {form: Path(work) / form for form in GENAI_FORMS}
        for form, folder in folders.items():
            if ENGINES.why_not("onnx_genai") is None:
                export(file, form, folder, lambda step: None)
        found, left = candidates(file, folders)
        # As a vehicle has them: each runtime's own choice. The rival gets every core.
        trials = trials_of(found, 0, amounts.prompts)
        rival = PlainTrial(file, trials[0].room, threads)
        tuning = asyncio.run(tune([*trials, rival], entry.sha256, amounts, lambda step: None))
    rows = [row for one in tuning.runtimes for row in _rows(one)]
    rows += [Row(f"codriver, {name}", "all", "left out", 0.0, "", 0, note=why) for name, why in left.items()]
    return Report("tune", machine(), begun, [*rows, *_picked(tuning), *_ceiling(file)])


def _rows(one: Figures) -> list[Row]:
    system = one.name if one.runtime == PLAIN else f"codriver, {one.name}"
    said = "of next tokens along the reference's greedy answers"
    share = Row(system, "fixed questions", "agreement", one.agreement, "share", one.positions, one.agreement_low)
    rows = [_row(system, f"{tokens} tokens", "ttft", "ms", took) for tokens, took in one.ttft_ms.items()]
    return [
        *rows,
        _row(system, "from cold", "start", "ms", one.start_ms),
        _row(system, "one answer", "decode", "tokens/s", one.decode_tps),
        Row(system, "after all", "rss", one.rss_bytes / 1e6, "MB", 1),
        replace(share, note=said),
    ]


def _row(system: str, case: str, metric: str, unit: str, took: Spread) -> Row:
    return Row(system, case, metric, took.value, unit, took.n, took.low, took.high)


def _picked(tuning: Tuning) -> list[Row]:
    """What is picked of our runtimes, over the rival: the medians of both, from the same rounds."""
    ours = [one for one in tuning.runtimes if one.runtime != PLAIN]
    plain = next((one for one in tuning.runtimes if one.runtime == PLAIN), None)
    if plain is None:
        return [Row("codriver", "all", "left out", 0.0, "", 0, note=tuning.left_out[PLAIN])]
    best = Tuning.pick(msgspec.structs.replace(tuning, runtimes=ours), "ttft")
    note = f"{best.name} was picked; it agrees at {best.agreement:.1%} of {best.positions}"
    return [
        Row(
            "codriver",
            f"{tokens} tokens",
            "ttft over plain llama.cpp",
            took.value / plain.ttft_ms[tokens].value,
            "ratio",
            took.n,
            note=note,
        )
        for tokens, took in best.ttft_ms.items()
    ]


def _ceiling(file: Path) -> list[Row]:
    """A prompt of 512 tokens takes two operations for each weight but the embeddings' (they are looked up; of the last
    position alone are they multiplied with).
    """
    header = read_header(file)
    weights = sum(t.weights for t in header.tensors if len(t.shape) == 2 and not t.name.startswith("token_embd"))
    a, b = np.ones((1024, 1024), np.float32), np.ones((1024, 1024), np.float32)
    rates = []
    for _ in range(9):
        begun_s = time.perf_counter()
        a @ b
        rates.append(2 * 1024**3 / (time.perf_counter() - begun_s))
    took_ms = 1e3 * 2 * 512 * weights / max(rates)
    note = (
        f"{2 * 512 * weights / 1e9:.0f} GFLOP at {max(rates) / 1e9:.0f} GFLOP/s, float32 matrices by numpy; best of 9"
    )
    return [Row("ceiling", "512 tokens", "ttft", took_ms, "ms", 1, note=note)]


class PlainTrial(Trial):
    """The wheel's own server. What it is asked goes over HTTP; the rest is as for every runtime."""

    def __init__(self, file: Path, room: int, threads: int) -> None:
        super().__init__(Candidate(PLAIN, file), room, threads)
        self._setup = Setup(file, slots=1, context_tokens=room, threads=(threads, threads))
        self._stack = contextlib.AsyncExitStack()
        self._server: PlainServer | None = None

    async def start(self) -> None:
        await self.close()
        begun_s = time.perf_counter()
        self._server = await self._stack.enter_async_context(
            plain_server(PLAIN, self._setup, os.environ.get("OMP_WAIT_POLICY"))
        )
        self.started(begun_s)

    async def close(self) -> None:
        await self._stack.aclose()

    async def ask(self, task: Task) -> Result:
        assert self._server is not None
        match task:
            case ReadTask():
                heard = await self._server.ask(chat_body([_user(passage(task.seed, task.words))], 1))
                return Result(seconds=heard.ttft_ms / 1e3, tokens=heard.usage.prompt_tokens)
            case WriteTask():
                heard = await self._server.ask(
                    chat_body([_user(f"Tell story number {task.seed % 1000}.")], task.tokens)
                )
                written = max(heard.usage.completion_tokens - 1, 1)
                return Result(seconds=(heard.pieces_s[-1] - heard.pieces_s[0]) / written, tokens=written)
            case NextTask():
                return Result(pieces=[await self._next(task.question, begin) for begin in task.begins])
            case MemoryTask():
                return Result(rss_bytes=round(1e6 * resident_mb(self._server.pid)))
            case _:
                raise AssertionError("the rival is no reference")

    async def _next(self, question: str, begin: str) -> str:
        assert self._server is not None
        messages = [_user(question)]
        if begin:
            messages.append({"role": "assistant", "content": begin})
        return (await self._server.ask(chat_body(messages, 1))).text


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
