"""Writing a model with other types, each tensor rounded as well as is known how, never more than fits in memory.

Second-order rounding follows what it saw of the inputs, and with little text it follows it too far: so a part of the
windows is kept back, and a tensor is rounded to second order only where that loses less on those. A large tensor is
rounded some rows at a time, and some of its rows decide for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from codriver.core.gguf import GgufTensor

from .calibrate import Inputs, MomentsAhead, Read, moment_bytes, read_moments
from .evaluate import WINDOW, Run
from .ggml import Bytes, Floats, dequantise, quantise
from .gguf_file import Changes, GgufFile, rewrite
from .gptq import DAMPING, SecondOrder

_FILE_TYPE = "general.file_type"
_SPAN = 2560  # columns whose errors make each other good: what more columns take grows with their third power
_BAND = 1 << 22  # weights that are rounded at a time
_DECIDE = 1 << 20  # of so many weights, and from twice as many on, a share of the rows decides
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
    its type in ``source`` keeps its bytes. ``source`` is what reads the text: it has the same weights in less room.
    """

    source: GgufFile
    reference: GgufFile
    kinds: Mapping[str, str]
    text: Text
    run: Callable[[str], Run]
    damping: float = DAMPING
    threads: int = 1
    how: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.source if self.kinds.get(tensor.name, tensor.type) != tensor.type]
        text = self.text
        fit = self._read(text.fit, text.windows)
        held = self._read(text.held, text.held_windows, ", kept back")
        widths = {name: self.reference[name].shape[0] for name in names}
        tokens = [count * WINDOW for count in (text.windows, text.held_windows)]
        sizes = {name: sum(moment_bytes(width, of) for of in tokens) for name, width in widths.items()}
        self._ahead = MomentsAhead(sizes, fit, held)

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
        importance = fit.importance(name)
        ways: dict[str, Callable[[Floats], Bytes]] = {
            "nearest": lambda rows: quantise(kind, rows, importance),
            "second order": _Spans(kind, fit, name, self.damping).rounded,
        }
        step = max(1, weights.size // _DECIDE)
        some = weights[::step]
        made = {way: self._by_bands(rounded, some) for way, rounded in ways.items()}
        lost = {way: held.loss(name, some - dequantise(kind, data, some.shape)) for way, data in made.items()}
        way = min(lost, key=lambda one: lost[one])
        self.how[name] = way
        return made[way] if step == 1 else self._by_bands(ways[way], weights)

    def _by_bands(self, rounded: Callable[[Floats], Bytes], weights: Floats) -> Bytes:
        """Rows are rounded each by itself, so that they need not be all there at once."""
        rows = max(1, min(_BAND // weights.shape[1], -(-len(weights) // self.threads)))
        bands = (weights[begin : begin + rows] for begin in range(0, len(weights), rows))
        with ThreadPoolExecutor(self.threads) as pool:
            return np.concatenate([*pool.map(rounded, bands)])

    def _read(self, text: str, windows: int, told: str = "") -> Read:
        def read(names: frozenset[str]) -> Inputs:
            run = self.run(f"reads what goes into {len(names)} matrices{told}")
            return read_moments(self.source.path, text, windows, run, names)

        return read


class _Spans:
    """Rounding to second order, each span of columns by itself."""

    def __init__(self, kind: str, inputs: Inputs, name: str, damping: float) -> None:
        self._kind = kind
        self._spans = [
            (columns, SecondOrder(inputs.moment(name, columns), damping)) for columns in spans(inputs.width(name))
        ]

    def rounded(self, weights: Floats) -> Bytes:
        made = [order.rounded(self._kind, weights[:, columns]) for columns, order in self._spans]
        return np.hstack([part.reshape(len(weights), -1) for part in made]).reshape(-1)


def spans(width: int) -> Iterator[slice]:
    """Equal ones but for the last, of whole blocks."""
    count = -(-width // _SPAN)
    each = -(-width // (256 * count)) * 256
    return (slice(begin, min(begin + each, width)) for begin in range(0, width, each))


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
