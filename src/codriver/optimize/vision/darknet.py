"""A Darknet detector (``.cfg`` + ``.weights``) as an ONNX graph with its boxes decoded.

The graph takes ``images``, float32 (1, 3, height, width), RGB from 0 to 1, and gives ``output``, (1, boxes, 5 +
classes): centre x, centre y, width, height in pixels of the input, objectness, and a probability per class. The rules
kept: a layer or a setting that is not known is refused, never skipped; the weights must be used up to the last byte;
sizes are worked out before memory is taken. Sources: the format and the arithmetic are Darknet's (``parser.c``,
``yolo_layer.c``); Redmon and Farhadi 2018 (YOLOv3), Bochkovskiy et al. 2020 (YOLOv4, ``scale_x_y``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from codriver.core.errors import BadModelFile, MissingFile

Floats = NDArray[np.float32]
Shape = tuple[int, int, int]  # channels, height, width
_LARGEST_SIDE, _MOST_CHANNELS, _MOST_LAYERS, _LARGEST_CFG_BYTES = 4096, 16384, 1024, 1 << 20
_BATCH_NORM_EPSILON = 1e-5  # what Darknet divides by is sqrt(variance) + 1e-6, and sqrt(variance + 1e-5) later on
# What only training, or a choice that is made after the boxes, reads.
_TRAINING = frozenset((
    "batch", "subdivisions", "momentum", "decay", "angle", "saturation", "exposure", "hue", "learning_rate",
    "burn_in", "max_batches", "policy", "steps", "scales", "jitter", "cls_normalizer", "iou_normalizer", "iou_loss",
    "ignore_thresh", "truth_thresh", "random", "resize", "nms_kind", "beta_nms", "num", "max", "max_delta",
    "mosaic", "cutmix", "mixup", "blur", "flip", "stopbackward", "dont_load_scales",
))  # fmt: skip
_KNOWN = {
    "net": frozenset({"width", "height", "channels"}),
    "convolutional": frozenset(
        {"batch_normalize", "filters", "size", "stride", "pad", "padding", "activation", "groups"}
    ),
    "maxpool": frozenset({"size", "stride", "padding"}),
    "route": frozenset({"layers", "groups", "group_id"}),
    "shortcut": frozenset({"from", "activation"}),
    "upsample": frozenset({"stride"}),
    "yolo": frozenset({"mask", "anchors", "classes", "scale_x_y"}),
}  # fmt: skip
_ACTIVATIONS = ("linear", "leaky", "relu", "logistic", "mish", "swish")


@dataclass(frozen=True)
class Layer:
    """A section of the ``.cfg``. ``number`` counts from 0 behind ``[net]``, as Darknet does; ``line`` from 1."""

    kind: str
    number: int
    line: int
    settings: dict[str, str] = field(default_factory=dict)


def read_darknet(weights: Path, cfg: Path | None = None) -> onnx.ModelProto:
    """``cfg``: the file of that name beside the weights where none is named.

    Errors: :class:`MissingFile`; :class:`BadModelFile` naming the layer with its line, and in the weights the offset.
    """
    plan = cfg if cfg is not None else weights.with_suffix(".cfg")
    layers = _parsed(plan)
    return _Builder(plan, layers, _Weights(weights)).model()


def _parsed(file: Path) -> list[Layer]:
    """The sections in order; the first is ``[net]``."""
    if not file.is_file():
        raise MissingFile(f"The layers of a Darknet model are in its .cfg file, and {file} does not exist.")
    if file.stat().st_size > _LARGEST_CFG_BYTES:
        raise BadModelFile(f"The file {file} is too large for a Darknet .cfg: {file.stat().st_size:,} bytes.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadModelFile(f"The file {file} is no Darknet .cfg: byte {error.start} is no text.") from None
    layers: list[Layer] = []
    for at, line in enumerate(lines, start=1):
        text = line.partition("#")[0].partition(";")[0].strip()
        if text.startswith("[") and text.endswith("]"):
            layers.append(Layer(text[1:-1].strip().lower(), len(layers) - 1, at))
        elif text:
            key, found, value = (part.strip() for part in text.partition("="))
            if not found or not layers or not key:
                raise BadModelFile(
                    f"Line {at} of {file} is neither a [section] nor a KEY=VALUE below one: '{text[:60]}'."
                )
            layers[-1].settings[key] = value
    if not layers or layers[0].kind not in ("net", "network"):
        raise BadModelFile(f"The file {file} is no Darknet .cfg: it does not begin with [net].")
    if len(layers) > _MOST_LAYERS:
        raise BadModelFile(f"The file {file} has {len(layers)} layers; {_MOST_LAYERS} are read at most.")
    layers[0] = Layer("net", -1, layers[0].line, layers[0].settings)
    return layers


class _Weights:
    """Floats in file order behind a header of three int32 and the count of pictures seen in training."""

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise MissingFile(f"The Darknet weights {file} do not exist.")
        self.file = file
        self.size = file.stat().st_size
        with file.open("rb") as opened:
            head = opened.read(20)
        if len(head) < 12:
            raise BadModelFile(f"The file {file} ends within its header, at byte {len(head)}.")
        major, minor, _ = struct.unpack_from("<iii", head)
        if not (0 <= major < 1000 and 0 <= minor < 1000):
            raise BadModelFile(f"The file {file} has no Darknet header: it begins with version {major}.{minor}.")
        self.offset = 20 if major * 10 + minor >= 2 else 16

    def take(self, count: int, layer: Layer, what: str) -> Floats:
        if self.offset + 4 * count > self.size:
            raise BadModelFile(
                f"The file {self.file} ends within the {what} of layer {layer.number} ({layer.kind}): they take "
                f"{4 * count:,} bytes at byte {self.offset:,}, and the file has {self.size:,}."
            )
        found = np.fromfile(self.file, "<f4", count, offset=self.offset)
        bad = np.flatnonzero(~np.isfinite(found))
        if bad.size:
            raise BadModelFile(
                f"The {what} of layer {layer.number} ({layer.kind}) in {self.file} are not all numbers: "
                f"see byte {self.offset + 4 * int(bad[0]):,}."
            )
        self.offset += 4 * count
        return found

    def refuse_rest(self) -> None:
        if self.offset != self.size:
            raise BadModelFile(
                f"The file {self.file} goes on behind its last layer: {self.size - self.offset:,} bytes at byte "
                f"{self.offset:,}. It belongs to another .cfg."
            )


class _Builder:
    """Walks the layers; ``made`` holds each layer's tensor and shape, as later layers name them."""

    def __init__(self, cfg: Path, layers: list[Layer], weights: _Weights) -> None:
        self._cfg, self._layers, self._weights = cfg, layers, weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._made: list[tuple[str, Shape]] = []
        self._heads: list[str] = []
        self._boxes = 0
        self._classes: set[int] = set()

    def model(self) -> onnx.ModelProto:
        net = self._layers[0]
        self._refuse_strays(net)
        self._input: Shape = (
            self._number(net, "channels", 1, 16, 3),
            self._number(net, "height", 1, _LARGEST_SIDE, 416),
            self._number(net, "width", 1, _LARGEST_SIDE, 416),
        )
        at: tuple[str, Shape] = ("images", self._input)
        kinds: dict[str, Callable[[Layer, str, Shape], tuple[str, Shape]]] = {
            "convolutional": self._convolution, "maxpool": self._maxpool, "route": self._route,
            "shortcut": self._shortcut, "upsample": self._upsample, "yolo": self._yolo,
        }  # fmt: skip
        for layer in self._layers[1:]:
            if layer.kind not in kinds:
                raise self._bad(layer, f"it is of a kind that is not known; known: {', '.join(kinds)}")
            self._refuse_strays(layer)
            at = kinds[layer.kind](layer, *at)
            self._made.append(at)
        self._weights.refuse_rest()
        if not self._heads or len(self._classes) != 1:
            raise BadModelFile(f"The network in {self._cfg} has no [yolo] layer, or several with different classes.")
        return self._finished()

    def _finished(self) -> onnx.ModelProto:
        width = 5 + next(iter(self._classes))
        self._node("Concat", self._heads, "output", axis=1)
        graph = helper.make_graph(
            self._nodes,
            self._cfg.stem,
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, *self._input])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, self._boxes, width])],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="codriver")
        model.ir_version = 8
        # How pictures go in and boxes come out is not in an ONNX graph: it is told beside it.
        helper.set_model_props(model, {"codriver.pictures": "rgb 0..1", "codriver.boxes": "decoded"})
        onnx.checker.check_model(model, full_check=True)
        return model

    # ------------------------------------------------------------ layers

    def _convolution(self, layer: Layer, name: str, shape: Shape) -> tuple[str, Shape]:
        filters = self._number(layer, "filters", 1, _MOST_CHANNELS)
        size, stride = self._number(layer, "size", 1, 31), self._number(layer, "stride", 1, 8)
        groups = self._number(layer, "groups", 1, _MOST_CHANNELS)
        if shape[0] % groups or filters % groups:
            raise self._bad(layer, f"{shape[0]} channels to {filters} filters cannot be split into {groups} groups")
        pad = size // 2 if self._number(layer, "pad", 0, 1, 0) else self._number(layer, "padding", 0, 31, 0)
        normed = bool(self._number(layer, "batch_normalize", 0, 1, 0))
        bias = self._weights.take(filters, layer, "biases")
        scale = np.ones(filters, np.float32)
        if normed:
            gamma, mean, variance = (
                self._weights.take(filters, layer, what) for what in ("scales", "means", "variances")
            )
            # Negative only in a damaged file.
            if (variance < 0).any():
                raise self._bad(layer, f"a variance in {self._weights.file} is negative")
            scale = gamma / np.sqrt(variance + _BATCH_NORM_EPSILON)
            bias = bias - mean * scale
        count = filters * (shape[0] // groups) * size * size
        kernel = self._weights.take(count, layer, "weights").reshape(filters, shape[0] // groups, size, size)
        at = f"layer{layer.number}"
        inputs = [name, self._constant(f"{at}.weight", kernel * scale[:, None, None, None])]
        inputs.append(self._constant(f"{at}.bias", bias))
        high, wide = ((side + 2 * pad - size) // stride + 1 for side in shape[1:])
        self._node(
            "Conv", inputs, f"{at}.conv", kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups
        )
        return self._activated(layer, f"{at}.conv"), self._checked(layer, (filters, high, wide))

    def _activated(self, layer: Layer, name: str) -> str:
        kind, to = layer.settings.get("activation", "logistic"), f"layer{layer.number}.active"
        if kind not in _ACTIVATIONS:
            raise self._bad(layer, f"its activation '{kind[:40]}' is not known; known: {', '.join(_ACTIVATIONS)}")
        if kind == "linear":
            return name
        if kind == "leaky":
            self._node("LeakyRelu", [name], to, alpha=0.1)
        elif kind == "mish":
            self._node("Softplus", [name], f"{to}.softplus")
            self._node("Tanh", [f"{to}.softplus"], f"{to}.tanh")
            self._node("Mul", [name, f"{to}.tanh"], to)
        elif kind == "swish":
            self._node("Sigmoid", [name], f"{to}.sigmoid")
            self._node("Mul", [name, f"{to}.sigmoid"], to)
        else:
            self._node({"relu": "Relu", "logistic": "Sigmoid"}[kind], [name], to)
        return to

    def _maxpool(self, layer: Layer, name: str, shape: Shape) -> tuple[str, Shape]:
        stride = self._number(layer, "stride", 1, 8)
        size = self._number(layer, "size", 1, 31, stride)
        pad = self._number(layer, "padding", 0, 31, size - 1)
        if pad >= 2 * size:
            raise self._bad(layer, f"its padding {pad} is wider than its windows of {size}")
        before, after = pad // 2, pad - pad // 2
        high, wide = ((side + pad - size) // stride + 1 for side in shape[1:])
        self._node(
            "MaxPool", [name], f"layer{layer.number}.pool", kernel_shape=[size] * 2, strides=[stride] * 2,
            pads=[before, before, after, after],
        )  # fmt: skip
        return f"layer{layer.number}.pool", self._checked(layer, (shape[0], high, wide))

    def _route(self, layer: Layer, name: str, shape: Shape) -> tuple[str, Shape]:
        sources = [self._earlier(layer, told) for told in layer.settings.get("layers", "").split(",")]
        if any(one[1][1:] != sources[0][1][1:] for one in sources):
            raise self._bad(layer, "the layers that it joins differ in height or width")
        groups = self._number(layer, "groups", 1, 64, 1)
        number = self._number(layer, "group_id", 0, groups - 1, 0)
        parts, channels = [], 0
        for index, (source, (depth, _, _)) in enumerate(sources):
            if depth % groups:
                raise self._bad(layer, f"{depth} channels cannot be split into {groups} groups")
            part, width = source, depth // groups
            if groups > 1:
                part = f"layer{layer.number}.part{index}"
                bounds = (("from", number * width), ("to", (number + 1) * width), ("axis", 1))
                ends = [self._ints(f"{part}.{at}", [value]) for at, value in bounds]
                self._node("Slice", [source, *ends], part)
            parts.append(part)
            channels += width
        made = parts[0]
        if len(parts) > 1:
            made = f"layer{layer.number}.route"
            self._node("Concat", parts, made, axis=1)
        return made, self._checked(layer, (channels, *sources[0][1][1:]))

    def _shortcut(self, layer: Layer, name: str, shape: Shape) -> tuple[str, Shape]:
        other, its = self._earlier(layer, layer.settings.get("from", ""))
        if its != shape:
            raise self._bad(layer, f"it adds {its} to {shape}")
        self._node("Add", [name, other], f"layer{layer.number}.sum")
        return self._activated(layer, f"layer{layer.number}.sum"), shape

    def _upsample(self, layer: Layer, name: str, shape: Shape) -> tuple[str, Shape]:
        by, made = self._number(layer, "stride", 1, 8, 2), f"layer{layer.number}.up"
        scales = self._constant(f"{made}.scales", np.array([1, 1, by, by], np.float32))
        self._node("Resize", [name, "", scales], made, mode="nearest", nearest_mode="floor",
                   coordinate_transformation_mode="asymmetric")  # fmt: skip
        return made, self._checked(layer, (shape[0], shape[1] * by, shape[2] * by))

    def _yolo(self, layer: Layer, name: str, shape: Shape) -> tuple[str, Shape]:
        """Decoded: sigmoid centres on their cells, ``scale_x_y`` around the middle, sizes as powers of the anchors'."""
        classes = self._number(layer, "classes", 1, 10_000)
        anchors = np.array(self._floats(layer, "anchors"), np.float32)
        mask = [int(one) for one in self._floats(layer, "mask")]
        if anchors.size % 2 or not mask or any(not 0 <= one < anchors.size // 2 for one in mask):
            raise self._bad(layer, "its mask names anchors that it does not have")
        spread = self._floats(layer, "scale_x_y", "1.0")[0]
        depth, high, wide = shape
        count, width = len(mask), 5 + classes
        if depth != count * width:
            raise self._bad(layer, f"{count} anchors with {classes} classes take {count * width} channels, not {depth}")
        at, boxes = f"layer{layer.number}", count * high * wide
        self._node("Reshape", [name, self._ints(f"{at}.split", [count, width, high * wide])], f"{at}.split.out")
        self._node("Transpose", [f"{at}.split.out"], f"{at}.rows", perm=[0, 2, 1])
        self._node("Reshape", [f"{at}.rows", self._ints(f"{at}.flat", [1, boxes, width])], f"{at}.raw")
        for part, begin, end in (("xy", 0, 2), ("wh", 2, 4), ("scores", 4, width)):
            ends = [self._ints(f"{at}.{part}.{end_name}", [value])
                    for end_name, value in (("from", begin), ("to", end), ("axis", 2))]  # fmt: skip
            self._node("Slice", [f"{at}.raw", *ends], f"{at}.{part}.raw")
        stride = np.array([self._input[2] / wide, self._input[1] / high], np.float32)
        cells = np.stack(np.meshgrid(np.arange(wide), np.arange(high)), -1).reshape(1, -1, 2)
        centres = np.tile(cells - (spread - 1) / 2, (count, 1, 1)).reshape(1, boxes, 2).astype(np.float32)
        sizes = np.repeat(anchors.reshape(-1, 2)[mask], high * wide, axis=0).reshape(1, boxes, 2)
        self._node("Sigmoid", [f"{at}.xy.raw"], f"{at}.xy.unit")
        self._node("Mul", [f"{at}.xy.unit", self._constant(f"{at}.xy.scale", stride * spread)], f"{at}.xy.scaled")
        self._node("Add", [f"{at}.xy.scaled", self._constant(f"{at}.xy.cells", centres * stride)], f"{at}.xy")
        self._node("Exp", [f"{at}.wh.raw"], f"{at}.wh.unit")
        self._node("Mul", [f"{at}.wh.unit", self._constant(f"{at}.wh.anchors", sizes)], f"{at}.wh")
        self._node("Sigmoid", [f"{at}.scores.raw"], f"{at}.scores")
        self._node("Concat", [f"{at}.xy", f"{at}.wh", f"{at}.scores"], f"{at}.boxes", axis=2)
        self._heads.append(f"{at}.boxes")
        self._boxes += boxes
        self._classes.add(classes)
        return name, shape

    # ------------------------------------------------------------ what layers need

    def _earlier(self, layer: Layer, told: str) -> tuple[str, Shape]:
        try:
            number = int(told)
        except ValueError:
            raise self._bad(layer, f"it names no layer: '{told[:40]}'") from None
        number = number + layer.number if number < 0 else number
        if not 0 <= number < len(self._made):
            raise self._bad(layer, f"it names the layer {number}, which is not before it")
        return self._made[number]

    def _number(self, layer: Layer, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number from ``least`` to ``most``; ``default`` is ``least`` where it is not given."""
        told = layer.settings.get(key)
        if told is None:
            if layer.kind == "convolutional" and key == "filters":
                raise self._bad(layer, "it has no 'filters'")
            return least if default is None else default
        try:
            value = int(told)
        except ValueError:
            raise self._bad(layer, f"'{key}' is no whole number: '{told[:40]}'") from None
        if not least <= value <= most:
            raise self._bad(layer, f"'{key}' is {value}; it may be {least} to {most}")
        return value

    def _floats(self, layer: Layer, key: str, default: str = "") -> list[float]:
        told = layer.settings.get(key, default)
        try:
            found = [float(part) for part in told.split(",") if part.strip()]
        except ValueError:
            found = []
        if not found or not all(math.isfinite(one) for one in found):
            raise self._bad(layer, f"'{key}' has no numbers: '{told[:40]}'")
        return found

    def _checked(self, layer: Layer, shape: Shape) -> Shape:
        if min(shape) < 1 or shape[0] > _MOST_CHANNELS or max(shape[1:]) > _LARGEST_SIDE:
            raise self._bad(layer, f"what it makes has the shape {' × '.join(map(str, shape))}")
        return shape

    def _refuse_strays(self, layer: Layer) -> None:
        for key in layer.settings:
            if key not in _KNOWN[layer.kind] and key not in _TRAINING:
                raise self._bad(layer, f"it has a setting that is not known: '{key[:40]}'")

    def _bad(self, layer: Layer, why: str) -> BadModelFile:
        where = "[net]" if layer.number < 0 else f"Layer {layer.number} [{layer.kind[:40]}]"
        return BadModelFile(f"{where} of {self._cfg}, line {layer.line}: {why}.")

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self._constants[name] = numpy_helper.from_array(
            np.ascontiguousarray(values, np.int64 if values.dtype.kind == "i" else np.float32), name
        )
        return name

    def _ints(self, name: str, values: list[int]) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _node(self, kind: str, inputs: list[str], output: str, **told: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **told))
