"""Small vision graphs and pictures of their own: fixed seeds, nothing licensed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image


def classifier(side: int = 32, activation: str = "Relu", opset: int = 17) -> onnx.ModelProto:
    """Three convolutions (the second one per channel) with channels of very unlike ranges, pooled into ten classes."""
    random = np.random.default_rng(5)
    shapes = {"one": (16, 3, 3, 3), "deep": (16, 1, 3, 3), "two": (10, 16, 1, 1)}
    constants, nodes, at = [], [], "images"
    spread = np.exp(random.normal(0, 1.5, 16)).astype(np.float32)
    for name, shape in shapes.items():
        weight = random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        weight *= spread[:, None, None, None] if name == "one" else 1
        weight /= spread[:, None, None, None] if name == "deep" else 1
        bias = random.normal(0, 0.1, shape[0]).astype(np.float32)
        constants += [numpy_helper.from_array(weight, f"{name}.w"), numpy_helper.from_array(bias, f"{name}.b")]
        pad = shape[2] // 2
        nodes.append(
            helper.make_node(
                "Conv", [at, f"{name}.w", f"{name}.b"], [f"{name}.y"], name=name, pads=[pad] * 4,
                group=16 if name == "deep" else 1,
            )
        )  # fmt: skip
        at = f"{name}.y"
        if name != "two":
            nodes.append(helper.make_node(activation, [at], [f"{name}.a"], name=f"{name}.act"))
            at = f"{name}.a"
    nodes += [
        helper.make_node("GlobalAveragePool", [at], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["classes"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("classes", TensorProto.FLOAT, [1, 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    helper.set_model_props(model, {"codriver.pictures": "rgb 0..1"})
    onnx.checker.check_model(model)
    return model


def saved(model: onnx.ModelProto, file: Path) -> Path:
    file.write_bytes(model.SerializeToString())
    return file


def pictures(folder: Path, count: int = 9, side: int = 40) -> list[Path]:
    """Blobs of colour, no two alike."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(3)
    files = []
    for at in range(count):
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        files.append(folder / f"{at:02d}.png")
        Image.fromarray(coarse).resize((side, side * 3 // 4)).save(files[-1])
    return files
