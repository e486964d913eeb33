"""How much does rounding a tensor cost the model? Measured as KL on the reference itself, for a few tensors at a time.

Groups of like tensors (one matrix's in a run of layers) are rounded to a coarse type in a copy of the reference, the
rest left as it is, and the copy's predictions are compared with the reference's. For small errors KL grows with the
square of the rounding's effect on the output, and groups add up; so a tensor's expected KL at a type is its group's KL
per unit of relative output error, times its own error at that type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.gguf import GgufTensor

from .allocate import Choice
from .calibrate import Inputs
from .evaluate import Pieces, Run, compare, predictions
from .ggml import Floats, dequantise, quantise, size_bytes
from .gguf_file import Changes, GgufFile, fits, rewrite
from .gptq import output_error

_FAST = "Q8_0"
COARSE = ("Q3_K", "Q4_0")  # the first that fits
_BAND = 1 << 22  # weights that are rounded at a time
_SEEN, _ROWS = 1 << 16, 64  # weights and rows of a tensor that are rounded, at least, to see what a type loses
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_NOISE = 1e-6  # nats: a group that costs less is as good as free, and must not count as nothing at all


@dataclass(frozen=True)
class Group:
    """``kl`` nats when the group's tensors have the relative output errors that sum up to ``error``."""

    names: tuple[str, ...]
    error: float
    kl: float

    @property
    def slope(self) -> float:
        return max(self.kl, _NOISE) / max(self.error, 1e-12)


def groups_of(tensors: Iterable[GgufTensor], bands: int) -> list[tuple[str, ...]]:
    """Like matrices in ``bands`` runs of layers; what stands outside the layers by itself."""
    tensors = list(tensors)
    layers = 1 + max((int(found[1]) for t in tensors if (found := _LAYER.fullmatch(t.name))), default=0)
    grouped: dict[tuple[str, int], list[str]] = {}
    for tensor in tensors:
        found = _LAYER.fullmatch(tensor.name)
        key = (found[2], int(found[1]) * bands // layers) if found else (tensor.name, 0)
        grouped.setdefault(key, []).append(tensor.name)
    return [tuple(names) for names in grouped.values()]


def measure(
    reference: GgufFile,
    inputs: Inputs,
    groups: Sequence[tuple[str, ...]],
    pieces: Pieces,
    run: Run,
) -> Iterator[Group]:
    """``reference``: of plain types (F32, F16), whose tensors are rounded in a copy beside it, group by group. Its
    matrices are Q8_0 in the copy, which is compared with what it predicts before: half the memory of F16, and half the
    time.
    """
    file = reference.path.with_name("sensitivity.part")  # by its name no model, whatever ends this
    fast = {tensor.name: _FAST for tensor in reference if len(tensor.shape) == 2 and fits(_FAST, tensor)}
    try:
        rewrite(reference, file, Changes(fast), lambda tensor: quantise(_FAST, reference.weights(tensor)))
        copy = GgufFile(file)
        right = predictions(file, pieces, run.threads)
        for number, names in enumerate(groups):
            error = sum(_round_in(copy[name], copy, reference, inputs) for name in names)
            fit = compare(file, right, pieces, Run(run.threads))
            for name in names:
                _put(file, copy[name], quantise(copy[name].type, reference.weights(reference[name])).tobytes())
            yield Group(names, error, fit.kl)
            run.tell(number + 1, len(groups))
    finally:
        file.unlink(missing_ok=True)


def choices(
    files: tuple[GgufFile, GgufFile], inputs: Inputs, groups: Iterable[Group], kinds: Sequence[str], threads: int
) -> dict[str, list[Choice]]:
    """For each tensor of the groups what each type that fits takes, and the KL that it is expected to cost: nothing
    where it keeps the type that it has in the source. ``files``: source and reference.
    """
    source, reference = files
    slopes = {name: group.slope for group in groups for name in group.names}

    def of(name: str) -> list[Choice]:
        tensor = reference[name]
        weights, importance = reference.weights(tensor), _importance(inputs, tensor)
        weights = weights[:: max(1, min(weights.size // _SEEN, len(weights) // _ROWS))].copy()
        found = []
        for kind in (kind for kind in kinds if fits(kind, tensor)):
            rounded = dequantise(kind, quantise(kind, weights, importance), weights.shape)
            error = output_error(weights, rounded, importance) if kind != source[name].type else 0.0
            found.append(Choice(kind, size_bytes(kind, tensor.weights), slopes[name] * error))
        return found

    # ggml works outside of Python's lock.
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(slopes, pool.map(of, slopes), strict=True))


def _importance(inputs: Inputs, tensor: GgufTensor) -> Floats:
    """Of a table that is looked up in, which nothing is multiplied with, every column counts the same."""
    return inputs.importance(tensor.name) if tensor.name in inputs else np.ones(tensor.shape[0], np.float32)


def _round_in(tensor: GgufTensor, copy: GgufFile, reference: GgufFile, inputs: Inputs) -> float:
    kind = next(kind for kind in COARSE if fits(kind, tensor))
    weights, importance = reference.weights(reference[tensor.name]), _importance(inputs, tensor)
    lost, whole, at = 0.0, 0.0, 0
    rows = max(1, _BAND // weights.shape[1])
    for begin in range(0, len(weights), rows):
        band = weights[begin : begin + rows]
        rounded = dequantise(kind, quantise(kind, band, importance), band.shape)
        data = quantise(tensor.type, rounded).tobytes()
        _put(copy.path, tensor, data, at)
        size = float(np.einsum("rc,rc,c->", band, band, importance, optimize=True))
        lost, whole, at = lost + size * output_error(band, rounded, importance), whole + size, at + len(data)
    return lost / whole if whole > 0 else 0.0


def _put(copy: Path, tensor: GgufTensor, data: bytes, at: int = 0) -> None:
    with copy.open("r+b") as file:
        file.seek(tensor.offset + at)
        file.write(data)
