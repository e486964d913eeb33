"""The vehicle and the cloud at one answer: does a first sentence or a draft by the vehicle help, and what does it cost?

Free-text items of the drive with both real models in this process, each item under every way in turn, without a link.
The vehicle gives the first sentence and the cloud the rest; or the vehicle's whole draft is scored by the cloud
(``scoring.py``) and the cloud goes on from where it disagrees, at two levels of tolerance. Accuracy of the same
items; tokens as the server counts them; bytes of bodies; time to a first token where both engines meet the item for
the first time. What verifying would save is worked out: one reading of the draft in place of writing what was agreed,
at the rates at which this cloud reads and writes in this run. The floor is the vehicle alone, the ceiling a vehicle
that says word for word what the cloud would.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from codriver.catalogue import Catalogue, Store
from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.messages import ChatChunk, ChatRequest, parse_chat
from codriver.core.wire import encode
from codriver.engines.llama_cpp import LlamaCpp
from codriver.engines.llama_cpp_config import LlamaCppConfig
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.route.config import RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup

from .drive_client import request_body
from .drive_inputs import CLOUD_MODEL, QUESTIONS, VEHICLE_MODEL, drive_items
from .drive_outcomes import Figure, mean, quantile, share
from .grading import grade
from .rows import Report, Row, machine
from .scoring import ScoringServer
from .workload import WorkItem

STRICT, TOLERANT = 1.0, 0.3
_TRIALS = 5
_LEAST = {"verified, likeliest only": STRICT, "verified, from 0.3": TOLERANT}
_WAYS = ("first sentence", "cloud", "vehicle", *_LEAST)


@dataclass
class Told:
    """One item under one way. ``read``, ``wrote``: tokens of the cloud; ``kept``: how much of the answer is the draft's
    (a share), which is ``drafted`` tokens long.
    """

    kind: str
    right: bool | None
    ttft_s: float
    total_s: float
    read: int = 0
    wrote: int = 0
    up: int = 0
    down: int = 0
    kept: float = 0.0
    drafted: int = 0
    fresh: bool = False


@dataclass(frozen=True)
class _Team:
    vehicle: Engine
    cloud: Engine
    server: ScoringServer
    url: str


def run(quick: bool = False) -> Report:
    """Measure and report; ``quick`` takes a sixth of the items. Errors: :class:`MissingFile` for a missing model."""
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    store, catalogue = Store(), Catalogue.load()
    questions = store.path(catalogue.entry(QUESTIONS))
    items = [item for item in drive_items(24 if quick else 150, 7, questions) if item.schema is None]
    files = {name: store.path(catalogue.entry(name)) for name in (VEHICLE_MODEL, CLOUD_MODEL)}
    told, rates_s = asyncio.run(_measure(items, files[VEHICLE_MODEL], files[CLOUD_MODEL]))
    return Report("collaborate", machine(), begun, _rows(told, rates_s))


async def _measure(
    items: Sequence[WorkItem], vehicle: Path, cloud: Path
) -> tuple[dict[str, list[Told]], tuple[float, float]]:
    told: dict[str, list[Told]] = {way: [] for way in _WAYS}
    async with _team(vehicle, cloud) as team:
        # Both have read each opening once before anything counts.
        openings = {item.messages[0]["content"]: item for item in items}
        for item in openings.values():
            for way in ("vehicle", "cloud"):
                await _one(team, way, item, "")
        for number, item in enumerate(items):
            draft, drafted = "", 0
            # Who comes first meets the item for the first time, and only that counts as a time to a first token.
            first, second, *others = _WAYS if number % 2 else (_WAYS[1], _WAYS[0], *_WAYS[2:])
            for way in (first, second, *others):
                figures, text = await _one(team, way, item, draft)
                figures.drafted, figures.fresh = drafted, way == first
                told[way].append(figures)
                if way == "vehicle":
                    # Its tokens are the vehicle's own, and no load on the cloud.
                    draft, drafted = text, figures.wrote
                    figures.read = figures.wrote = 0
        return told, await _rates_s(team)


@asynccontextmanager
async def _team(vehicle: Path, cloud: Path) -> AsyncIterator[_Team]:
    async with AsyncExitStack() as stack:
        threads = max(1, (os.cpu_count() or 2) - 1)
        engines = []
        for name, file in (("vehicle", vehicle), ("cloud", cloud)):
            config = LlamaCppConfig(id=name, model=file, threads=threads, context_tokens=4096)
            engine = await LlamaCpp.start(config)
            stack.push_async_callback(engine.aclose)
            engines.append(engine)
        server = ScoringServer(engines[1])
        url = await server.start()
        stack.push_async_callback(server.aclose)
        yield _Team(engines[0], engines[1], server, url)


async def _one(team: _Team, way: str, item: WorkItem, draft: str) -> tuple[Told, str]:
    """The figures and the text of one answer."""
    body = request_body(item)
    body.pop("codriver")
    request = parse_chat(encode(body))
    team.server.count()
    if way == "vehicle":
        return await _listen(team, item, team.vehicle.generate(request, Deadline.never()))
    least = _LEAST.get(way)
    config = OpenAIConfig(
        url=team.url, model="cloud", prefill="vllm", verify="none" if least is None else "vllm", verify_least=least or 0
    )
    remote = OpenAIServer(config)
    try:
        if way == "first sentence":
            return await _listen(team, item, _led(team, remote, request))
        request.draft = draft if least is not None else None
        told, text = await _listen(team, item, remote.generate(request, Deadline.never()))
        if least is not None:
            told.kept = _alike(draft.strip(), text) / max(1, len(text))
        return told, text
    finally:
        await remote.aclose()


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _led(team: _Team, remote: Engine, request: ChatRequest) -> AsyncIterator[ChatChunk]:
    lineup = Lineup({"vehicle": team.vehicle, "cloud": remote})
    # What a car knows of its engines after a while; here nothing but the order counts.
    lineup.paces["vehicle"].ttft_s, lineup.paces["cloud"].ttft_s = 0.1, 1.0
    config = RouteConfig(policy="cloud-first", lead_sentence=True, deadline_s=120, first_token_s=60, inter_token_s=60)
    return HybridEngine(lineup, config).generate(request, Deadline.never())


async def _listen(team: _Team, item: WorkItem, stream: AsyncIterator[ChatChunk]) -> tuple[Told, str]:
    began_s = time.perf_counter()
    ttft_s: float | None = None
    answer = Answer()
    async for chunk in stream:
        if ttft_s is None and chunk.text():
            ttft_s = time.perf_counter() - began_s
        answer.add(chunk)
    total_s = time.perf_counter() - began_s
    told = Told(item.kind, grade(item, answer.text, complete=answer.complete).correct, ttft_s or total_s, total_s)
    if answer.usage is not None:
        told.read, told.wrote = answer.usage.prompt_tokens, answer.usage.completion_tokens
    told.up, told.down = team.server.bytes_up, team.server.bytes_down
    return told, answer.text


# ---------------------------------------------------------------- figures


def _rows(told: dict[str, list[Told]], rates_s: tuple[float, float]) -> list[Row]:
    rows = []
    for kind in ("question", "chat"):
        of_kind = {way: [one for one in found if one.kind == kind] for way, found in told.items()}
        for way, found in of_kind.items():
            system = way if way in ("cloud", "vehicle") else f"codriver, {way}"
            figures = _figures(found)
            if way in _LEAST:
                figures |= _saved(found, of_kind["cloud"], rates_s)
            elif way != "vehicle":
                figures["ttft_p50_ms"] = (quantile([1e3 * one.ttft_s for one in found if one.fresh], 0.5), "ms")
            rows += [
                Row(system, kind, metric, f.value, unit, f.n, f.low, f.high)
                for metric, (f, unit) in figures.items()
                if f.n
            ]
    rates = {"reads": 1 / rates_s[0], "writes": 1 / rates_s[1]}
    return rows + [Row("cloud", "any", name, rate, "tokens/s", _TRIALS) for name, rate in rates.items()]


def _figures(found: Sequence[Told]) -> dict[str, tuple[Figure, str]]:
    right = [one.right for one in found if one.right is not None]
    return {
        "accuracy": (share(sum(right), len(right)), "share"),
        "cloud_tokens_read": (mean([float(one.read) for one in found]), "tokens/request"),
        "cloud_tokens_written": (mean([float(one.wrote) for one in found]), "tokens/request"),
        "bytes_up": (mean([float(one.up) for one in found]), "bytes/request"),
        "bytes_down": (mean([float(one.down) for one in found]), "bytes/request"),
    }


def _saved(found: Sequence[Told], alone: Sequence[Told], rates_s: tuple[float, float]) -> dict[str, tuple[Figure, str]]:
    """What of the drafts stood, and the time that would be saved: the prompt itself is read once, and then kept."""
    reads_s, writes_s = rates_s
    saved = [
        (plain.wrote - one.wrote) * writes_s - max(0, one.drafted) * reads_s
        for one, plain in zip(found, alone, strict=True)
    ]
    return {
        "draft_kept": (mean([one.kept for one in found]), "share of the answer"),
        "time_saved_worked_out_s": (mean(saved), "s/request"),
        "time_saved_at_most_s": (
            mean([(one.wrote - 1) * writes_s - one.wrote * reads_s for one in alone]),
            "s/request",
        ),
    }


async def _rates_s(team: _Team) -> tuple[float, float]:
    """Seconds a token that this cloud reads, and writes: medians of prompts that it has not seen."""
    reads, writes = [], []
    for trial in range(_TRIALS):
        words = " ".join(f"{trial}{number}x" for number in range(60))
        item = WorkItem("rate", "chat", [{"role": "user", "content": words}], None, "answered", None, 24, 60, 60)
        told, _ = await _one(team, "cloud", item, "")
        reads.append(told.ttft_s / max(1, told.read))
        if told.wrote > 4:
            writes.append((told.total_s - told.ttft_s) / (told.wrote - 1))
    return statistics.median(reads), statistics.median(writes or reads)
