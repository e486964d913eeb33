"""The loop of the passes that train: windows of a text in an order of their own, steps, checkpoints, an end.

Source of the steps: Adam (Kingma and Ba 2015, arXiv:1412.6980), warmed up and then slowed down along a cosine; written
out here, because torch's own imports its compiler, for longer than a small run takes. The rules kept: what a step does
follows from the seed and its number alone, so that a run which was interrupted and goes on from its checkpoint ends bit
for bit where one that was not does, on the same machine with as many threads; a checkpoint that is not complete never
has its name; and the text is never the one that is scored.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue, DiskFull

from ..llama_runtime import LlamaModel
from ..recipe import Workshop
from .torch_llama import Tensor, TorchDecoder, Weights

_WARM, _SLOWEST = 0.1, 0.1  # the share of steps that warms up; what is left of the rate at the end
_LONGEST = 1.0  # of a step's gradient, all tensors together
_MEAN, _SQUARE, _LEAST = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Schedule:
    """The settings that the passes share."""

    steps: int = setting(200, "How many steps are made.", least=1)
    tokens: int = setting(256, "In a sequence.", least=8)
    sequences: int = setting(1, "Whose gradients make one step; one is held at a time.", least=1)
    rate: float = setting(1e-4, "The highest learning rate.", least=0.0)
    every: int = setting(50, "Steps from one checkpoint to the next.", least=1)


class Lesson(Protocol):
    """What is learned, and from what. ``learned``: tensors that take gradients, by name."""

    learned: dict[str, Tensor]

    def begin(self) -> None:
        """A step begins."""

    def loss(self, ids: Tensor) -> Tensor:
        """Of one sequence of token ids (tokens,)."""

    def end(self) -> None:
        """The step's losses are all counted: the gradients of ``learned`` are looked at next."""


class Windows:
    """A text as sequences of ``tokens``, none overlapping; each is read once before any is read again."""

    def __init__(self, model: Path, shop: Workshop, tokens: int) -> None:
        with LlamaModel(model) as loaded:
            ids, begin = loaded.tokens(shop.text), loaded.begin
        room = tokens - len(begin)
        self._pieces = [[*begin, *ids[at : at + room]] for at in range(0, len(ids) - room + 1, room)]
        self._seed = shop.seed
        if not self._pieces:
            raise BadConfigValue(
                f"The calibration text has {len(ids)} tokens; training needs {room} at least.", param="calibration"
            )

    def __getitem__(self, number: int) -> Tensor:
        turn, at = divmod(number, len(self._pieces))
        order = np.random.default_rng((self._seed, turn)).permutation(len(self._pieces))
        return torch.tensor(self._pieces[order[at]])


@dataclass
class _State:
    """Where a run stands: ``step`` steps are done. Losses are of the first tenth, and a running mean."""

    step: int = 0
    first: float = math.nan
    last: float = math.nan


def train(lesson: Lesson, windows: Windows, schedule: Schedule, shop: Workshop, step: str) -> str:
    """Make the steps, going on from the checkpoint in ``shop.scratch`` where there is one; what was done, as a phrase.

    Errors: :class:`BadConfigValue` when the loss is no number any more; :class:`DiskFull`.
    """
    run = shop.run(step)
    torch.set_num_threads(run.threads)
    optimiser = _Adam(lesson.learned)
    kept = shop.scratch / "checkpoint.pt"
    state = _load(kept, lesson, optimiser) if kept.exists() else _State()
    while state.step < schedule.steps:
        loss = _step(lesson, windows, schedule, state.step)
        if not math.isfinite(loss):
            raise BadConfigValue(
                f"After {state.step} steps the loss is {loss}: a rate lower than {schedule.rate:g} is needed.",
                param="rate",
            )
        optimiser.step(_rate(schedule, state.step), state.step + 1)
        _count(state, loss)
        if state.step % schedule.every == 0 and state.step < schedule.steps:
            _save(kept, lesson, optimiser, state)
        run.tell(state.step, schedule.steps)
    seen = schedule.steps * schedule.sequences * schedule.tokens
    return f"{schedule.steps} steps over {seen} tokens, loss {state.first:.3f} to {state.last:.3f}"


def kl(right: Tensor, told: Tensor, temperature: float) -> Tensor:
    """The mean KL of the predictions from logits ``told`` to those from ``right``, both (tokens, vocabulary), softened:
    Hinton et al. 2015 (arXiv:1503.02531).
    """
    wanted = F.log_softmax(right / temperature, dim=-1)
    found = F.log_softmax(told / temperature, dim=-1)
    return F.kl_div(found, wanted, log_target=True, reduction="batchmean") * temperature**2


class Teacher:
    """The model that is to be followed. Errors: :class:`BadConfigValue` when it has other tokens than the student."""

    def __init__(self, file: Path, student: TorchDecoder) -> None:
        self._model = TorchDecoder(file)
        self._weights = Weights(self._model.tensors)
        mine, its = (len(model.tensors["token_embd.weight"]) for model in (student, self._model))
        if mine != its:
            raise BadConfigValue(f"{file} has {its} tokens and {student.file.path} {mine}: it cannot be its teacher.")

    @property
    def model(self) -> TorchDecoder:
        return self._model

    def read(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            return self._model.read(ids, self._weights)


def _step(lesson: Lesson, windows: Windows, schedule: Schedule, step: int) -> float:
    lesson.begin()
    whole = 0.0
    for number in range(schedule.sequences):
        loss = lesson.loss(windows[step * schedule.sequences + number]) / schedule.sequences
        loss.backward()
        whole += float(loss.detach())
    lesson.end()
    return whole


def _rate(schedule: Schedule, step: int) -> float:
    warm = max(1, round(_WARM * schedule.steps))
    if step < warm:
        return schedule.rate * (step + 1) / warm
    along = (step - warm) / max(1, schedule.steps - warm)
    return schedule.rate * (_SLOWEST + (1 - _SLOWEST) * (1 + math.cos(math.pi * along)) / 2)


def _count(state: _State, loss: float) -> None:
    state.step += 1
    if state.step <= 10:
        state.first = loss if state.step == 1 else state.first + (loss - state.first) / state.step
    state.last = loss if state.step == 1 else state.last + (loss - state.last) / min(state.step, 10)


class _Adam:
    """``moments``: running means of each tensor's gradient and of its square."""

    def __init__(self, learned: dict[str, Tensor]) -> None:
        self._learned = learned
        self.moments = {name: (torch.zeros_like(one), torch.zeros_like(one)) for name, one in learned.items()}

    def step(self, rate: float, number: int) -> None:
        """The ``number``-th, from 1; gradients are used up by it, shortened where they are long."""
        with torch.no_grad():
            length = math.sqrt(sum(float(one.grad.square().sum()) for one in self._learned.values()))
            shorter = min(1.0, _LONGEST / max(length, 1e-12))
            for name, tensor in self._learned.items():
                (mean, square), gradient = self.moments[name], tensor.grad * shorter
                mean.lerp_(gradient, 1 - _MEAN)
                square.lerp_(gradient.square_(), 1 - _SQUARE)
                size = (square / (1 - _SQUARE**number)).sqrt_().add_(_LEAST)
                tensor.addcdiv_(mean, size, value=-rate / (1 - _MEAN**number))
                tensor.grad = None


def _save(file: Path, lesson: Lesson, optimiser: _Adam, state: _State) -> None:
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as opened:
            told = {"learned": lesson.learned, "moments": optimiser.moments, "state": vars(state)}
            torch.save(told, opened)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"There is no room for the checkpoint {file}; the one before it was kept.") from error
        raise


def _load(file: Path, lesson: Lesson, optimiser: _Adam) -> _State:
    told = torch.load(file, weights_only=True)
    with torch.no_grad():
        for name, tensor in lesson.learned.items():
            tensor.copy_(told["learned"][name])
    optimiser.moments = told["moments"]
    return _State(**told["state"])
