"""AdaRound: which of its two neighbours on the grid each weight goes to, learned from what goes into the layer.

The loss is the squared error of the layer's output, ``(w − q)ᵀ H (w − q)`` per output channel with ``H`` the second
moments of the inputs that a kernel sees, plus the regulariser that drives each choice to 0 or 1. Source: Nagel et al.
2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", equations 21 to 25 and section 4 for the
settings, without their asymmetric reconstruction behind the activation: moments stand for the pictures, so that no
picture is read again in the loop. Limit: kernels of more than ``WIDEST`` inputs are left to nearest, as a step takes
the square of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from .graph import Convolution, watch

Floats = NDArray[np.float32]
WIDEST = 576  # 64 channels of 3 × 3
_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
_RATE, _STEPS, _WEIGHT = 2e-2, 250, 0.01
_BETA_FIRST, _BETA_LAST, _WARM = 20.0, 2.0, 0.2
_ROWS = 4096  # patches of one picture that are looked at


def moments(
    model: onnx.ModelProto, layers: Sequence[Convolution], widths: Sequence[tuple[int, ...]], pictures: Sequence[Floats]
) -> dict[str, Floats]:
    """By weight: ``H`` as (groups, k, k), k = inputs · height · width of a kernel; ``widths``: the weights' shapes."""
    found: dict[str, Floats] = {}
    readers: dict[str, list[tuple[Convolution, tuple[int, ...]]]] = {}
    for layer, shape in zip(layers, widths, strict=True):
        readers.setdefault(layer.node.input[0], []).append((layer, shape))

    def see(name: str, values: Floats) -> None:
        for layer, shape in readers[name]:
            patches = _patches(values, layer, shape)
            found[layer.weight] = (
                found.get(layer.weight, np.float32(0)) + patches.transpose(0, 2, 1) @ patches / patches.shape[1]
            )

    watch(model, list(readers), pictures, see)
    return found


def rounded(weight: Floats, scale: Floats, moment: Floats, levels: tuple[int, int], seed: int = 0) -> NDArray[np.int32]:
    """``weight`` (out, …) on the grid ``scale`` (out,), as integers within ``levels``.

    By ``moment`` it is never worse than nearest.
    """
    out, groups = len(weight), len(moment)
    exact = (weight.reshape(out, -1) / scale[:, None]).astype(np.float32)
    floor = np.floor(exact)
    left = (exact - floor).reshape(groups, out // groups, -1)
    # In units of the grid each output channel is a problem of its own: H is brought to a like size for all layers.
    h = (moment / max(1e-12, float(np.trace(moment, axis1=1, axis2=2).mean()) / moment.shape[1])).astype(np.float32)
    choice = _learned(left, h)
    nearest = (left >= 0.5).astype(np.float32)
    better = _loss(choice - left, h) < _loss(nearest - left, h)
    ups = np.where(better[..., None], choice, nearest).reshape(out, -1)
    return np.asarray(np.clip(floor + ups, *levels), np.int32).reshape(weight.shape)


def _learned(left: Floats, h: Floats) -> Floats:
    """0 or 1 for each weight, by Adam on the rectified sigmoid's argument."""
    ratio = np.clip((left - _STRETCH_LOW) / (_STRETCH_HIGH - _STRETCH_LOW), 1e-4, 1 - 1e-4)
    value = -np.log(1 / ratio - 1)
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step in range(1, _STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-value))
        soft = np.clip(sigmoid * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW, 0, 1)
        pull = 2 * (soft - left) @ h
        if step > _WARM * _STEPS:
            done = (step / _STEPS - _WARM) / (1 - _WARM)
            beta = _BETA_LAST + (_BETA_FIRST - _BETA_LAST) * 0.5 * (1 + np.cos(done * np.pi))
            from_half = 2 * soft - 1
            pull -= _WEIGHT * 2 * beta * np.sign(from_half) * np.abs(from_half) ** (beta - 1)
        slope = np.where((soft > 0) & (soft < 1), sigmoid * (1 - sigmoid) * (_STRETCH_HIGH - _STRETCH_LOW), 0)
        pull *= slope
        first = 0.9 * first + 0.1 * pull
        second = 0.999 * second + 0.001 * pull**2
        value -= _RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return np.asarray(value >= 0, np.float32)


def _loss(error: Floats, h: Floats) -> Floats:
    return np.asarray(((error @ h) * error).sum(-1), np.float32)


def _patches(values: Floats, layer: Convolution, shape: tuple[int, ...]) -> Floats:
    """(groups, rows, k): what a kernel sees, at up to ``_ROWS`` places at equal distances."""
    told = {one.name: list(one.ints) for one in layer.node.attribute}
    pads, strides = told.get("pads", [0] * 4), told.get("strides", [1, 1])
    dilations = told.get("dilations", [1, 1])
    _, inner, high, wide = shape
    padded = np.pad(values[0], ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    spans = [(high - 1) * dilations[0] + 1, (wide - 1) * dilations[1] + 1]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
    windows = windows[:, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    places = windows.shape[1] * windows.shape[2]
    at = np.linspace(0, places - 1, min(places, _ROWS)).astype(int)
    rows, columns = np.divmod(at, windows.shape[2])
    taken = windows[:, rows, columns].reshape(layer.groups, inner, len(at), high * wide)
    return np.ascontiguousarray(taken.transpose(0, 2, 1, 3).reshape(layer.groups, len(at), -1), np.float32)
