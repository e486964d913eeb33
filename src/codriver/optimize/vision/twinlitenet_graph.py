"""TwinLiteNet's checkpoint as an ONNX graph, without torch: the net that ``twinlitenet.py`` has in torch.

The graph takes ``images``, float32 (1, 3, 360, 640), RGB from 0 to 1, and gives ``drivable`` and ``lanes``, each (1, 2,
360, 640): scores against and for. What changes no result is left out, for the graph in 32-bit floats as for what is
made of it: a batch norm behind a convolution is folded into it, numbers too small for a normal float32 are zero, and so
is an attention whose ``gamma`` puts it below the rounding of what it is added to (in the published weights the position
attention's is -4e-20). Sources: as in ``twinlitenet.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from codriver.core.errors import BadModelFile

from .torch_checkpoint import Array, read_checkpoint

Floats = NDArray[np.float32]
OUTPUTS = ("drivable", "lanes")
_HEIGHT, _WIDTH = 360, 640
_EPS = 1e-3
_RATES = (1, 2, 4, 8, 16)
_NOTHING = 1e-12  # a gamma below it: values here are between 1e-3 and 1e3, and float32 has 24 bits


def read_twinlitenet(file: Path) -> onnx.ModelProto:
    """Errors: :class:`MissingFile`; :class:`BadModelFile` naming the file, and the tensor that is missing, not known,
    of another shape or no number.
    """
    # It was saved from a model that was spread over several devices.
    tensors = {name.removeprefix("module."): values for name, values in read_checkpoint(file).items()}
    return _Builder(file, tensors).model()


class _Builder:
    """Each method takes the name of a value and gives that of what is made of it; sizes are checked by the weights."""

    def __init__(self, file: Path, tensors: dict[str, Array]) -> None:
        self._file, self._tensors = file, tensors
        self._used: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        coded = self._encoder("images")
        for at, name in enumerate(OUTPUTS, start=1):
            up = self._doubled(f"up_2_{at}", self._doubled(f"up_1_{at}", coded, 32, 16), 16, 8)
            self._doubled(f"classifier_{at}", up, 8, 2, name)
        if strays := sorted(set(self._tensors) - self._used):
            raise BadModelFile(
                f"{self._file} is no TwinLiteNet: it has a tensor {strays[0][:80]}, which the net does not know."
            )
        graph = helper.make_graph(
            self._nodes,
            "TwinLiteNet",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, _HEIGHT, _WIDTH])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, _HEIGHT, _WIDTH]) for name in OUTPUTS],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="codriver")
        model.ir_version = 8
        helper.set_model_props(model, {"codriver.pictures": "rgb 0..1 stretch"})
        onnx.checker.check_model(model, full_check=True)
        return model

    # ------------------------------------------------------------ the net

    def _encoder(self, images: str) -> str:
        half = self._shrunk("half", images)
        quarter = self._shrunk("quarter", half)
        at = "encoder.level1"
        level1 = self._activated(f"{at}.act", self._normed_conv(at, images, (16, 3, 3, 3), stride=2), 16)
        first = self._halved("encoder.level2_0", self._square("encoder.b1", [level1, half], 19), 19, 64)
        level2 = self._residual("encoder.level2.1", self._residual("encoder.level2.0", first, 64), 64)
        second = self._halved("encoder.level3_0", self._square("encoder.b2", [level2, first, quarter], 131), 131, 128)
        level3 = second
        for number in range(3):
            level3 = self._residual(f"encoder.level3.{number}", level3, 128)
        joined = self._node("Concat", [second, level3], "encoder.b3.in", axis=1)
        conv = self._normed_conv("encoder.b3", joined, (32, 256, 3, 3))
        both = self._activated("encoder.b3.act", conv, 32)
        by_place, by_channel = self._position_attention("encoder.sa", both), self._channel_attention("encoder.sc", both)
        one, two = self._square("encoder.conv_sa", [by_place], 32), self._square("encoder.conv_sc", [by_channel], 32)
        summed = self._node("Add", [one, two], "encoder.attended")
        conv = self._normed_conv("encoder.classifier", summed, (32, 32, 1, 1))
        return self._activated("encoder.classifier.act", conv, 32)

    def _square(self, at: str, inputs: list[str], channels: int) -> str:
        """3 × 3, as many channels out as in."""
        joined = self._node("Concat", inputs, f"{at}.in", axis=1) if len(inputs) > 1 else inputs[0]
        conv = self._normed_conv(at, joined, (channels, channels, 3, 3))
        return self._activated(f"{at}.act", conv, channels)

    def _merged(self, at: str, name: str, shape: Sequence[int], stride: int) -> str:
        """ESPNet's pyramid; ``shape``: inputs, outputs and the first kernel's side."""
        inputs, outputs, side = shape
        narrow = outputs // len(_RATES)
        reduced = self._conv(f"{at}.c1", name, (narrow, inputs, side, side), stride)
        d1 = self._conv(f"{at}.d1", reduced, (outputs - 4 * narrow, narrow, 3, 3))
        sums = [self._conv(f"{at}.d2", reduced, (narrow, narrow, 3, 3), rate=2)]
        for rate in _RATES[2:]:
            wider = self._conv(f"{at}.d{rate}", reduced, (narrow, narrow, 3, 3), rate=rate)
            sums.append(self._node("Add", [sums[-1], wider], f"{at}.sum{rate}"))
        return self._node("Concat", [d1, *sums], f"{at}.merged", axis=1)

    def _halved(self, at: str, name: str, inputs: int, outputs: int) -> str:
        normed = self._normed(f"{at}.bn", self._merged(at, name, (inputs, outputs, 3), 2), outputs)
        return self._activated(f"{at}.act", normed, outputs)

    def _residual(self, at: str, name: str, channels: int) -> str:
        summed = self._node("Add", [name, self._merged(at, name, (channels, channels, 1), 1)], f"{at}.sum")
        return self._activated(f"{at}.bn.act", self._normed(f"{at}.bn.bn", summed, channels), channels)

    def _doubled(self, at: str, name: str, inputs: int, outputs: int, to: str = "") -> str:
        scale, shift = self._scales(f"{at}.bn", outputs)
        weight = self._take(f"{at}.deconv.weight", (inputs, outputs, 2, 2)) * scale[None, :, None, None]
        given = [name, self._constant(f"{at}.weight", weight), self._constant(f"{at}.bias", shift)]
        conv = self._node("ConvTranspose", given, f"{at}.deconv", kernel_shape=[2, 2], strides=[2, 2])
        return self._activated(f"{at}.act", conv, outputs, to)

    def _position_attention(self, at: str, name: str) -> str:
        gamma = float(self._take(f"{at}.gamma", (1,))[0])
        inner = {"query": 4, "key": 4, "value": 32}
        given = {
            one: (
                self._take(f"{at}.{one}_conv.weight", (count, 32, 1, 1)),
                self._take(f"{at}.{one}_conv.bias", (count,)),
            )
            for one, count in inner.items()
        }
        if abs(gamma) < _NOTHING:
            return name
        flat = {}
        for one, (weight, bias) in given.items():
            constants = [self._constant(f"{at}.{one}.weight", weight), self._constant(f"{at}.{one}.bias", bias)]
            made = self._node("Conv", [name, *constants], f"{at}.{one}", kernel_shape=[1, 1])
            flat[one] = self._reshaped(made, f"{at}.{one}.flat", (1, inner[one], -1))
        turned = self._node("Transpose", [flat["query"]], f"{at}.query.turned", perm=[0, 2, 1])
        likeness = self._node("MatMul", [turned, flat["key"]], f"{at}.likeness")
        weights = self._node("Softmax", [likeness], f"{at}.weights", axis=-1)
        turned = self._node("Transpose", [weights], f"{at}.weights.turned", perm=[0, 2, 1])
        return self._blended(at, gamma, (self._node("MatMul", [flat["value"], turned], f"{at}.taken"), name))

    def _channel_attention(self, at: str, name: str) -> str:
        gamma = float(self._take(f"{at}.gamma", (1,))[0])
        if abs(gamma) < _NOTHING:
            return name
        flat = self._reshaped(name, f"{at}.flat", (1, 32, -1))
        turned = self._node("Transpose", [flat], f"{at}.turned", perm=[0, 2, 1])
        likeness = self._node("MatMul", [flat, turned], f"{at}.likeness")
        most = self._node("ReduceMax", [likeness], f"{at}.most", axes=[-1], keepdims=1)
        weights = self._node("Softmax", [self._node("Sub", [most, likeness], f"{at}.unlike")], f"{at}.weights", axis=-1)
        return self._blended(at, gamma, (self._node("MatMul", [weights, flat], f"{at}.taken"), name))

    def _blended(self, at: str, gamma: float, values: tuple[str, str]) -> str:
        taken, name = values
        scaled = self._node("Mul", [taken, self._constant(f"{at}.gamma", np.array([gamma]))], f"{at}.scaled")
        shape = (1, 32, _HEIGHT // 8, _WIDTH // 8)
        return self._node("Add", [self._reshaped(scaled, f"{at}.planes", shape), name], f"{at}.out")

    # ------------------------------------------------------------ layers

    def _normed_conv(self, at: str, name: str, shape: tuple[int, ...], stride: int = 1) -> str:
        scale, shift = self._scales(f"{at}.bn", shape[0])
        weight = self._take(f"{at}.conv.weight", shape) * scale[:, None, None, None]
        constants = [self._constant(f"{at}.w", weight), self._constant(f"{at}.b", shift)]
        return self._convolved(at, [name, *constants], shape[2], stride)

    def _conv(self, at: str, name: str, shape: tuple[int, ...], stride: int = 1, rate: int = 1) -> str:
        constants = [self._constant(f"{at}.w", self._take(f"{at}.conv.weight", shape))]
        return self._convolved(at, [name, *constants], shape[2], stride, rate)

    def _convolved(self, at: str, inputs: list[str], side: int, stride: int, rate: int = 1) -> str:
        """The same height and width again, at a stride of 1."""
        return self._node(
            "Conv", inputs, f"{at}.conv", kernel_shape=[side] * 2, strides=[stride] * 2, dilations=[rate] * 2,
            pads=[rate * (side // 2)] * 4,
        )  # fmt: skip

    def _normed(self, at: str, name: str, channels: int) -> str:
        scale, shift = (part[:, None, None] for part in self._scales(at, channels))
        scaled = self._node("Mul", [name, self._constant(f"{at}.scale", scale)], f"{at}.scaled")
        return self._node("Add", [scaled, self._constant(f"{at}.shift", shift)], f"{at}.out")

    def _activated(self, at: str, name: str, channels: int, to: str = "") -> str:
        slope = self._take(f"{at}.weight", (channels,))[:, None, None]
        return self._node("PRelu", [name, self._constant(f"{at}.slope", slope)], to or f"{at}.out")

    def _shrunk(self, to: str, name: str) -> str:
        return self._node(
            "AveragePool", [name], to, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1
        )

    # ------------------------------------------------------------ parts

    def _scales(self, at: str, channels: int) -> tuple[Floats, Floats]:
        """A batch norm as a factor and a summand per channel."""
        gamma, beta, mean, variance = (
            self._take(f"{at}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var")
        )
        self._used.add(f"{at}.num_batches_tracked")
        if (variance < 0).any():
            raise BadModelFile(f"The tensor {at}.running_var of {self._file} holds a negative variance.")
        scale = (gamma / np.sqrt(variance + _EPS)).astype(np.float32)
        return scale, (beta - mean * scale).astype(np.float32)

    def _take(self, name: str, shape: tuple[int, ...]) -> Floats:
        values = self._tensors.get(name)
        if values is None:
            raise BadModelFile(f"{self._file} is no TwinLiteNet: it has no tensor {name}.")
        if values.shape != shape:
            raise BadModelFile(f"{self._file} is no TwinLiteNet: {name} has shape {values.shape}, not {shape}.")
        if not np.isfinite(values).all():
            raise BadModelFile(f"The tensor {name} of {self._file} holds what is no number.")
        self._used.add(name)
        return values.astype(np.float32)

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        if values.dtype.kind == "f":
            values = values.astype(np.float32)
            values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def _reshaped(self, name: str, to: str, shape: tuple[int, ...]) -> str:
        return self._node("Reshape", [name, self._constant(f"{to}.shape", np.array(shape, np.int64))], to)

    def _node(self, kind: str, inputs: Sequence[str], output: str, **settings: Any) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **settings))
        return output
