"""What is optimised, and with what: the source, the reference that counts as right, the texts, and the work folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from codriver.core.artifact import Measured, sha256_of
from codriver.core.errors import BadConfigValue

from .calibrate import LEAST_WINDOWS
from .evaluate import WINDOW, Progress, Run, pieces_of
from .gguf_file import GgufFile
from .latency import measure as measure_latency
from .llama_check import check
from .llama_runtime import LlamaModel
from .recipe import NO_PASSES, Recipe
from .rounding import Text, write_reference
from .task_sets.questions import TaskSet

KINDS = ("Q2_K", "Q3_K", "Q4_0", "IQ4_NL", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
_SMALL_WEIGHTS = 500_000_000  # up to so many the reference is F32, beyond that F16
Told = Callable[[str], Progress]
Timing = Callable[[Path, int, int, Sequence[int]], list[Measured]]


@dataclass(frozen=True)
class Settings:
    """``windows``: of 512 tokens, for calibration; a quarter as many are kept back. ``sensed`` tell what the model
    suffers, ``judged`` are scored. ``kinds``: the types that may be chosen. ``timing``: measures a file on ``target``,
    or predicts it. ``task_sets``: asked of every file that is measured, and of the reference.
    """

    calibration: str
    scored: str
    windows: int = 32
    judged: int = 20
    sensed: int = 2
    bands: int = 5
    kinds: tuple[str, ...] = KINDS
    threads: int = 2
    runs: int = 5
    recipe: Recipe = NO_PASSES
    target: str = "host"
    task_sets: tuple[TaskSet, ...] = ()
    timing: Timing = field(default=measure_latency, repr=False)


@dataclass(frozen=True)
class Task:
    """``told`` names a step that begins and takes its progress. ``work`` keeps what took long between runs."""

    source: GgufFile
    reference: GgufFile
    sha256: str
    work: Path
    settings: Settings
    told: Told

    def run(self, step: str) -> Run:
        return Run(self.settings.threads, self.told(step))

    def texts(self) -> Text:
        """The calibration text: most of it to round by, its end to decide by."""
        text, settings = self.settings.calibration, self.settings
        cut = len(text) * 4 // 5
        return Text(text[:cut], text[cut:], settings.windows, max(LEAST_WINDOWS, settings.windows // 4))


def begin(source: Path, work: Path, settings: Settings, told: Told) -> Task:
    """Errors: :class:`BadConfigValue` for a text that is too short, before anything long begins; those of ``check``,
    :class:`GgufFile` and :class:`LlamaModel`.
    """
    check(source)
    file = GgufFile(source)
    task = Task(file, file, sha256_of(source), work, settings, told)
    with LlamaModel(source) as model:
        found, needed = len(model.tokens(task.texts().held)), LEAST_WINDOWS * WINDOW
        if found >= needed:
            pieces_of(model, settings.scored, 1)  # tells a scored text that is too short
    if found < needed:
        raise BadConfigValue(
            f"The calibration text is too short: its last fifth has {found} tokens, and {needed} are needed.",
            param="calibration",
        )
    work.mkdir(parents=True, exist_ok=True)
    kind = "F32" if sum(tensor.weights for tensor in file) <= _SMALL_WEIGHTS else "F16"
    reference = work / f"reference-{kind}-{task.sha256[:16]}.gguf"
    if not reference.exists():
        told(f"writes the reference ({kind})")
        write_reference(file, reference, kind)
    return Task(file, GgufFile(reference), task.sha256, work, settings, told)
