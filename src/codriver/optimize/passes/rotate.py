"""Rotation: what stands out in single columns is spread over all, by a matrix that cancels out over the whole model.

Source: Ashkboos et al. 2024 (QuaRot, arXiv:2404.00456) and Liu et al. 2024 (SpinQuant, arXiv:2405.16406): R1, the
stream between the layers, and R2, the values of each head. Norms are folded into the matrices behind them, so that
stock llama.cpp runs the file, and the function stays what it was. R3 and R4 need work while the model runs, and are not
done. Where the embedding is the output matrix too, the last norm folds into one of them only: they part, which costs
a matrix of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue

from ..decoder import EMBEDDING, LAST_NORM, OUTPUT, Decoder
from ..ggml import Floats
from ..recipe import Workshop
from .hadamard import random_rotation
from .inputs import Change, changeable, inputs, value_width, write_changed

_ROWS = 8192  # of a large table that are rotated at once


@dataclass(frozen=True)
class Rotate:
    """Rotate the stream between the layers, the values of each head, or both."""

    stream: bool = setting(True, "Rotate what goes from layer to layer; a tied embedding parts from the output.")
    values: bool = setting(True, "Rotate the values of each head.")

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadModelFile`; :class:`BadConfigValue` where nothing is to be rotated."""
        if not self.stream and not self.values:
            raise BadConfigValue("The pass 'rotate' has neither 'stream' nor 'values' to rotate.", param="rotate")
        decoder = changeable(source)
        ways: dict[str, Change] = {}
        added: dict[str, tuple[str, Change]] = {}
        told = []
        if self.values:
            _values(decoder, random_rotation(value_width(decoder), shop.seed + 1), ways)
            told.append(f"the values of {decoder.layers * decoder.kv_heads} heads")
        if self.stream:
            turn = random_rotation(decoder.width, shop.seed)
            added = _stream(decoder, turn, ways)
            told.append(f"the stream of width {decoder.width}")
        write_changed(decoder.file, target, ways, added)
        costs = f", {OUTPUT} apart: {decoder.file[EMBEDDING].size_bytes:,} bytes more" if added else ""
        return f"rotated {' and '.join(told)}, seed {shop.seed}{costs}"


def _values(decoder: Decoder, turn: Floats, ways: dict[str, Change]) -> None:
    """Rows of the matrix that makes values, and columns of the one that reads them, head by head."""

    def made(weights: Floats) -> Floats:
        heads = weights.reshape(decoder.kv_heads, len(turn), -1)
        return (turn.T @ heads).reshape(weights.shape)

    def read(weights: Floats) -> Floats:
        return (weights.reshape(-1, len(turn)) @ turn).reshape(weights.shape)

    for layer in range(decoder.layers):
        ways[f"blk.{layer}.attn_v.weight"] = made
        ways[f"blk.{layer}.attn_output.weight"] = read
        if f"blk.{layer}.attn_v.bias" in decoder.file:
            ways[f"blk.{layer}.attn_v.bias"] = made


def _stream(decoder: Decoder, turn: Floats, ways: dict[str, Change]) -> dict[str, tuple[str, Change]]:
    """What reads the stream takes over its norm, and is turned with it; what writes to it is turned back."""
    file = decoder.file

    def read(norm: str, before: Change | None) -> Change:
        gains = file.weights(file[norm]).reshape(-1)

        def change(weights: Floats) -> Floats:
            return _turned(weights * gains, turn) if before is None else before(_turned(weights * gains, turn))

        return change

    def written(before: Change | None) -> Change:
        return lambda weights: turn.T @ (weights if before is None else before(weights))

    for shared in inputs(decoder):
        if shared.made.endswith("norm.weight"):
            ways.update({name: read(shared.made, ways.get(name)) for name in shared.read})
            ways[shared.made] = np.ones_like
        else:
            last = shared.read[0]
            ways.setdefault(last, lambda weights: weights)
            ways[last] = written(ways[last])
    ways[LAST_NORM] = np.ones_like
    ways[EMBEDDING] = lambda weights: _turned(weights, turn)
    if not decoder.tied:
        ways[OUTPUT] = read(LAST_NORM, None)
        return {}
    return {OUTPUT: (EMBEDDING, read(LAST_NORM, None))}


def _turned(weights: Floats, turn: Floats) -> Floats:
    """In place, a part of the rows at a time: an embedding may be as large as memory allows."""
    for begin in range(0, len(weights), _ROWS):
        weights[begin : begin + _ROWS] = weights[begin : begin + _ROWS] @ turn
    return weights
