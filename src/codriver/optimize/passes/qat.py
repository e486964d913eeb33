"""Weights trained for the block format that they will be rounded to: each step reads them as the format holds them.

Sources: Bengio et al. 2013 (straight-through estimator, arXiv:1308.3432); Liu et al. 2023 (LLM-QAT, arXiv:2305.17888:
the unrounded model is the teacher). The rounding is ggml's own, bit for bit; what is written stands on the format's
grid, so that rounding to that format afterwards, to the nearest or to second order, gives what was trained. Limits:
``Q4_0`` and ``Q8_0``; the runtime's rounding of what goes into a matrix is not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from codriver.core.config import setting

from ..decoder import EMBEDDING, OUTPUT
from ..gguf_file import fits
from ..recipe import Workshop
from .torch_llama import Tensor, TorchDecoder, Weights, write_tensors
from .training import Schedule, Teacher, Windows, kl, train

_BLOCK = 32


@dataclass(frozen=True)
class Qat(Schedule):
    """Every matrix is trained for ``kind``, but for the tables of tokens, which are trained for ``table``."""

    kind: Literal["Q4_0", "Q8_0"] = setting("Q4_0", "The type that the blocks' matrices will have.")
    table: Literal["Q4_0", "Q8_0"] = setting("Q8_0", "That of the token embedding and the output.")
    rate: float = setting(2e-5, "The highest learning rate.", least=0.0)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: those of ``TorchDecoder``, ``Teacher`` and ``train``."""
        model = TorchDecoder(source)
        windows = Windows(source, shop, self.tokens)
        lesson = _Rounded(model, Teacher(shop.reference or source, model), self)
        told = train(lesson, windows, self, shop, f"trains for {self.kind}")
        write_tensors(model.file, target, lesson.written())
        return f"{len(lesson.kinds)} matrices for {self.kind} (tables {self.table}), {told}"


def fake(kind: str, weights: Tensor) -> Tensor:
    """``weights`` (rows, width) as they are after rounding to ``kind`` by ggml without importances, and back."""
    blocks = weights.detach().reshape(-1, _BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = largest / -8 if kind == "Q4_0" else largest.abs() / 127
    inverse = torch.where(scale != 0, 1 / scale, torch.zeros(()))
    if kind == "Q4_0":
        codes = (blocks * inverse + 8.5).trunc().clamp(max=15) - 8
    else:
        wanted = blocks * inverse
        half = (wanted - wanted.trunc()).abs() == 0.5
        codes = torch.where(half, wanted.trunc() + wanted.sign(), wanted.round())
    return (codes * scale.half().float()).reshape(weights.shape)


class _Rounded:
    def __init__(self, model: TorchDecoder, teacher: Teacher, how: Qat) -> None:
        self._model, self._teacher = model, teacher
        self.learned = {name: tensor.requires_grad_() for name, tensor in model.tensors.items() if "rope" not in name}
        self.kinds = {
            tensor.name: how.table if tensor.name in (EMBEDDING, OUTPUT) else how.kind
            for tensor in model.file
            if len(tensor.shape) == 2 and fits(how.kind, tensor)
        }
        self._standing: dict[str, Tensor] = {}

    def begin(self) -> None:
        self._standing = {name: fake(kind, self.learned[name]).requires_grad_() for name, kind in self.kinds.items()}

    def loss(self, ids: Tensor) -> Tensor:
        told, _ = self._model.read(ids, Weights({**self._model.tensors, **self._standing}))
        return kl(self._teacher.read(ids)[0], told, 1.0)

    def end(self) -> None:
        """The straight-through estimator: what changes a rounded weight's loss is taken to change the weight's."""
        for name, rounded in self._standing.items():
            self.learned[name].grad = rounded.grad

    def written(self) -> dict[str, Tensor]:
        return {**self.learned, **{name: fake(kind, self.learned[name]) for name, kind in self.kinds.items()}}
