"""A model taught to predict what another predicts: after blocks, heads or channels went, or for a text of one's own.

Sources: Hinton et al. 2015 (logits, arXiv:1503.02531); Romero et al. 2015 (hidden states, arXiv:1412.6550). Where a
student's block stands in the teacher is seen by its norm's weights: a block that was cut still has those, whatever
became of the rest. Limits: teacher and student have the same tokens and the same width between blocks; all weights
are trained, at about 16 bytes of memory for each, and the teacher's stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue, MissingFile

from ..recipe import Workshop
from .torch_llama import Tensor, TorchDecoder, Weights, write_tensors
from .training import Schedule, Teacher, Windows, kl, train


@dataclass(frozen=True)
class Distil(Schedule):
    """The teacher is the model that the recipe began with, or a file that is named."""

    teacher: str = setting("", "A GGUF file in plain types; left out, what the recipe's first pass was given.")
    hidden: float = setting(0.5, "How much following the teacher's blocks counts, beside its predictions.", least=0.0)
    temperature: float = setting(1.0, "Softens predictions.", least=0.1)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`MissingFile`, :class:`BadConfigValue` for a teacher that does not fit; those of
        ``TorchDecoder`` and ``train``.
        """
        student = TorchDecoder(source)
        windows = Windows(source, shop, self.tokens)
        file = Path(self.teacher).expanduser() if self.teacher else shop.reference or source
        if not file.exists():
            raise MissingFile(f"The teacher {file} does not exist.")
        lesson = _Following(student, Teacher(file, student), self)
        told = train(lesson, windows, self, shop, "follows the teacher")
        write_tensors(student.file, target, lesson.learned)
        return f"followed {file.name} for {told}"


def layer_map(student: TorchDecoder, teacher: TorchDecoder) -> list[int]:
    """For each of the student's blocks the teacher's block that it should end as: the one before that which the next of
    the student's stands for. Errors: :class:`BadConfigValue` for another width between blocks.
    """
    if student.decoder.width != teacher.decoder.width:
        raise BadConfigValue(
            f"{teacher.file.path} is {teacher.decoder.width} wide and {student.file.path} {student.decoder.width}: "
            "blocks cannot be followed; set hidden = 0.", param="hidden",
        )  # fmt: skip

    def norms(model: TorchDecoder) -> Tensor:
        return torch.stack([model.tensors[f"blk.{at}.attn_norm.weight"] for at in range(model.decoder.layers)])

    stands_for = torch.cdist(norms(student), norms(teacher)).argmin(dim=1).tolist()
    ends = [max(0, block - 1) for block in stands_for[1:]]
    return [*ends, teacher.decoder.layers - 1]


class _Following:
    def __init__(self, student: TorchDecoder, teacher: Teacher, how: Distil) -> None:
        self._student, self._teacher, self._how = student, teacher, how
        self.learned = {name: tensor.requires_grad_() for name, tensor in student.tensors.items() if "rope" not in name}
        self._map = layer_map(student, teacher.model) if how.hidden else []

    def begin(self) -> None:
        pass

    def loss(self, ids: Tensor) -> Tensor:
        right, through = self._teacher.read(ids)
        told, own = self._student.read(ids, Weights(self._student.tensors))
        found = kl(right, told, self._how.temperature)
        if self._map:
            # Relative to each token's size: the first token of a text is a thousand times larger than others.
            pairs = [(own[at], through[block]) for at, block in enumerate(self._map)]
            off = [((one - other).square().sum(-1) / other.square().sum(-1)).mean() for one, other in pairs]
            found = found + self._how.hidden * torch.stack(off).mean()
        return found

    def end(self) -> None:
        pass
