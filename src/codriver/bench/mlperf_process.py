"""An engine under MLCommons' LoadGen, in a process of its own: ``python -m codriver.bench.mlperf_process PLAN``.

LoadGen calls from its own threads and cannot be stopped before its queries are answered; engines live on an event loop.
So each query is handed to the loop, and the first failure of the engine ends this process with one sentence as JSON.
What LoadGen has no traffic for, a fixed rate, is driven here by MLPerf Automotive's definition (ConstantStream): a
query is due every 1/rate seconds whatever became of the last, and its latency counts from when it was due.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError
from codriver.core.messages import EmbedRequest, parse_chat

from .engine_systems import chat_body
from .mlperf_engines import start
from .mlperf_stats import Taken, detail_values, write_constant_summary
from .workload import WorkItem, Workload

SINGLE, SERVER, CONSTANT = "SingleStream", "Server", "ConstantStream"
_PROMPTS, _SEED = 64, 7
_TOKENS = 24  # most of an answer: small talk would otherwise be most of the time
_ANSWER_S = 120.0
# The bounds of a run with a given rate: for tokens those of MLPerf Inference 6.0 for Llama 3.1 8B in conversation, for
# whole answers that of BERT (loadgen/mlperf.conf).
_TTFT_NS, _TPOT_NS, _WHOLE_NS = 2_000_000_000, 100_000_000, 130_000_000


class Plan(msgspec.Struct, frozen=True):
    """``queries`` and ``seconds``: the least of a scenario. ``load``: the given rates, as a share of what one query
    after the other reached, or by themselves as ``rate`` (queries a second). ``logs``: a folder, one below it per
    scenario.
    """

    engine: str
    logs: str
    queries: int
    seconds: float
    load: float = 0.5
    rate: float = 0.0


class Found(msgspec.Struct, frozen=True):
    """``values``: by LoadGen's names in its detail log. ``rate``: queries a second that were asked for; 0: none."""

    scenario: str
    queries: int
    rate: float
    values: dict[str, float | str | bool]


class Told(msgspec.Struct, frozen=True):
    """What the process prints: what was found, or the sentence that ended it."""

    found: tuple[Found, ...] = ()
    error: str = ""


class Listener(Protocol):
    """Told of the first token and of the whole answer: its text and how many tokens it has."""

    def first(self) -> None: ...

    def whole(self, text: bytes, tokens: int) -> None: ...


class Questions:
    """Real prompts, put to one engine: a chat's answer, or a vector where it makes only those."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.chats = engine.card.can("chat")
        self._items = Workload.mixed(_PROMPTS, _SEED).items

    def __len__(self) -> int:
        return len(self._items)

    async def ask(self, number: int, listener: Listener) -> None:
        """Errors: those of the engine."""
        item, deadline = self._items[number], Deadline.after(_ANSWER_S)
        if not self.chats:
            made = await self._engine.embed(EmbedRequest(item.messages[-1]["content"]), deadline)
            listener.whole(msgspec.json.encode(made.vectors[0]), made.tokens)
            return
        text, tokens = "", 0
        async for chunk in self._engine.generate(parse_chat(_body(item)), deadline):
            if piece := chunk.text():
                if not text:
                    listener.first()
                text += piece
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        if not text:
            listener.first()
        listener.whole(text.encode(), max(1, tokens))


def _body(item: WorkItem) -> bytes:
    body = msgspec.json.decode(chat_body(item.messages, min(_TOKENS, item.max_tokens)))
    if (wanted := item.response_format()) is not None:
        body["response_format"] = wanted
    return msgspec.json.encode(body)


class _Query:
    """One query of LoadGen's. Its answer's bytes stay where they are until LoadGen has taken them."""

    def __init__(self, loadgen: Any, id_: int) -> None:
        self._loadgen, self._id = loadgen, id_

    def first(self) -> None:
        self._loadgen.FirstTokenComplete([self._loadgen.QuerySampleResponse(self._id, 0, 0)])

    def whole(self, text: bytes, tokens: int) -> None:
        kept = ctypes.create_string_buffer(text, max(1, len(text)))
        answer = self._loadgen.QuerySampleResponse(self._id, ctypes.addressof(kept), len(text), tokens)
        self._loadgen.QuerySamplesComplete([answer])


async def under_loadgen(questions: Questions, plan: Plan, scenario: str, rate: float = 0.0) -> Found:
    """One of LoadGen's scenarios. Errors: those of the engine; LoadGen goes on waiting then, and this process is of
    no further use for it.
    """
    import mlperf_loadgen as loadgen

    loop = asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()

    def over(answer: Future[None]) -> None:
        error = None if answer.cancelled() else answer.exception()
        if error is not None:
            loop.call_soon_threadsafe(lambda: None if failed.done() else failed.set_exception(error))

    def issue(samples: Sequence[Any]) -> None:
        for sample in samples:
            asked = questions.ask(sample.index, _Query(loadgen, sample.id))
            asyncio.run_coroutine_threadsafe(asked, loop).add_done_callback(over)

    folder = Path(plan.logs) / scenario
    folder.mkdir(parents=True, exist_ok=True)
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(len(questions), len(questions), lambda samples: None, lambda samples: None)
    settings = _settings(loadgen, questions.chats, plan, scenario, rate)
    ended = _in_thread(lambda: loadgen.StartTestWithLogSettings(system, library, settings, _logs(loadgen, folder)))
    await asyncio.wait({ended, failed}, return_when=asyncio.FIRST_COMPLETED)
    if failed.done():
        failed.result()
    ended.result()
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    values = detail_values(folder / "mlperf_log_detail.txt")
    return Found(scenario, int(values["result_query_count"]), rate, values)


def _settings(loadgen: Any, tokens: bool, plan: Plan, scenario: str, rate: float) -> Any:
    found = loadgen.TestSettings()
    found.scenario = getattr(loadgen.TestScenario, scenario)
    found.mode = loadgen.TestMode.PerformanceOnly
    found.min_query_count, found.min_duration_ms = plan.queries, round(1000 * plan.seconds)
    found.use_token_latencies = tokens
    found.ttft_latency, found.tpot_latency, found.server_target_latency_ns = _TTFT_NS, _TPOT_NS, _WHOLE_NS
    # Each prompt as often as any other, as MLPerf asks of language models; a quick run would become twice as long.
    found.sample_concatenate_permutation = plan.seconds > 0
    found.accuracy_log_sampling_target = _PROMPTS  # so many answers stand in the accuracy log
    # LoadGen's own fixed seeds do not matter outside of a submission; these make runs alike.
    found.qsl_rng_seed, found.sample_index_rng_seed, found.schedule_rng_seed = _SEED, _SEED + 1, _SEED + 2
    if rate:
        found.server_target_qps = rate
    return found


def _logs(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    found = loadgen.LogSettings()
    found.log_output, found.enable_trace = output, False
    return found


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """As ``asyncio.to_thread``, but nobody waits for the thread where the loop ends without it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        work()
        loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=run, daemon=True).start()
    return done


class _Timed:
    """A query that was due at ``due_s`` on the loop's clock."""

    def __init__(self, taken: Taken, due_s: float) -> None:
        self._taken, self._due_s = taken, due_s

    def first(self) -> None:
        self._taken.first_s.append(asyncio.get_running_loop().time() - self._due_s)

    def whole(self, text: bytes, tokens: int) -> None:
        self._taken.whole_s.append(asyncio.get_running_loop().time() - self._due_s)
        self._taken.tokens += tokens


async def at_a_fixed_rate(questions: Questions, plan: Plan, rate: float) -> Found:
    """Queries every 1/``rate`` seconds. Errors: those of the engine, at once."""
    loop, taken = asyncio.get_running_loop(), Taken()
    count = max(plan.queries, round(plan.seconds * rate))
    begin_s = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due_s = begin_s + number / rate
            await asyncio.sleep(due_s - loop.time())
            group.create_task(questions.ask(number % len(questions), _Timed(taken, due_s)))
    taken.seconds = loop.time() - begin_s
    values = write_constant_summary(Path(plan.logs) / CONSTANT, taken, rate)
    return Found(CONSTANT, count, rate, values)


async def measure(questions: Questions, plan: Plan) -> tuple[Found, ...]:
    """All three scenarios. Errors: :class:`CodriverError` naming the scenario."""
    found: list[Found] = []
    rate = 0.0
    for scenario in (SINGLE, SERVER, CONSTANT):
        try:
            if scenario == CONSTANT:
                found.append(await at_a_fixed_rate(questions, plan, rate))
            else:
                found.append(await under_loadgen(questions, plan, scenario, rate))
        except* CodriverError as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise CodriverError(f"{scenario}: {first}") from None
        rate = plan.rate or rate or plan.load * 1e9 / float(found[0].values["result_mean_latency_ns"])
    return tuple(found)


async def _run(plan: Plan) -> Told:
    try:
        engine = await start(plan.engine)
        return Told(await measure(Questions(engine), plan))
    except CodriverError as error:
        return Told(error=error.message)


def main(plan: Plan) -> None:
    """Ends the process, whatever LoadGen's threads still wait for; also when its input ends, with who started it."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    code = 1
    try:
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_run(plan))) + b"\n")
        sys.stdout.flush()
        code = 0
    except BaseException:  # noqa: BLE001 - the last thing this process does
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1].encode(), type=Plan))
