"""Which runtime should answer with this model on this machine? Each is measured, and judged by what it answers.

Every runtime has a process of its own, and they are asked in turn, so that what else the machine does meets all of
them alike. The first is the reference: along its greedy answers to fixed questions each runtime names the next token,
and one that agrees too seldom is not eligible, however fast. The rule kept: nothing is picked that was not measured
with this file, on this processor, with these versions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from operator import methodcaller
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from codriver.core.errors import BadConfigValue, BadModelFile, EngineError, EngineUnavailable
from codriver.core.gguf import read_header
from codriver.core.machine import processor

from .registry import ENGINES
from .tuning_set import QUESTIONS
from .tuning_trial import Candidate, Figures, Trial, called

Policy = Literal["ttft", "decode", "memory"]
PROMPTS = (64, 512, 2048)
BOUND = 0.9
_ROOM = 96  # tokens of the chat template and of an answer beside the prompt
_PACKAGES = {"llama_cpp": "xllamacpp", "openvino": "openvino-genai", "onnx_genai": "onnxruntime-genai"}
GENAI_FORMS = ("onnx-genai", "onnx-genai-w8a8")  # faithful, and fast with prompts: which is better is measured


@dataclass(frozen=True)
class Amounts:
    """``starts`` from cold; ``rounds`` of first tokens and of decode, writing ``written`` tokens; ``tokens`` of each
    answer that is compared.
    """

    starts: int = 3
    rounds: int = 7
    written: int = 64
    tokens: int = 12
    questions: tuple[str, ...] = QUESTIONS
    prompts: tuple[int, ...] = PROMPTS


class Tuning(msgspec.Struct, frozen=True):
    """One model's runtimes, the reference first. ``left_out``: why others were not measured."""

    sha256: str
    processor: str
    started: str
    threads: int
    bound: float
    versions: dict[str, str]
    runtimes: list[Figures]
    left_out: dict[str, str]

    def eligible(self) -> list[Figures]:
        return [one for one in self.runtimes if one.agreement >= self.bound]

    def pick(self, policy: Policy) -> Figures:
        """The best of those that are eligible; the reference always is. By ``ttft``: of the middle prompt."""
        return min(self.eligible(), key=lambda one: _cost(one, policy))


def _cost(of: Figures, policy: Policy) -> float:
    if policy == "memory":
        return float(of.rss_bytes)
    if policy == "decode":
        return -of.decode_tps.value
    lengths = sorted(of.ttft_ms)
    return of.ttft_ms[lengths[len(lengths) // 2]].value


def candidates(
    file: Path, genai: Mapping[str, Path | str] = MappingProxyType({})
) -> tuple[list[Candidate], dict[str, str]]:
    """The runtimes that can load the GGUF file ``file``, the reference first, and why others cannot. ``genai``: the
    same model's folders for ONNX Runtime GenAI by their form, or why there is none.

    Errors: :class:`MissingFile`; :class:`BadModelFile`; :class:`BadConfigValue` where none can.
    """
    read_header(file)
    places: list[tuple[str, str, Path | str]] = [("llama_cpp", "", file), ("openvino", "", _for_openvino(file))]
    needs = "it needs a folder that `codriver optimize export MODEL --to {}` writes"
    places += [("onnx_genai", form, genai.get(form, needs.format(form))) for form in GENAI_FORMS]
    found, left = [], {}
    for runtime, form, place in places:
        reason = ENGINES.why_not(runtime) or (place if isinstance(place, str) else None)
        if reason is None and isinstance(place, Path):
            found.append(Candidate(runtime, place, form))
        else:
            left[called(runtime, form)] = str(reason)
    if not found:
        raise BadConfigValue(f"No runtime here loads {file}: {'; '.join(left.values())}.", param="model")
    return found, left


def _for_openvino(file: Path) -> Path | str:
    from .openvino import why_not

    return why_not(file) or file


def trials_of(found: Sequence[Candidate], threads: int, prompts: Sequence[int] = PROMPTS) -> list[Trial]:
    """With room for the longest of ``prompts`` that the model has room for."""
    room = max(_that_fit(found[0].file, prompts)) + _ROOM
    return [Trial(one, room, threads) for one in found]


async def tune(trials: Sequence[Trial], sha256: str, amounts: Amounts, tell: Callable[[str], None]) -> Tuning:
    """Measure, the reference first. ``tell`` is told each step. A runtime that fails is left out with what it said.

    Errors: :class:`EngineUnavailable` where the reference fails.
    """
    reference = trials[0]
    prompts = _that_fit(reference.of.file, amounts.prompts)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    left: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        for trial in trials:
            stack.push_async_callback(trial.close)

        async def each(step: str, work: Callable[[Trial], Awaitable[None]], turn: int = 0) -> None:
            tell(step)
            alive = [trial for trial in trials if trial.of.name not in left]
            for trial in alive[turn % len(alive) :] + alive[: turn % len(alive)]:
                try:
                    await work(trial)
                except EngineError as error:
                    if trial is reference:
                        raise EngineUnavailable(
                            f"The reference runtime failed: {error.message}", engine=trial.of.runtime
                        ) from error
                    left[trial.of.name] = error.message

        for _ in range(amounts.starts):
            await each("starts each runtime", lambda trial: trial.start())
        words = {tokens: await reference.words(tokens) for tokens in prompts}
        for number in range(amounts.rounds + 1):
            await each(
                f"round {number} of {amounts.rounds}" if number else "warms up",
                methodcaller("round", words, number, amounts.written),
                number,
            )
        right = [await reference.answer(question, amounts.tokens) for question in amounts.questions]
        await each("compares answers", lambda trial: trial.judge(right))
        figures = [trial.figures() for trial in trials if trial.of.name not in left]
    versions = {one.runtime: version_of(one.runtime) for one in figures}
    return Tuning(sha256, processor(), started, reference.threads, BOUND, versions, figures, left)


def _that_fit(file: Path, prompts: Sequence[int]) -> list[int]:
    """The lengths that the model's context has room for; the shortest in any case."""
    room = read_header(file).context_tokens or max(prompts) + _ROOM
    return [tokens for tokens in prompts if tokens + _ROOM <= room] or [min(prompts)]


def version_of(runtime: str) -> str:
    try:
        return version(_PACKAGES[runtime])
    except (KeyError, PackageNotFoundError):
        return "not known"


def save(tuning: Tuning, folder: Path) -> Path:
    """Whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{tuning.sha256}.json"
    part = file.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(tuning), indent=1) + b"\n")
    part.replace(file)
    return file


def load(folder: Path, sha256: str) -> tuple[Tuning | None, str]:
    """What was measured of this model, or ``None`` and why it does not count here.

    Errors: :class:`BadModelFile` for a file that is none of ours.
    """
    file = folder / f"{sha256}.json"
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Tuning)
    except FileNotFoundError:
        return None, "its runtimes were not measured on this machine"
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadModelFile(f"The measurement {file} is not valid: {error}. Measure again, or remove it.") from error
    if found.processor != processor():
        return None, f"they were measured on another machine ({found.processor})"
    for runtime, told in found.versions.items():
        if version_of(runtime) != told:
            return None, f"{runtime} was measured in version {told}, and {version_of(runtime)} is installed"
    return found, ""
