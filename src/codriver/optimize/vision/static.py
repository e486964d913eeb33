"""Static int8: weights and values between convolutions as integers with scales that pictures gave (QDQ, ONNX
Runtime).

ONNX Runtime's quantiser places the pairs of ``QuantizeLinear`` and ``DequantizeLinear``; the ranges, the rounding,
the correction of biases and what stays float are decided here. Only what a convolution reads, in the end, is made
integer: what comes behind the last ones (boxes decoded, probabilities) mixes values of unlike ranges, and costs
nothing.

``placed``: ``throughout`` rounds what comes out of each layer too, which ONNX Runtime needs to see before it computes
one in integers. ``inputs`` rounds only what convolutions read: activations between two of them (PReLU, batch norms,
sums) work on what the first computed, unrounded, and OpenVINO does them, and the rounding, in the convolution's own
loop. It loses less, and there it is faster; ONNX Runtime computes such a file in floats. A convolution that reads a
picture's three channels stays float then: rounding the picture costs more than its integers save.

Values are unsigned, weights signed. On a processor without VNNI the product of the two saturates 16 bits in pairs
(``vpmaddubsw``): ``weights = "s7"`` cannot saturate and has half the grid, ``u8`` cannot either and runs slower.
Which one loses least is measured, not assumed. Sources: Jacob et al. 2018 (integer arithmetic); Nagel et al. 2019 and
2021 (bias correction, the order of the steps).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quantize import quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue, BadModelFile

from ..recipe import Workshop
from .adaround import WIDEST, moments, rounded
from .calibration import Histograms, Method, means
from .graph import Convolution, Wiring
from .mixed import Bounds, kept_float
from .onnx_file import read_onnx, write_model
from .pictures import feed_of
from .prepare import converted, named
from .tasks import task_of

Floats = NDArray[np.float32]
Weights = Literal["s8", "s7", "u8"]
Placed = Literal["throughout", "inputs"]
# What may be integer. Softmax, Exp and the like are not: their results span decades.
KINDS = (
    "Conv", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Add", "Mul", "Concat", "Split", "Slice", "Gather", "MaxPool",
    "AveragePool", "GlobalAveragePool", "Resize", "Reshape", "Transpose", "Pad", "Squeeze", "Unsqueeze", "Flatten",
)  # fmt: skip


@dataclass(frozen=True)
class StaticInt8:
    """Config → transform, as :class:`codriver.optimize.recipe.Pass`. ``shop.pictures`` calibrate."""

    ranges: Method = setting("mse", "How the range of a value is found.")
    percentile: float = setting(0.9999, "The share of a value that 'percentile' keeps.", least=0.5)
    weights: Weights = setting("s8", "The grid of weights: s8, s7 (cannot saturate without VNNI), u8.")
    rounding: Literal["adaround", "nearest"] = setting("nearest", "How weights are rounded.")
    correct_bias: bool = setting(True, "Take out what rounding adds to each channel's mean.")
    most_noise: float = setting(0.0, "Layers stay float until the noise is at most this; 0 keeps none.", least=0)
    look: str = setting("", "How pictures go in, where the file does not say.")
    placed: Placed = setting("throughout", "Where values are integer: throughout, or where convolutions read: inputs.")

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadConfigValue` without pictures; those of ``read_onnx`` and of the pictures."""
        if not shop.pictures:
            raise BadConfigValue("Static int8 needs pictures to calibrate on; none were given.", param="pictures")
        model = converted(read_onnx(source), source)
        named(model)
        feed = feed_of(model, source, self.look or None)
        pictures = [feed.read(file) for file in shop.pictures]
        plan = _Plan(model, pictures, self)
        kept: Sequence[str] = ()
        if self.most_noise:
            task = task_of(model, feed.height, feed.width)
            bounds = Bounds(self.most_noise, pictures[:: max(1, len(pictures) // 4)], task)
            kept = kept_float(model, plan.quantised, bounds, shop.run("sees which layers must stay float"))
        write_model(plan.quantised(kept), target)
        return plan.told(kept)


@dataclass(frozen=True)
class DynamicInt8:
    """Scales of values are worked out as the graph runs: no pictures, and slower than static."""

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: those of ``read_onnx``; :class:`BadModelFile` where the runtime's quantiser gives up."""
        model = converted(read_onnx(source), source)
        try:
            quantize_dynamic(model, target, per_channel=False, weight_type=QuantType.QUInt8)
        except (ValueError, RuntimeError, KeyError) as error:
            raise BadModelFile(f"The graph {source} cannot be made int8 as it runs: {str(error)[:200]}") from None
        return "scales of values as it runs, one scale per weight"


def runtime_default(source: Path, target: Path, pictures: Sequence[Floats]) -> None:
    """ONNX Runtime's own static quantisation as it comes, behind its own preparation: what is to be better than."""
    name = read_onnx(source).graph.input[0].name

    class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._left = iter(pictures)

        def get_next(self) -> dict[str, Floats] | None:
            one = next(self._left, None)
            return None if one is None else {name: one}

    prepared = target.with_name(f"{target.stem}-prepared.onnx")
    # Symbols in shapes are for transformers; they are sympy's work, which is not installed for this alone.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, target, _Reader())


class _Plan:
    """What is the same whichever layers stay float: the ranges, and each layer's integers."""

    def __init__(self, model: onnx.ModelProto, pictures: Sequence[Floats], how: StaticInt8) -> None:
        self._model, self._how = model, how
        self._wiring = Wiring(model)
        self._layers = self._wiring.convolutions()
        self._integer = _before_convolutions(self._wiring) if how.placed == "throughout" else self._wide()
        values = sorted({name for node in self._integer for name in (*node.input, *node.output)
                         if name and name not in self._wiring.constants})  # fmt: skip
        floats = _float_values(model)
        self._ranges = Histograms(model, [one for one in values if one in floats], pictures).ranges(
            how.ranges, how.percentile
        )
        self._means: Mapping[str, Floats] = {}
        if how.correct_bias:
            self._means = means(model, sorted({one.node.input[0] for one in self._layers}), pictures)
        self._moments: dict[str, Floats] = {}
        if how.rounding == "adaround":
            fit = [one for one in self._layers if np.prod(self._wiring.constants[one.weight].dims[1:]) <= WIDEST]
            shapes = [tuple(self._wiring.constants[one.weight].dims) for one in fit]
            self._moments = moments(model, fit, shapes, pictures)
        self._rounded: dict[str, NDArray[np.int32]] = {}

    def quantised(self, kept: Sequence[str] = ()) -> onnx.ModelProto:
        """``kept``: names of nodes that stay float."""
        names = [node.name for node in self._integer if node.name not in set(kept)]
        made = self._placed(names)
        wiring = Wiring(made)
        for layer in self._layers:
            if layer.node.name in names and layer.weight + "_quantized" in wiring.constants:
                self._finish(wiring, layer)
        del made.metadata_props[:]
        made.metadata_props.extend(self._model.metadata_props)
        return made

    def told(self, kept: Sequence[str]) -> str:
        how = self._how
        convolutions = {one.node.name for one in self._layers}
        floats = len(convolutions - ({node.name for node in self._integer} - set(kept)))
        learned = f", {len(self._moments)} layers rounded by AdaRound" if self._moments else ""
        return (
            f"{len(convolutions) - floats} of {len(convolutions)} convolutions in int8, ranges by {how.ranges}, "
            f"weights {how.weights} per channel{learned}{', biases corrected' if how.correct_bias else ''}"
            f"{', values where convolutions read them' if how.placed == 'inputs' else ''}"
        )

    def _wide(self) -> list[onnx.NodeProto]:
        """The convolutions that read more than a picture."""
        pictures = {one.name for one in self._model.graph.input}
        return [one.node for one in self._layers if one.node.input[0] not in pictures]

    def _placed(self, names: list[str]) -> onnx.ModelProto:
        ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in self._ranges.items()}
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        results = [] if self._how.placed == "throughout" else ["Conv"]
        quantiser = QDQQuantizer(
            onnx.shape_inference.infer_shapes(copy), True, self._how.weights == "s7",
            QuantType.QUInt8 if self._how.weights == "u8" else QuantType.QInt8, QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, ranges), names, [], list(KINDS),
            {"OpTypesToExcludeOutputQuantization": results},
        )  # fmt: skip
        logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))
        quantiser.quantize_model()
        quantiser.model.topological_sort()  # it appends what it adds, and the standard wants makers before readers
        made: onnx.ModelProto = quantiser.model.model
        return made

    def _finish(self, wiring: Wiring, layer: Convolution) -> None:
        """Its integers by AdaRound, and its bias without what rounding adds to the mean."""
        name = layer.weight
        scale = wiring.floats(name + "_scale").reshape(-1)
        zero = wiring.floats(name + "_zero_point").reshape(-1).astype(np.int32)
        weight = self._wiring.floats(name)
        if scale.size != len(weight):
            return  # one scale for all: ONNX Runtime does so where the weight is read by something else as well
        shape = (-1,) + (1,) * (weight.ndim - 1)
        integers = wiring.floats(name + "_quantized").astype(np.int32) - zero.reshape(shape)
        if name in self._moments:
            if name not in self._rounded:
                levels = (int(integers.min()), int(integers.max()))
                self._rounded[name] = rounded(weight, scale, self._moments[name], levels)
            integers = self._rounded[name]
            kind = np.uint8 if self._how.weights == "u8" else np.int8
            wiring.put(name + "_quantized", (integers + zero.reshape(shape)).astype(kind))
        if layer.bias + "_quantized" in wiring.constants and layer.node.input[0] in self._means:
            lost = (weight - integers * scale.reshape(shape)).sum(axis=(2, 3))
            mean = self._means[layer.node.input[0]].reshape(layer.groups, 1, -1)
            shift = (lost.reshape(layer.groups, -1, lost.shape[1]) * mean).sum(-1).reshape(-1)
            steps = wiring.floats(layer.bias + "_quantized_scale").reshape(-1)
            told = wiring.floats(layer.bias + "_quantized") + np.rint(shift / steps)
            wiring.put(layer.bias + "_quantized", np.clip(told, -(2**31), 2**31 - 1).astype(np.int32))


def _before_convolutions(wiring: Wiring) -> list[onnx.NodeProto]:
    """The convolutions, and every node whose result some convolution reads in the end, in the graph's order."""
    wanted: set[str] = set()
    found = []
    for node in reversed(wiring.model.graph.node):
        if node.op_type == "Conv" or any(name in wanted for name in node.output):
            wanted.update(node.input)
            if node.op_type in KINDS:
                found.append(node)
    return found[::-1]


def _float_values(model: onnx.ModelProto) -> set[str]:
    told = onnx.shape_inference.infer_shapes(model).graph
    return {
        one.name
        for one in (*told.value_info, *told.input, *told.output)
        if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
