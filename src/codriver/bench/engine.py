"""What the embedded engines do with one model file: time to the first token, prefill, decode, memory.

Beside ``llama_cpp`` through its contract stand a plain llama.cpp server from the same wheel (own process, bare HTTP,
the same threads; in the full run once more as it comes, spinning on every core) and, where installed, OpenVINO on the
same file with its agreement. Each round measures every system in turn. The ceiling of decode is memory bandwidth over
the file's size.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from codriver.catalogue import Catalogue, Store
from codriver.core.errors import EngineError
from codriver.engines.llama_cpp_config import LlamaCppConfig
from codriver.engines.registry import ENGINES

from .engine_systems import (
    EngineSystem,
    Heard,
    PlainServer,
    Setup,
    System,
    chat_body,
    engine_process,
    plain_server,
    resident_mb,
)
from .rows import Report, Row, machine

OURS, OPENVINO = "codriver", "codriver, openvino"
_EVERY, _SAME = "llama.cpp server, every core", "llama.cpp server, our threads"
_MODEL = "smollm2-135m-instruct-q4_1"
_WORDS = (
    *("river", "stone", "window", "garden", "music", "silver", "yellow"),
    *("winter", "summer", "travel", "number", "letter", "market", "bridge"),
)
_QUESTIONS = (
    "What is the capital of France?",
    "What is 2 + 2?",
    "Name the largest planet.",
    "What colour is the sky?",
    "Who wrote Hamlet?",
    "How many days has a week?",
    "What do bees make?",
    "What is the opposite of hot?",
    "Which animal barks?",
    "What is frozen water called?",
)

Samples = dict[tuple[str, str, str, str], list[float]]  # system, case, metric, unit


def run(quick: bool = False, model: Path | None = None) -> Report:
    """Measure and report. ``model``: a GGUF file; without one the catalogue's default for the vehicle.

    Errors: :class:`MissingFile` when that is not pulled.
    """
    file = model or Store().path(Catalogue.load().entry(_MODEL))
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    rows = asyncio.run(_measure(Setup(file), quick))
    return Report("engine", machine(), begun, rows)


async def _measure(setup: Setup, quick: bool) -> list[Row]:
    rounds, first_rounds, tokens = (3, 1, 32) if quick else (9, 5, 96)
    samples: Samples = defaultdict(list)
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="codriver-bench-") as folder:
        await _restarts(setup, Path(folder), samples, first_rounds)
        async with AsyncExitStack() as stack:
            systems = await _open(stack, setup, notes, quick)
            for number in range(rounds):
                turn = systems[number % len(systems) :] + systems[: number % len(systems)]
                for system in turn if number < first_rounds else []:
                    await _first_tokens(system, number, samples)
                # Close together in time, so that what else the machine does meets all of them.
                for streams in (1, 2, 4):
                    for system in turn:
                        await _decode(system, streams, tokens, samples)
            await _memory(setup, systems, samples)
            rows = _rows(samples)
            if not notes:
                rows += await _agreement(systems, _QUESTIONS[:4] if quick else _QUESTIONS)
    rows += [Row(OPENVINO, "all", "left out", 0.0, "", 0, note=notes["openvino"])] if notes else []
    return rows + _ceiling(setup.model)


async def _open(stack: AsyncExitStack, setup: Setup, notes: dict[str, str], quick: bool) -> list[System]:
    """Every system, each on the same file with the same slots, context, threads and batch."""
    from codriver.engines.llama_cpp import LlamaCpp

    ours = await LlamaCpp.start(_config(setup, None))
    stack.push_async_callback(ours.aclose)
    systems: list[System] = [EngineSystem(OURS, ours)]
    systems.append(await stack.enter_async_context(plain_server(_SAME, setup, os.environ.get("OMP_WAIT_POLICY"))))
    if not quick:  # on cores that are shared, this one alone would take minutes
        cores = len(os.sched_getaffinity(0))
        every = replace(setup, threads=(cores, cores))
        systems.append(await stack.enter_async_context(plain_server(_EVERY, every, None)))
    reason = ENGINES.why_not("openvino")
    if reason is None:
        from codriver.engines.openvino import OpenVino, OpenVinoConfig

        config = OpenVinoConfig(
            id="openvino",
            model=setup.model,
            slots=setup.slots,
            context_tokens=setup.context_tokens,
            batch_tokens=setup.batch_tokens,
        )
        try:
            other = await OpenVino.start(config)
        except EngineError as error:
            reason = error.message
        else:
            stack.push_async_callback(other.aclose)
            systems.append(EngineSystem(OPENVINO, other))
    if reason is not None:
        notes["openvino"] = reason
    return systems


def _config(setup: Setup, prefix_dir: Path | None) -> LlamaCppConfig:
    return LlamaCppConfig(
        model=setup.model,
        slots=setup.slots,
        context_tokens=setup.context_tokens,
        batch_tokens=setup.batch_tokens,
        prefix=({"role": "system", "content": _text("prefix", 500)},) if prefix_dir else (),
        prefix_dir=prefix_dir,
    )


def _text(seed: str, words: int) -> str:
    """About one token a word, never the same for two seeds."""
    start = sum(seed.encode()) % len(_WORDS)
    return f"Note {seed}: " + " ".join(_WORDS[(start + n * n) % len(_WORDS)] for n in range(words))


def _prefixed(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": _text("prefix", 500)}, {"role": "user", "content": question}]


async def _restarts(setup: Setup, folder: Path, samples: Samples, rounds: int) -> None:
    """The first request after a start: ours with the prefix kept on disk, the plain server as it comes."""
    from codriver.engines.llama_cpp import LlamaCpp

    for number in range(rounds + 1):
        begun_s = time.perf_counter()
        engine = await LlamaCpp.start(_config(setup, folder))
        start_ms = (time.perf_counter() - begun_s) * 1e3
        heard = await EngineSystem(OURS, engine).ask(chat_body(_prefixed("Who are you?"), 4))
        await engine.aclose()
        kept = "prefix kept on disk" if number else "prefix not yet kept"
        samples[OURS, kept, "start", "ms"].append(start_ms)
        samples[OURS, kept, "ttft after restart", "ms"].append(heard.ttft_ms)
        samples[OURS, kept, "cached tokens", "tokens"].append(heard.cached_tokens)
    for _ in range(rounds):
        begun_s = time.perf_counter()
        async with plain_server(_SAME, setup, os.environ.get("OMP_WAIT_POLICY")) as server:
            samples[_SAME, "no prefix", "start", "ms"].append((time.perf_counter() - begun_s) * 1e3)
            heard = await server.ask(chat_body(_prefixed("Who are you?"), 4))
            samples[_SAME, "no prefix", "ttft after restart", "ms"].append(heard.ttft_ms)


async def _first_tokens(system: System, number: int, samples: Samples) -> None:
    """A prompt never seen, then two questions behind one prefix: the second finds it computed."""
    cold = await system.ask(chat_body([{"role": "user", "content": _text(f"{system.name} {number}", 500)}], 4))
    samples[system.name, "cold, ~512 tokens", "ttft", "ms"].append(cold.ttft_ms)
    rate = cold.usage.prompt_tokens / cold.ttft_ms * 1e3
    samples[system.name, "cold, ~512 tokens", "prefill", "tokens/s"].append(rate)
    await system.ask(chat_body(_prefixed("Where are we?"), 4))
    warm = await system.ask(chat_body(_prefixed("Who are you?"), 4))
    samples[system.name, "warm prefix, ~512 tokens", "ttft", "ms"].append(warm.ttft_ms)


async def _decode(system: System, streams: int, tokens: int, samples: Samples) -> None:
    """Pieces of all streams while every stream was speaking, over that time."""
    bodies = [
        chat_body([{"role": "user", "content": f"Tell story number {n}."}], tokens, to_the_end=True)
        for n in range(streams)
    ]
    heard: list[Heard] = await asyncio.gather(*(system.ask(body) for body in bodies))
    begin_s, end_s = max(h.pieces_s[0] for h in heard), min(h.pieces_s[-1] for h in heard)
    pieces = sum(begin_s < at_s <= end_s for h in heard for at_s in h.pieces_s)
    # Some tokens show no text of their own (half a character); the counted ones make up for them.
    share = sum(h.usage.completion_tokens for h in heard) / sum(len(h.pieces_s) for h in heard)
    if end_s > begin_s:
        samples[system.name, f"{streams} streams", "decode", "tokens/s"].append(pieces * share / (end_s - begin_s))


async def _memory(setup: Setup, systems: list[System], samples: Samples) -> None:
    for system in systems:
        if isinstance(system, PlainServer):
            samples[system.name, "loaded", "rss", "MB"].append(resident_mb(system.pid))
    async with engine_process(setup) as pid:
        samples[OURS, "loaded, own process", "rss", "MB"].append(resident_mb(pid))


async def _agreement(systems: list[System], questions: tuple[str, ...]) -> list[Row]:
    """How far OpenVINO's greedy answers and llama.cpp's are the same, in words."""
    shares, same = [], 0
    for question in questions:
        body = chat_body([{"role": "user", "content": question}], 24)
        ours, other = [(await system.ask(body)).text.split() for system in (systems[0], systems[-1])]
        pairs = list(zip(ours, other, strict=False))
        equal = next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))
        shares.append(equal / max(len(ours), len(other), 1))
        same += ours == other
    note = "words equal to llama_cpp's before the first difference; greedy, 24 tokens"
    count = len(questions)
    return [
        Row(OPENVINO, "greedy answers", "agreement", statistics.mean(shares), "share", count, note=note),
        Row(OPENVINO, "greedy answers", "identical answers", same / count, "share", count),
    ]


def _rows(samples: Samples) -> list[Row]:
    rows = [
        Row(system, case, metric, statistics.median(values), unit, len(values), min(values), max(values))
        for (system, case, metric, unit), values in samples.items()
    ]
    middle = {(row.system, row.case, row.metric): row.value for row in rows}
    for streams in (1, 2, 4):
        case = f"{streams} streams"
        key = (case, "decode", "tokens/s")
        ratios = [own / rival for own, rival in zip(samples[OURS, *key], samples[_SAME, *key], strict=False)]
        rows.append(
            Row(
                *(OURS, case, "decode against llama.cpp", statistics.median(ratios), "ratio", len(ratios)),
                low=min(ratios),
                high=max(ratios),
                note="round by round, same wheel, threads and waits",
            )
        )
    cold, warm = middle[OURS, "cold, ~512 tokens", "ttft"], middle[OURS, "warm prefix, ~512 tokens", "ttft"]
    rows.append(Row(OURS, "warm over cold", "ttft", warm / cold, "ratio", 1))
    return rows


def _ceiling(model: Path) -> list[Row]:
    """Tokens a second if every token read the whole file once at the speed that all cores together read memory."""
    cores = len(os.sched_getaffinity(0))
    blocks = [np.ones(32 << 20, dtype=np.float64) for _ in range(cores)]
    rates = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            begun_s = time.perf_counter()
            list(pool.map(np.sum, blocks))
            rates.append(sum(block.nbytes for block in blocks) / (time.perf_counter() - begun_s) / 1e9)
    size_gb = model.stat().st_size / 1e9
    note = f"numpy sums over {cores} × 256 MB, one thread per core; best of 5"
    return [
        Row("ceiling", "memory", "read bandwidth", max(rates), "GB/s", len(rates), min(rates), max(rates), note),
        Row(
            "ceiling", "1 streams", "decode", max(rates) / size_gb, "tokens/s", 1, note="bandwidth / bytes of the file"
        ),
    ]
