"""Cross-layer equalisation: the channels between two convolutions get like ranges, so that one scale fits them all.

Where ``f(s·x) = s·f(x)`` for positive ``s`` lies between them (nothing, ReLU, leaky ReLU), the first's output channel
and the second's input channel may be scaled against each other without a change of what is computed. Source: Nagel et
al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", equations 9 to 11. SiLU is not
such a function: a network of it has no pairs, and the pass says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codriver.core.config import setting

from ..recipe import Workshop
from .graph import Convolution, Wiring
from .onnx_file import read_onnx, write_model

Floats = NDArray[np.float32]
_HOMOGENEOUS = ("Relu", "LeakyRelu")
_STEADY = 1e-3


@dataclass(frozen=True)
class Equalise:
    """Config → transform, as :class:`codriver.optimize.recipe.Pass`."""

    rounds: int = setting(20, "Passes over all pairs; they stop when the scales are steady.", least=1)
    most: float = setting(1e4, "The largest scale of a channel, and one over the smallest.", least=1)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: those of ``read_onnx``."""
        model = read_onnx(source)
        wiring = Wiring(model)
        pairs = _pairs(wiring)
        for _ in range(self.rounds):
            moved = max((self._even(wiring, *pair) for pair in pairs), default=0.0)
            if moved < _STEADY:
                break
        write_model(model, target)
        return f"{len(pairs)} pairs of convolutions" + ("" if pairs else ": nothing here can be scaled across")

    def _even(self, wiring: Wiring, first: Convolution, second: Convolution) -> float:
        """How far from 1 the scales were, as a logarithm."""
        one, two = wiring.floats(first.weight), wiring.floats(second.weight)
        made = np.abs(one).reshape(len(one), -1).max(1)
        taken = _by_input(two, second.groups)
        read = np.abs(taken).max(axis=(1, 2))
        useful = (made > 0) & (read > 0)
        scale = np.where(useful, np.sqrt(np.where(useful, made, 1) / np.where(useful, read, 1)), 1)
        scale = np.clip(scale, 1 / self.most, self.most).astype(np.float32)
        wiring.put(first.weight, one / scale[:, None, None, None])
        if first.bias:
            wiring.put(first.bias, wiring.floats(first.bias) / scale)
        wiring.put(second.weight, _from_input(taken * scale[:, None, None], two.shape, second.groups))
        return float(np.abs(np.log(scale)).max())


def _pairs(wiring: Wiring) -> list[tuple[Convolution, Convolution]]:
    """Two that nothing else looks between, and whose weights nothing else reads."""
    by_node = {id(one.node): one for one in wiring.convolutions()}
    alone = {name for name, readers in wiring.readers.items() if len(readers) == 1}
    found = []
    for second in by_node.values():
        name = second.node.input[0]
        maker = wiring.maker.get(name)
        if maker is not None and maker.op_type in _HOMOGENEOUS and name in alone and name not in wiring.results:
            name = maker.input[0]
            maker = wiring.maker.get(name)
        first = by_node.get(id(maker)) if maker is not None else None
        own = first is not None and all(one in alone for one in (first.weight, first.bias, second.weight) if one)
        if first is not None and own and name in alone and name not in wiring.results:
            found.append((first, second))
    return found


def _by_input(weight: Floats, groups: int) -> Floats:
    """(out, in / groups, h, w) as (in, out / groups, h · w)."""
    out, inner, high, wide = weight.shape
    grouped = weight.reshape(groups, out // groups, inner, high * wide).transpose(0, 2, 1, 3)
    return grouped.reshape(groups * inner, out // groups, high * wide)


def _from_input(taken: Floats, shape: tuple[int, ...], groups: int) -> Floats:
    out, inner, high, wide = shape
    grouped = taken.reshape(groups, inner, out // groups, high * wide).transpose(0, 2, 1, 3)
    return grouped.reshape(out, inner, high, wide)
