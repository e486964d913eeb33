"""int8 weights multiplied in integers: the same vectors but for rounding, and graphs that are left as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'codriver[onnx]'")
pytest.importorskip("onnx", reason="needs the extra: pip install 'codriver[onnx]'")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from codriver.core.deadline import Deadline
from codriver.core.errors import BadModelFile
from codriver.core.messages import EmbedRequest, Tensor, TensorRequest
from codriver.engines.onnx_runtime import OnnxConfig, OnnxRuntime
from codriver.engines.onnx_runtime_integers import in_integers

NEVER = Deadline.never()
CHANCE = np.random.default_rng(5)
WEIGHTS = CHANCE.integers(-127, 128, (16, 6), np.int8)


def graph(
    file: Path, scale: object, stored: object = WEIGHTS, extra: tuple[object, ...] = (), also: str = "", batch: int = 3
) -> Path:
    """``y = x @ (float32(stored) * scale)`` for x float32 [batch, 16]; ``also`` is another output of the graph."""
    nodes = [
        helper.make_node("Cast", ["w"], ["w_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["w_float", "s"], ["w_scaled"]),
        helper.make_node("MatMul", ["x", "w_scaled"], ["y"]),
        *extra,
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 6])]
    if also:
        outputs.append(helper.make_tensor_value_info(also, TensorProto.FLOAT, None))
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 16])],
        outputs,
        [numpy_helper.from_array(np.asarray(stored), "w"), numpy_helper.from_array(np.asarray(scale, np.float32), "s")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    return file


def kinds(made: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(made).graph.node]


async def run(file: Path, x: np.ndarray, integers: bool, output: str = "y") -> np.ndarray:
    engine = OnnxRuntime(OnnxConfig(model=file, integers=integers))
    request = TensorRequest((Tensor("x", "float32", x.shape, x.tobytes()),), (output,))
    (got,) = (await engine.infer(request, NEVER)).outputs
    await engine.aclose()
    return np.frombuffer(got.data, np.float32).reshape(got.shape)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6)], ids=str)
async def test_a_product_is_what_rounding_x_to_eight_bits_makes_of_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    scale = CHANCE.uniform(0.01, 0.1, shape)
    file = graph(tmp_path / "g.onnx", scale)
    made = in_integers(file)
    assert made is not None
    assert sorted(kinds(made)) == ["Cast", "DynamicQuantizeLinear", "MatMulInteger", "Mul", "Mul"]
    x = CHANCE.normal(size=(3, 16)).astype(np.float32)
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (high - low) / 255
    rounded = step * (np.clip(np.rint(x / step) + np.rint(-low / step), 0, 255) - np.rint(-low / step))
    expected = rounded @ (WEIGHTS.astype(np.float32) * scale)
    np.testing.assert_allclose(await run(file, x, True), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(await run(file, x, False), x @ (WEIGHTS * scale), rtol=1e-4, atol=1e-4)


async def test_the_largest_products_do_not_saturate(tmp_path: Path) -> None:
    file = graph(tmp_path / "g.onnx", 1.0, np.full((16, 6), 127, np.int8))
    x = np.full((3, 16), 255.0, np.float32)
    assert (await run(file, x, True) == 16 * 127 * 255).all()


async def test_weights_that_others_use_too_stay_as_they_are(tmp_path: Path) -> None:
    also = helper.make_node("Neg", ["w_scaled"], ["negative"])
    file = graph(tmp_path / "g.onnx", 0.5, extra=(also,), also="negative")
    assert "MatMulInteger" in kinds(in_integers(file) or b"")
    x = np.ones((3, 16), np.float32)
    assert (await run(file, x, True, "negative") == -0.5 * WEIGHTS).all()
    np.testing.assert_allclose(await run(file, x, True), x @ (0.5 * WEIGHTS), rtol=1e-2)


@pytest.mark.parametrize(
    ("scale", "stored"),
    [
        (np.ones((16, 1)), WEIGHTS),  # one scale for each row cannot be taken out of the sum
        (np.ones((16, 6)), WEIGHTS),
        (1.0, WEIGHTS.astype(np.uint8)),
        (1.0, WEIGHTS.astype(np.float32)),
    ],
    ids=["scale by row", "scale by value", "uint8", "float32"],
)
def test_other_weights_are_left_alone(tmp_path: Path, scale: object, stored: object) -> None:
    assert in_integers(graph(tmp_path / "g.onnx", scale, stored)) is None


def edited(file: Path, edit: Callable[[Any], object]) -> Path:
    model = onnx.load(str(graph(file, 0.5)))
    edit(model)
    onnx.save(model, str(file))
    return file


def _branches(model: Any) -> None:
    """What a branch uses, a look at the nodes alone does not see."""
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["w_scaled"], ["b"])], "branch", [], [value])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["either"], then_branch=branch, else_branch=branch))
    model.graph.output.append(helper.make_tensor_value_info("either", TensorProto.FLOAT, None))


def _as_inputs(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.INT8, [16, 6]))


def _old(model: Any) -> None:
    model.opset_import[0].version = 9


@pytest.mark.parametrize("edit", [_branches, _as_inputs, _old])
async def test_graphs_that_cannot_be_changed_run_as_they_are(tmp_path: Path, edit: Callable[[Any], object]) -> None:
    file = edited(tmp_path / "g.onnx", edit)
    assert in_integers(file) is None
    x = np.ones((3, 16), np.float32)
    np.testing.assert_allclose(await run(file, x, True), x @ (0.5 * WEIGHTS), rtol=1e-5)


def test_weights_in_another_file_are_not_read(tmp_path: Path) -> None:
    model = onnx.load(str(graph(tmp_path / "g.onnx", 0.5)))
    file = tmp_path / "outside.onnx"
    onnx.save(model, str(file), save_as_external_data=True, location="outside.data", size_threshold=0)
    (tmp_path / "outside.data").unlink()
    assert in_integers(file) is None


def test_a_broken_tensor_is_a_bad_file(tmp_path: Path) -> None:
    def cut(model: Any) -> None:
        model.graph.initializer[0].raw_data = b"too short"

    file = edited(tmp_path / "g.onnx", cut)
    assert in_integers(file) is None
    with pytest.raises(BadModelFile, match=r"The model file .*g\.onnx of 'embedder' is not a usable ONNX graph"):
        OnnxRuntime(OnnxConfig(model=file))


def test_what_is_no_graph_is_left_to_whoever_runs_it(tmp_path: Path) -> None:
    file = tmp_path / "g.onnx"
    assert in_integers(file) is None
    file.write_bytes(b"not a graph")
    assert in_integers(file) is None


async def test_sentences_mean_the_same_in_integers(model_file: Callable[[str], Path]) -> None:
    files = {"model": model_file("minilm.onnx"), "tokenizer": model_file("minilm-tokenizer.json")}
    texts = ["Turn the heating up.", "Set the temperature to 22 degrees.", "Who wrote the Odyssey?"]
    found = {}
    for integers in (True, False):
        engine = OnnxRuntime(OnnxConfig(**files, integers=integers))
        vectors = [(await engine.embed(EmbedRequest(input=text), NEVER)).vectors[0] for text in texts]
        found[integers] = np.asarray(vectors)
        together = await engine.embed(EmbedRequest(input=texts), NEVER)
        # Company changes nothing; float32 sums may round otherwise.
        np.testing.assert_allclose(together.vectors, vectors, atol=0 if integers else 1e-5)
        await engine.aclose()
    same = (found[True] * found[False]).sum(axis=1)
    assert (same > 0.99).all()
    assert not np.allclose(found[True], found[False], atol=1e-6)  # both ways have run
    likeness = found[True] @ found[True].T
    assert likeness[0, 1] > likeness[0, 2] + 0.2
