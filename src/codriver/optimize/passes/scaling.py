"""Scales that move from what makes an input into what reads it; what AWQ and SmoothQuant have in common.

An input's columns are divided where they are made (in the norm, or in the rows of the matrix before), and multiplied
where they are read: the function stays what it was, and the file is one that stock llama.cpp runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..calibrate import read_windows
from ..decoder import Decoder
from ..evaluate import Run
from ..ggml import Floats
from .inputs import Change, Shared, inputs, write_changed

_SPREAD = 1e4  # no scale is more than so many times another's


@dataclass
class Columns:
    """What was seen of one input: of each column the mean size and the largest, and ``rows`` of it as they were."""

    n: int = 0
    total: Floats = field(default_factory=lambda: np.zeros(1, np.float32))
    most: Floats = field(default_factory=lambda: np.zeros(1, np.float32))
    kept: list[Floats] = field(default_factory=list)

    def add(self, values: Floats, every: int) -> None:
        size = np.abs(values)
        self.n, self.total, self.most = (
            self.n + len(values),
            self.total + size.sum(0),
            np.maximum(self.most, size.max(0)),
        )
        self.kept.append(values[every // 2 :: every].copy())

    @property
    def mean(self) -> Floats:
        found: Floats = self.total / np.float32(max(1, self.n))
        return found

    @property
    def rows(self) -> Floats:
        return np.concatenate(self.kept)


def read_columns(model: Path, text: str, windows: int, run: Run, every: int) -> dict[str, Columns]:
    """By the first weight that reads each input; one row in ``every`` is kept. Errors: those of ``read_windows``."""
    found: dict[str, Columns] = {}
    first: dict[str, str] = {}

    def take(weight: str, given: str, values: Floats) -> None:
        if first.setdefault(given, weight) == weight:
            found.setdefault(weight, Columns()).add(values, every)

    read_windows(model, text, windows, run, (take, None))
    return found


def write_scaled(decoder: Decoder, target: Path, scales: Mapping[str, Floats]) -> None:
    """``scales``: by the tensor that makes an input, one per column that it makes."""
    across: dict[str, Floats] = {}
    down: dict[str, Floats] = {}
    for shared in inputs(decoder):
        if shared.made in scales:
            down[shared.made] = scales[shared.made]
            across.update(dict.fromkeys(shared.read, shared.spread(scales[shared.made])))
    changed = {name: _scaled(across.get(name), down.get(name)) for name in {*across, *down}}
    biases = {name.replace(".weight", ".bias") for name in down if not name.endswith("norm.weight")}
    for name in sorted(bias for bias in biases if bias in decoder.file):
        changed[name] = _scaled(None, down[name.replace(".bias", ".weight")])
    write_changed(decoder.file, target, changed)


def _scaled(across: Floats | None, down: Floats | None) -> Change:
    """Columns are multiplied by ``across``; rows, or the entries of a vector, divided by ``down``."""

    def change(weights: Floats) -> Floats:
        if across is not None:
            weights = weights * across
        if down is not None:
            weights = weights / (down if weights.shape == (1, len(down)) else down[:, None])
        return weights

    return change


def usable(scales: Floats) -> Floats:
    """Of positive numbers around 1; columns that nothing enters, or that nobody reads, are left as they are."""
    good = np.isfinite(scales) & (scales > 0)
    if not good.any():
        return np.ones_like(scales)
    middle = np.exp(np.log(scales[good]).mean())
    found: Floats = np.where(good, np.clip(scales / middle, _SPREAD**-0.5, _SPREAD**0.5), 1).astype(np.float32)
    return found


def largest_weights(decoder: Decoder, shared: Shared) -> Floats:
    """Of each column that is read, over all matrices that read it."""
    sizes = [np.abs(decoder.file.weights(decoder.file[name])).max(axis=0) for name in shared.read]
    found: Floats = np.max(sizes, axis=0)
    return found
