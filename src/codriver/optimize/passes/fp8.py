"""Eight-bit floats, bit for bit as hardware has them, where there is no such hardware: encode, decode, and a pass.

Format: Micikevicius et al. 2022 (arXiv:2209.05433) and OCP's *8-bit Floating Point Specification* 1.0: E4M3 has no
infinity, one NaN, and 448 as its largest; E5M2 is IEEE's layout, 57344 its largest. Rounded to the nearest, ties to the
even code. No runtime here reads such files: the pass writes what the values come to in a plain type.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from codriver.core.config import setting

from ..ggml import Bytes, Floats
from ..gguf_file import GgufFile
from ..recipe import Workshop
from .inputs import write_changed
from .nearest import matrices_of

Form = Literal["e4m3", "e5m2"]
_SIGN = np.uint8(0x80)
_FRACTION_BITS = {"e4m3": 3, "e5m2": 2}
_LARGEST = {"e4m3": 0x7E, "e5m2": 0x7B}  # codes of 448 and 57344
_BEYOND = {"e4m3": 0x7F, "e5m2": 0x7C}  # what follows: a NaN, infinity
_NAN = {"e4m3": 0x7F, "e5m2": 0x7E}


def decode(codes: Bytes, form: Form) -> Floats:
    """The values of codes, in their shape."""
    found: Floats = _table(form)[codes]
    return found


def encode(values: Floats, form: Form, saturate: bool = True) -> Bytes:
    """Codes in the values' shape. What is too large becomes the largest there is, or without ``saturate`` what follows
    it (NaN, infinity); infinities too. NaN stays NaN.
    """
    size = np.abs(values)
    found = np.searchsorted(_middles(form), size).astype(np.uint8)
    # Just between two codes the search gives the lower; the even one is due.
    at = np.minimum(found, _LARGEST[form])
    found += (size == _middles(form)[at]) & (at & 1).astype(bool)
    if saturate:
        found = np.minimum(found, np.uint8(_LARGEST[form]))
    found = np.where(np.isnan(values), np.uint8(_NAN[form]), found)
    codes: Bytes = found | np.where(np.signbit(values), _SIGN, np.uint8(0))
    return codes


def largest(form: Form) -> float:
    return float(_table(form)[_LARGEST[form]])


@cache
def _table(form: Form) -> Floats:
    """The value of each code."""
    bits = _FRACTION_BITS[form]
    codes = np.arange(128)
    exponent, fraction = codes >> bits, (codes & ((1 << bits) - 1)) / (1 << bits)
    bias = 7 if form == "e4m3" else 15
    small = fraction * 2.0 ** (1 - bias)
    values = np.where(exponent == 0, small, (1 + fraction) * 2.0 ** (exponent - bias))
    if form == "e4m3":
        values[0x7F] = np.nan
    else:
        values[0x7C:] = (np.inf, np.nan, np.nan, np.nan)
    found: Floats = np.concatenate([values, -values]).astype(np.float32)
    return found


@cache
def _middles(form: Form) -> Floats:
    """Between each code and the next, as if the largest were followed by one more step."""
    values = _table(form)[: _LARGEST[form] + 1].astype(np.float64)
    up = np.append(values, 2 * values[-1] - values[-2])
    found: Floats = ((up[1:] + up[:-1]) / 2).astype(np.float32)
    return found


@dataclass(frozen=True)
class Fp8:
    """Round each matrix to eight-bit floats under a scale."""

    form: Form = setting("e4m3", "E4M3 for more fraction, E5M2 for more range.")
    scale: Literal["tensor", "channel"] = setting("channel", "One scale for a tensor, or one for each of its rows.")
    tables: bool = setting(False, "The embedding and the output matrix, too.")

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadModelFile`."""
        file = GgufFile(source)
        matrices = matrices_of(file, self.tables)
        write_changed(file, target, {tensor.name: self.rounded for tensor in matrices})
        return f"{len(matrices)} matrices rounded to {self.form}, a scale per {self.scale}"

    def rounded(self, weights: Floats) -> Floats:
        """What (rows, width) come to."""
        most = np.abs(weights).max(axis=1, keepdims=True)
        most = most if self.scale == "channel" else most.max(keepdims=True)
        scale = np.where(most > 0, most / largest(self.form), 1).astype(np.float32)
        found: Floats = decode(encode(weights / scale, self.form), self.form) * scale
        return found
