"""What condensing a long context on the vehicle costs and gives: tokens, bytes, time, recall and right answers.

Two parts. *Recall* asks hundreds of questions of contexts as long as a leaflet and as a manual, without a language
model: does what goes up hold an answer? *Answers* asks the catalogue's stand-in for the cloud (a 1.5B model on this
machine) with the whole context, condensed to several budgets, by words alone, cut off at an equal budget, the right
document alone, and nothing; every system in turn for each question. Time over a link is worked out, not driven: the
bytes of the request's body at the recorded uplink's own rate, averaged over a start in each second of the trace,
without round trips or loss. Intervals: 95 %, by bootstrap over questions; for shares Wilson's (1927).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from codriver.catalogue import Catalogue, Store
from codriver.core.deadline import Deadline
from codriver.route.condense import Condenser, whole_text
from codriver.route.config import RouteConfig
from codriver.route.meanings import Meanings
from codriver.route.passages import tokens_of

from . import traces
from .drive_inputs import CLOUD_MODEL, QUESTIONS
from .engine_systems import EngineSystem, chat_body
from .grading import holds
from .outcome_sets import embedding_engine
from .reading_sets import LongCase, long_cases, reading_set
from .rows import Report, Row, machine

BUDGETS = (256, 512, 1024)
EQUAL = 512  # the budget at which ways to choose are compared
_ANSWER_TOKENS = 32
# The whole contexts take long to read: asking ends after this time, and ``n`` says how many questions were asked.
_ASKING_S = 2700.0
_COLD = 20
_TOLD = "Answer the question from the documents in a few words, without a sentence around them."
_CLOSED = "Answer the question in a few words, without a sentence around them."
_SEED = 17
_LINKS = ("TMobile-UMTS-driving", "ATT-LTE-driving-2016", "TMobile-LTE-short", "Verizon-LTE-short")


@dataclass
class Samples:
    """What was measured: values by system, case, metric and unit, one per question in the same order."""

    values: dict[tuple[str, str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, system: str, case: str, metric: str, unit: str, value: float) -> None:
        self.values[system, case, metric, unit].append(value)

    def repeat(self, system: str, other: str) -> None:
        """What was last measured of the answers of ``system`` counts for ``other`` as well."""
        for (name, case, metric, unit), values in list(self.values.items()):
            if name == system and case == "answers" and not metric.startswith("condensing"):
                self.add(other, case, metric, unit, values[-1])


def run(quick: bool = False) -> Report:
    """Measure and report. Errors: :class:`MissingFile` with the command that mends it, :class:`MissingExtra`."""
    store, catalogue = Store(), Catalogue.load()
    questions, model = (store.path(catalogue.entry(name)) for name in (QUESTIONS, CLOUD_MODEL))
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    recalled, answered = asyncio.run(_measure(questions, model, quick))
    rows = [*summed(recalled), *summed(answered), *_differences(answered), *_over_links(answered)]
    return Report("condense", machine(), begun, rows)


async def _measure(questions: Path, model: Path, quick: bool) -> tuple[Samples, Samples]:
    recalled, answered = Samples(), Samples()
    for name in ("disflqa", "narrativeqa"):
        for tokens in (2400, 24_000):
            count = 10 if quick else 200 if tokens == 2400 and name == "disflqa" else 60
            cases = long_cases(reading_set(name, questions), count, tokens, _SEED)
            await _recall(cases, f"{name}, {tokens:,} tokens", recalled)
    cases = long_cases(reading_set("disflqa", questions), 2 if quick else 60, 2400, _SEED)
    await _answers(cases, model, answered)
    return recalled, answered


# ---------------------------------------------------------------- does what goes up hold an answer?


async def _recall(cases: Sequence[LongCase], case: str, samples: Samples) -> None:
    embedder = embedding_engine(threads=1)
    try:
        shared = Meanings(embedder)
        for number, one in enumerate(cases):
            for by in ("words", "meaning too"):
                # Some questions are timed as of documents never seen; then all as of a manual that always comes along.
                cold = number < _COLD
                condenser = _condenser(None if by == "words" else Meanings(embedder) if cold else shared)
                for budget in BUDGETS:
                    seen = "new documents" if budget == BUDGETS[0] else "known documents"
                    begun_s = time.perf_counter()
                    text = await condensed_text(condenser, one.documents, one.asked.question, budget)
                    took_ms = 1e3 * (time.perf_counter() - begun_s)
                    system = f"by {by}"
                    samples.add(system, case, f"recall at {budget} tokens", "share", holds(text, one.asked.answers))
                    samples.add(system, case, f"tokens at {budget}", "tokens", tokens_of(text))
                    if cold:
                        samples.add(system, case, f"condensing, {seen}", "ms", took_ms)
            for budget in BUDGETS:
                found = holds(first_tokens(one.documents, budget), one.asked.answers)
                samples.add("cut off", case, f"recall at {budget} tokens", "share", found)
        print(f"recall, {case}: {len(cases)} questions", flush=True)
    finally:
        await embedder.aclose()


async def condensed_text(condenser: Condenser, documents: Sequence[str], question: str, budget: int) -> str:
    return (await condenser.choose(documents, question, budget, Deadline.never())).text


def _condenser(meanings: Meanings | None) -> Condenser:
    return Condenser(RouteConfig(condense_within_s=60.0), meanings)


def first_tokens(documents: Sequence[str], budget: int) -> str:
    """The documents' beginning, up to the budget, by the same estimate of tokens."""
    return whole_text(documents).encode()[: 4 * budget].decode("utf-8", "ignore")


# ---------------------------------------------------------------- right answers, tokens, bytes, time


async def _answers(cases: Sequence[LongCase], model: Path, samples: Samples) -> None:
    from codriver.engines.llama_cpp import LlamaCpp
    from codriver.engines.llama_cpp_config import LlamaCppConfig

    engine = await LlamaCpp.start(LlamaCppConfig(model=model, slots=1, context_tokens=4096))
    embedder = embedding_engine(threads=1)
    try:
        until_s = time.monotonic() + _ASKING_S
        for number, one in enumerate(cases):
            if time.monotonic() > until_s:
                break
            contexts = await _contexts(one, Meanings(embedder), samples)
            # Greedy answers to one text are one answer: systems that sent the same are asked once.
            copies = {b: a for a, b in itertools.combinations(contexts, 2) if contexts[a] == contexts[b]}
            order = [name for name in contexts if name not in copies]
            random.Random(number).shuffle(order)
            for name in order:
                await _ask(EngineSystem(name, engine), (number, order.index(name)), one, contexts[name], samples)
            for name, same in copies.items():
                samples.repeat(same, name)
            right = {name: int(samples.values[name, "answers", "accuracy", "share"][-1]) for name in contexts}
            print(f"answers: {number + 1} of {len(cases)} {right}", flush=True)
    finally:
        await embedder.aclose()
        await engine.aclose()


async def _contexts(one: LongCase, meanings: Meanings, samples: Samples) -> dict[str, str | None]:
    """What each system puts before the question. The systems of one question share no work."""
    documents, question = one.documents, one.asked.question
    contexts: dict[str, str | None] = {"whole": whole_text(documents)}
    condenser = _condenser(meanings)
    for budget in (EQUAL, *(budget for budget in BUDGETS if budget != EQUAL)):
        begun_s = time.perf_counter()
        contexts[f"condensed to {budget}"] = await condensed_text(condenser, documents, question, budget)
        if budget == EQUAL:
            took_s = time.perf_counter() - begun_s
            samples.add(f"condensed to {budget}", "answers", "condensing, new documents", "s", took_s)
        else:
            samples.add(
                f"condensed to {budget}", "answers", "condensing, known documents", "s", time.perf_counter() - begun_s
            )
    begun_s = time.perf_counter()
    contexts[f"by words to {EQUAL}"] = await condensed_text(_condenser(None), documents, question, EQUAL)
    samples.add(f"by words to {EQUAL}", "answers", "condensing, new documents", "s", time.perf_counter() - begun_s)
    contexts[f"cut off at {EQUAL}"] = first_tokens(documents, EQUAL)
    contexts["right document alone"] = whole_text([documents[one.right]])
    contexts["no context"] = None
    return contexts


async def _ask(
    system: EngineSystem, call: tuple[int, int], one: LongCase, context: str | None, samples: Samples
) -> None:
    """The first words differ from call to call, so that no system finds another's state in the engine."""
    told = f"Call {call[0]}-{call[1]}. {_TOLD if context is not None else _CLOSED}"
    messages = [{"role": "system", "content": told}]
    if context is not None:
        messages.append({"role": "user", "content": context})
    messages.append({"role": "user", "content": one.asked.question})
    body = chat_body(messages, _ANSWER_TOKENS)
    heard = await system.ask(body)
    right = holds(heard.text, one.asked.answers)
    samples.add(system.name, "answers", "accuracy", "share", right)
    recalled = context is not None and holds(context, one.asked.answers)
    samples.add(system.name, "answers", "recall", "share", recalled)
    samples.add(system.name, "answers", "tokens up", "tokens", heard.usage.prompt_tokens)
    samples.add(system.name, "answers", "bytes up", "bytes", len(body))
    first_s = heard.ttft_ms / 1e3 if heard.pieces_s else math.nan
    samples.add(system.name, "answers", "ttft, 1.5B on this machine", "s", first_s)


# ---------------------------------------------------------------- rows


def summed(samples: Samples) -> list[Row]:
    """A row per figure: its mean over the questions, with its interval."""
    rows = []
    for (system, case, metric, unit), values in samples.values.items():
        told = [value for value in values if not math.isnan(value)]
        low, high = wilson(sum(told), len(told)) if unit == "share" else bootstrap(told)
        rows.append(Row(system, case, metric, round(statistics.fmean(told), 4), unit, len(told), low, high))
    return rows


def _differences(answered: Samples) -> list[Row]:
    """Right answers against the whole context, question by question."""
    whole = answered.values["whole", "answers", "accuracy", "share"]
    rows = []
    for (system, case, metric, unit), values in list(answered.values.items()):
        if metric == "accuracy" and system != "whole":
            gaps = [ours - theirs for ours, theirs in zip(values, whole, strict=True)]
            low, high = bootstrap(gaps)
            value = round(statistics.fmean(gaps), 4)
            rows.append(Row(system, case, "accuracy over whole", value, unit, len(gaps), low, high, "paired"))
    return rows


def _over_links(answered: Samples) -> list[Row]:
    rows = []
    for name in _LINKS:
        curve, seconds = _uplink(name)
        for (system, case, metric, _), values in list(answered.values.items()):
            if metric != "bytes up":
                continue
            took_s = [_mean_s(curve, seconds, size) for size in values]
            low, high = bootstrap(took_s)
            note = "body's bytes at the recorded uplink, mean over a start in each second"
            value = round(statistics.fmean(took_s), 4)
            rows.append(Row(system, case, f"uplink of {name}", value, "s", len(took_s), low, high, note))
    return rows


def _uplink(name: str) -> tuple[traces.CapacityCurve, int]:
    trace = traces.load(name)
    return traces.CapacityCurve(trace.steps("up"), trace.step_ms), int(trace.duration_s)


def _mean_s(curve: traces.CapacityCurve, seconds: int, size: float) -> float:
    """Seconds until ``size`` bytes have passed, for a request that comes at any time of the trace."""
    starts_ms = range(0, 1000 * seconds, 1000)
    took_ms = [curve.time_ms(curve.bytes_until(start) + size) - start for start in starts_ms]
    return statistics.fmean(took_ms) / 1e3


def wilson(right: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)


def bootstrap(values: Sequence[float], rounds: int = 1000) -> tuple[float, float]:
    """The 95 % interval of a mean (Efron 1979)."""
    chance = random.Random(_SEED)
    means = sorted(statistics.fmean(chance.choices(values, k=len(values))) for _ in range(rounds))
    return round(means[int(0.025 * rounds)], 4), round(means[int(0.975 * rounds) - 1], 4)
