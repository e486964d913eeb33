"""What was lost by pruning, won back by a small change to every matrix of every block, merged in at the end.

Source: Hu et al. 2021 (LoRA, arXiv:2106.09685): ``W + alpha / rank · B A``. The file is as large as before. It follows
the predictions of the model that the recipe began with, or the text itself. Limits: what stands outside of blocks, and
norms, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from codriver.core.config import setting

from ..decoder import block_of
from ..recipe import Workshop
from .torch_llama import Tensor, Tensors, TorchDecoder, Weights, write_tensors
from .training import Schedule, Teacher, Windows, kl, train


@dataclass(frozen=True)
class LoraRecover(Schedule):
    """Less memory than ``distil``: gradients and moments are those of the small matrices only."""

    rate: float = setting(1e-3, "The highest learning rate.", least=0.0)
    rank: int = setting(8, "Of the change to a matrix.", least=1)
    alpha: float = setting(16.0, "How much the change counts: alpha / rank.", least=0.0)
    follow: Literal["reference", "text"] = setting("reference", "Whose next token is right.")

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: those of ``TorchDecoder``, ``Teacher`` and ``train``."""
        model = TorchDecoder(source)
        windows = Windows(source, shop, self.tokens)
        teacher = Teacher(shop.reference or source, model) if self.follow == "reference" else None
        lesson = _Recovery(model, teacher, self, shop.seed)
        told = train(lesson, windows, self, shop, "wins back what was lost")
        write_tensors(model.file, target, lesson.merged())
        return f"rank {self.rank} on {len(lesson.names)} matrices, by the {self.follow}, for {told}"


class _Adapted(Weights):
    def __init__(self, tensors: Tensors, learned: Tensors, scale: float) -> None:
        super().__init__(tensors)
        self._learned, self._scale = learned, scale

    def multiply(self, name: str, given: Tensor) -> Tensor:
        made = super().multiply(name, given)
        if f"{name}.down" not in self._learned:
            return made
        inner = F.linear(given, self._learned[f"{name}.down"])
        return made + self._scale * F.linear(inner, self._learned[f"{name}.up"])


class _Recovery:
    def __init__(self, model: TorchDecoder, teacher: Teacher | None, how: LoraRecover, seed: int) -> None:
        self._model, self._teacher, self._scale = model, teacher, how.alpha / how.rank
        drawn = torch.Generator().manual_seed(seed)
        matrices = [n for n, t in model.tensors.items() if block_of(n) is not None and t.ndim == 2]
        self.names = [name.removesuffix(".weight") for name in matrices]
        self.learned: dict[str, Tensor] = {}
        for name in self.names:
            rows, width = model.tensors[f"{name}.weight"].shape
            down = torch.randn(how.rank, width, generator=drawn) / width**0.5
            self.learned[f"{name}.down"] = down.requires_grad_()
            self.learned[f"{name}.up"] = torch.zeros(rows, how.rank, requires_grad=True)

    def begin(self) -> None:
        pass

    def loss(self, ids: Tensor) -> Tensor:
        told, _ = self._model.read(ids, _Adapted(self._model.tensors, self.learned, self._scale))
        if self._teacher is None:
            return F.cross_entropy(told[:-1], ids[1:])
        return kl(self._teacher.read(ids)[0], told, 1.0)

    def end(self) -> None:
        pass

    def merged(self) -> dict[str, Tensor]:
        """The matrices with their changes in them."""
        with torch.no_grad():
            return {
                f"{name}.weight": self._model.tensors[f"{name}.weight"]
                + self._scale * self.learned[f"{name}.up"] @ self.learned[f"{name}.down"]
                for name in self.names
            }
