"""The model after a recipe's passes: what its tensors may become, and the files that are made of it.

What its tensors may become takes long to find out, and is kept in the work folder.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import msgspec

from codriver.core.gguf import GgufTensor
from codriver.core.writing import writing

from .allocate import Allocation, Choice, allocate
from .calibrate import Inputs, read_inputs
from .evaluate import pieces_of
from .gguf_file import GgufFile, fits
from .gptq import DAMPING
from .llama_runtime import LlamaModel
from .recipe import Recipe, Workshop
from .requirement import Requirement
from .rounding import Rounder, write_rounded
from .sensitivity import Group, choices, groups_of, measure
from .targets.predict import Layout, layout_of
from .task import Task

_PADDING = 256  # bytes, more than a tensor's entry in the header and its alignment take


class Variant:
    """``passes``: what the recipe's passes did, in order. Errors of making one: those of the passes."""

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self._task = task
        shop = Workshop(task.work, task.run, task.settings.calibration)
        changed, self.passes = recipe.run(task.reference.path, task.work, shop)
        # What is rounded, and the file whose types and bytes may be kept: the source's own, where no pass changed them.
        self._base = GgufFile(changed) if self.passes else task.reference
        self._kept = self._base if self.passes else task.source

    @property
    def sensitivity_file(self) -> Path:
        return self._file("sensitivity", self._task.settings.kinds)

    def _file(self, name: str, *more: object) -> Path:
        """Where something is kept that depends on these amounts, this text, and ``more``."""
        settings = self._task.settings
        sizes = (settings.windows, settings.sensed, settings.bands)
        asked = (self._task.sha256, self.passes, sizes, *more, settings.calibration)
        return self._task.work / f"{name}-{hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}.json"

    @cached_property
    def options(self) -> dict[str, list[Choice]]:
        """Each tensor's types with bytes and expected KL."""
        file = self.sensitivity_file
        if file.exists():
            return msgspec.json.decode(file.read_bytes(), type=dict[str, list[Choice]])
        inputs, settings = self._inputs(), self._task.settings
        found = choices((self._kept, self._base), inputs, self._groups(inputs), settings.kinds, settings.threads)
        _keep(file, msgspec.json.encode(found))
        return found

    def _inputs(self) -> Inputs:
        """What goes into each matrix, without its moments."""
        file, task = self._file("inputs").with_suffix(".npz"), self._task
        if not file.exists():
            run = task.run("reads what goes into each matrix")
            read = read_inputs(self._kept.path, task.texts().fit, task.settings.windows, run, lambda name: False)
            _keep(file, read.packed())
        return Inputs.unpacked(file)

    def _groups(self, inputs: Inputs) -> list[Group]:
        """What the model suffers; the same for any types that may be chosen. Each group is kept once it is known."""
        file, settings = self._file("groups"), self._task.settings
        found = msgspec.json.decode(file.read_bytes(), type=list[Group]) if file.exists() else []
        left = groups_of(self._matrices(), settings.bands)[len(found) :]
        if left:
            with LlamaModel(self._base.path) as model:
                pieces = pieces_of(model, self._task.texts().held, settings.sensed)
            for group in measure(self._base, inputs, left, pieces, self._task.run("sees what the model suffers")):
                found.append(group)
                _keep(file, msgspec.json.encode(found))
        return found

    def _matrices(self) -> list[GgufTensor]:
        """The tensors that may get another type: all that have rows of blocks, but for what is tiny."""
        return [t for t in self._base if len(t.shape) == 2 and fits("Q4_0", t) and t.weights > 1 << 14]

    @property
    def weights(self) -> int:
        return sum(tensor.weights for tensor in self._base)

    @property
    def rest_bytes(self) -> int:
        """What a file of it takes beside the tensors in ``options``; a little too much, never too little."""
        rest = self._kept.header.pairs_end + _PADDING * len(self._kept.header.tensors)
        return rest + sum(t.size_bytes for t in self._kept if t.name not in self.options)

    def range_bytes(self) -> tuple[int, int]:
        """The least and the most that the tensors in ``options`` can take."""
        sizes = [[one.size_bytes for one in of] for of in self.options.values()]
        return sum(map(min, sizes)), sum(map(max, sizes))

    def budget(self, requirements: Sequence[Requirement]) -> int | None:
        """Bytes for the tensors in ``options`` under a required size; ``None`` where none is required."""
        limits = [one.limit for one in requirements if one.key == "size"]
        limits += [one.limit * self.weights / 8 for one in requirements if one.key == "bits"]
        return int(min(limits)) - self.rest_bytes if limits else None

    def allocated(self, budget: int, kinds: Sequence[str] | None = None) -> Allocation:
        """``kinds``: the types that may be chosen; all of the settings' by default. Errors: those of ``allocate``."""
        options: Mapping[str, Sequence[Choice]] = self.options
        if kinds is not None:
            options = {name: [one for one in of if one.kind in kinds] or of for name, of in options.items()}
        return allocate(options, budget)

    def layout(self, chosen: Allocation) -> Layout:
        """What of the file decides how fast it is, before it is written."""
        return layout_of(self._kept.path, chosen.kinds)

    def write(self, file: Path, chosen: Allocation, damping: float = DAMPING) -> str:
        """Round to what was ``chosen``; how it was done, as a phrase for the lineage."""
        kinds = {tensor.name: chosen.kinds.get(tensor.name, tensor.type) for tensor in self._kept}
        threads = self._task.settings.threads
        rounder = Rounder(self._kept, self._base, kinds, self._task.texts(), self._task.run, damping, threads)
        self._task.told(f"rounds to {chosen.size_bytes / 1e6:.1f} MB")
        write_rounded(file, rounder)
        ways = Counter(rounder.how.values())
        return "types by measured KL; matrices rounded: " + ", ".join(f"{n} {way}" for way, n in sorted(ways.items()))


def _keep(file: Path, content: bytes) -> None:
    part = file.with_suffix(".part")
    with writing(file, part):
        part.write_bytes(content)
        part.replace(file)
