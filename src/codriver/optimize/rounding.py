"""Writing a model with other types, each tensor rounded as well as is known how, never more than fits in memory.

Second-order rounding follows what it saw of the inputs, and with little text it follows it too far: so a part of the
windows is kept back, and a tensor is rounded to second order only where that loses less on those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codriver.core.gguf import GgufTensor

from .calibrate import Inputs, MomentsAhead, Read, read_inputs
from .evaluate import Run
from .ggml import Bytes, dequantise, quantise
from .gguf_file import Changes, GgufFile, rewrite
from .gptq import DAMPING, output_loss, round_second_order

_FILE_TYPE = "general.file_type"
GUESSED = 1024  # llama.cpp's ``llama_ftype`` for a file whose types follow no name


@dataclass(frozen=True)
class Text:
    """What the inputs are read from: ``fit`` is rounded by, ``held`` decides. ``windows`` of each."""

    fit: str
    held: str
    windows: int
    held_windows: int


@dataclass
class Rounder:
    """Gives each tensor's bytes in the file's order; ``how`` remembers which way each was rounded. One that already has
    its type in ``source`` keeps its bytes.
    """

    source: GgufFile
    reference: GgufFile
    kinds: Mapping[str, str]
    text: Text
    run: Callable[[str], Run]
    damping: float = DAMPING
    how: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.source if self.kinds.get(tensor.name, tensor.type) != tensor.type]
        fit = self._read(self.text.fit, self.text.windows)
        held = self._read(self.text.held, self.text.held_windows, ", kept back")
        self._ahead = MomentsAhead({name: self.reference[name].shape[0] for name in names}, fit, held)

    def data(self, name: str) -> Bytes:
        kind = self.kinds[name]
        if kind == self.source[name].type:
            self.how[name] = "as it was"
            return self.source.raw(self.source[name])
        weights = self.reference.weights(self.reference[name])
        fit, held = self._ahead.inputs(name)
        if name not in fit:
            self.how[name] = "nearest"
            return quantise(kind, weights)
        nearest = quantise(kind, weights, fit.importance(name))
        second = round_second_order(kind, weights, fit.moment(name), self.damping)
        moment = held.moment(name)
        lost = [output_loss(weights, dequantise(kind, made, weights.shape), moment) for made in (nearest, second)]
        self.how[name] = "second order" if lost[1] < lost[0] else "nearest"
        return second if lost[1] < lost[0] else nearest

    def _read(self, text: str, windows: int, told: str = "") -> Read:
        def read(names: frozenset[str]) -> Inputs:
            run = self.run(f"reads what goes into {len(names)} matrices{told}")
            return read_inputs(self.reference.path, text, windows, run, names.__contains__)

        return read


def write_rounded(target: Path, rounder: Rounder) -> None:
    """Errors: those of ``rewrite`` and ``read_inputs``."""
    changes = Changes(rounder.kinds, {_FILE_TYPE: GUESSED})
    rewrite(rounder.reference, target, changes, lambda tensor: rounder.data(tensor.name))


def write_reference(source: GgufFile, target: Path, kind: str) -> None:
    """The file's weights as they are, in a plain type (F32, F16): what its quantisations are compared with.

    Errors: those of ``rewrite``; :class:`BadModelFile` naming a tensor that holds NaN or infinity.
    """
    kinds = {tensor.name: kind for tensor in source if tensor.type not in ("F32", kind) and len(tensor.shape) > 1}
    changes = Changes(kinds, {_FILE_TYPE: {"F32": 0, "F16": 1}[kind]})

    def data(tensor: GgufTensor) -> Bytes:
        weights = source.weights(tensor)
        source.refuse_odd(tensor, weights)
        return quantise(kind, weights)

    for tensor in source:
        if tensor.name not in kinds:
            source.refuse_odd(tensor)
    rewrite(source, target, changes, data)
