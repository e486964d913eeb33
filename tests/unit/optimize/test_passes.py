"""Passes over weights on two layers of a real model: the function stays what it was, or changes as it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codriver.core.errors import BadConfigValue, BadModelFile
from codriver.core.gguf import GgufTensor
from codriver.optimize.calibrate import read_inputs
from codriver.optimize.evaluate import Run
from codriver.optimize.ggml import dequantise, quantise
from codriver.optimize.gguf_file import Changes, GgufFile, rewrite
from codriver.optimize.gptq import output_loss
from codriver.optimize.llama_runtime import Cache, LlamaModel
from codriver.optimize.passes import fp8
from codriver.optimize.passes.hadamard import hadamard, random_rotation
from codriver.optimize.recipe import Workshop, recipe_of
from codriver.optimize.rounding import Rounder, Text, write_rounded

# Fused attention works in F16 inside: its rounding is no business of these tests.
EXACT = Cache("F32", "F32", fused=False)
LAST = "output_norm.weight"


@pytest.fixture(scope="module")
def reference(plain_model: Path) -> Path:
    return plain_model


@pytest.fixture(scope="module")
def right(reference: Path, sentences: str) -> np.ndarray:
    return logits(reference, sentences)


def logits(file: Path, text: str) -> np.ndarray:
    with LlamaModel(file) as model, model.context(32, 2, cache=EXACT) as context:
        return context.logits(model.tokens(text)[:32]).copy()


def passed(source: Path, work: Path, text: str, *passes: dict[str, Any]) -> tuple[Path, tuple[str, ...]]:
    work.mkdir(exist_ok=True)
    shop = Workshop(work, lambda step: Run(2), text)
    return recipe_of({"seed": 7, "pass": list(passes)}, "test").run(source, work, shop)


@pytest.mark.parametrize(("stream", "values"), [(True, True), (False, True), (True, False)])
def test_a_rotated_model_is_the_same_function(
    reference: Path, right: np.ndarray, sentences: str, tmp_path: Path, stream: bool, values: bool
) -> None:
    made, told = passed(reference, tmp_path, "", {"use": "rotate", "stream": stream, "values": values})
    assert np.abs(logits(made, sentences) - right).max() < 1e-3
    before, after = GgufFile(reference), GgufFile(made)
    name = "blk.1.attn_output.weight"
    assert not np.allclose(after.weights(after[name]), before.weights(before[name]), atol=1e-3)
    assert ("output.weight" in after) == stream
    if stream:
        size = before["token_embd.weight"].size_bytes
        assert made.stat().st_size - reference.stat().st_size == pytest.approx(size, abs=256)
        assert f"output.weight apart: {size:,} bytes more" in told[0]
        assert np.array_equal(after.weights(after[LAST]), np.ones((1, 576), np.float32))
        # What stood out in a column of the stream no longer does.
        embedding = "token_embd.weight"
        columns = [np.square(one.weights(one[embedding])).mean(axis=0) for one in (before, after)]
        assert columns[1].max() / columns[1].mean() < columns[0].max() / columns[0].mean() / 2


def test_scaled_models_are_the_same_function(
    reference: Path, right: np.ndarray, sentences: str, tmp_path: Path
) -> None:
    made, told = passed(reference, tmp_path, sentences, {"use": "smooth", "windows": 4})
    assert told == ("smooth: 8 inputs smoothed, alpha 0.5",)
    assert np.abs(logits(made, sentences) - right).max() < 1e-3
    before, after = GgufFile(reference), GgufFile(made)
    for name in ("blk.0.attn_q.weight", "blk.1.attn_output.weight", "blk.1.ffn_down.weight"):
        assert not np.allclose(after.weights(after[name]), before.weights(before[name]), rtol=1e-2)


@pytest.fixture(scope="module")
def turned_and_scaled(
    narrow_model: Path, sentences: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, tuple[str, ...]]:
    """The file behind each of two passes, and what they told."""
    work = tmp_path_factory.mktemp("awq")
    awq = {"use": "awq", "kind": "Q4_0", "steps": 4, "windows": 4}
    made, told = passed(narrow_model, work, sentences, {"use": "rotate", "stream": False}, awq)
    return next(work.glob("rotate-*.gguf")), made, told


def test_rotation_scaling_and_rounding_go_together(
    turned_and_scaled: tuple[Path, Path, tuple[str, ...]], narrow_model: Path, sentences: str, tmp_path: Path
) -> None:
    _, made, told = turned_and_scaled
    right = logits(narrow_model, sentences)
    assert np.abs(logits(made, sentences) - right).max() < 1e-3
    assert told[0].startswith("rotate: rotated the values of 4 heads") and "of 8 inputs scaled for Q4_0" in told[1]
    scaled = GgufFile(made)
    kinds = {t.name: "Q4_0" for t in scaled if t.name.startswith("blk.0.") and len(t.shape) == 2}
    cut = len(sentences) // 2
    rounder = Rounder(scaled, scaled, kinds, Text(sentences[:cut], sentences[cut:], 4, 4), lambda step: Run(2))
    write_rounded(tmp_path / "rounded.gguf", rounder)
    assert "second order" in rounder.how.values()
    off = np.abs(logits(tmp_path / "rounded.gguf", sentences) - right).max()
    assert 1e-3 < off < np.abs(right).max()


def test_awq_loses_less_than_rounding_to_the_nearest(
    turned_and_scaled: tuple[Path, Path, tuple[str, ...]], sentences: str
) -> None:
    before, after = (GgufFile(path) for path in turned_and_scaled[:2])
    names = [f"blk.{layer}.{one}.weight" for layer in (0, 1) for one in ("attn_q", "attn_k", "ffn_gate")]
    inputs = read_inputs(before.path, sentences, 4, Run(2), names.__contains__)
    losses, scaled = np.zeros(2), 0
    for name in names:
        norm = name.rsplit(".", 2)[0] + (".attn_norm.weight" if "attn" in name else ".ffn_norm.weight")
        scale = (before.weights(before[norm]) / after.weights(after[norm]))[0]
        weights, moment, importance = before.weights(before[name]), inputs.moment(name), inputs.importance(name)
        scaled += not np.array_equal(scale, np.ones_like(scale))
        nearest = dequantise("Q4_0", quantise("Q4_0", weights, importance), weights.shape)
        larger = after.weights(after[name])
        assert np.allclose(larger, weights * scale, rtol=1e-5)
        aware = dequantise("Q4_0", quantise("Q4_0", larger, importance / scale**2), weights.shape) / scale
        whole = output_loss(weights, np.zeros_like(weights), moment)
        losses += [output_loss(weights, rounded, moment) / whole for rounded in (nearest, aware)]
    assert scaled and losses[1] < losses[0]


def test_baselines_say_what_they_round(reference: Path, tmp_path: Path) -> None:
    made, told = passed(reference, tmp_path, "", {"use": "nearest", "kind": "Q4_K", "tables": True})
    assert told == ("nearest: 2 matrices rounded to the nearest of Q4_K; 13 left, whose rows are no whole blocks",)
    before, after = GgufFile(reference), GgufFile(made)
    name = "blk.0.ffn_down.weight"
    weights = before.weights(before[name])
    assert after[name].type == "F32"
    wanted = dequantise("Q4_K", quantise("Q4_K", weights), weights.shape)
    assert np.array_equal(after.weights(after[name]), wanted)
    made, told = passed(reference, tmp_path, "", {"use": "fp8", "form": "e5m2", "scale": "tensor"})
    assert told == ("fp8: 14 matrices rounded to e5m2, a scale per tensor",)
    after = GgufFile(made)
    found = after.weights(after[name]) / (np.abs(weights).max() / 57344)
    assert np.array_equal(fp8.decode(fp8.encode(found, "e5m2"), "e5m2"), found)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use": "rotate", "stream": False, "values": False}, "neither 'stream' nor 'values'"),
        ({"use": "nearest", "kind": "Q9"}, r"'nearest\.kind' is 'Q9'; allowed: Q2_K, "),
        ({"use": "awq", "kind": "Q4_K"}, r"'awq\.kind' is Q4_K, and the rows of 'blk\.0\.attn_q\.weight' of"),
        ({"use": "fp8", "form": "e3m4"}, r"'fp8\.form' is 'e3m4'; allowed: "),
        ({"use": "smooth", "alpha": 2}, r"'smooth\.alpha' is 2; allowed: "),
        ({"use": "smooth", "windows": 4}, "calibration text has 0 tokens; 2048 are needed"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_told(reference: Path, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadConfigValue, match=says):
        passed(reference, tmp_path, "", settings)
    assert not list(tmp_path.glob("*.gguf"))


def test_models_that_cannot_be_changed_are_told(short_model: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=r"tensor 'token_embd\.weight' of .* is Q8_0; F32 or F16 is needed"):
        passed(short_model, tmp_path, "", {"use": "rotate"})
    file, cut = GgufFile(reference), tmp_path / "cut.gguf"
    rewrite(file, cut, Changes({}, dropped=frozenset({"blk.1.ffn_up.weight"})), file.raw)
    with pytest.raises(BadModelFile, match=r"cut\.gguf has no tensor 'blk\.1\.ffn_up\.weight', as a llama has"):
        passed(cut, tmp_path, "", {"use": "rotate"})
    other = tmp_path / "other.gguf"
    other.write_bytes(reference.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"))
    with pytest.raises(BadModelFile, match=r"has a tensor 'blk\.1\.ffn_uq\.weight', which is not known here"):
        passed(other, tmp_path, "", {"use": "rotate"})
    for heads in (1, 9):
        rewrite(file, other, Changes({}, {"llama.attention.head_count_kv": heads}), file.raw)
        with pytest.raises(BadModelFile, match=rf"other\.gguf has {heads} heads of values that make 192 together, of"):
            passed(other, tmp_path, "", {"use": "rotate"})
    other.write_bytes(reference.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0gemma", 1))
    with pytest.raises(BadModelFile, match=r"is 'gemma'; what is inside is known here of llama, qwen2"):
        passed(other, tmp_path, "", {"use": "rotate"})


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 64, 576, 896, 1536])
def test_hadamard_matrices(order: int) -> None:
    found = hadamard(order)
    assert found is not None
    signs = found.astype(np.float32)
    assert (np.abs(found) == 1).all() and np.array_equal(signs @ signs.T, order * np.eye(order, dtype=np.float32))


def test_widths_without_a_hadamard_matrix_are_rotated_too() -> None:
    assert hadamard(92) is None and hadamard(6) is None
    found = random_rotation(184, 3)
    assert np.allclose(found @ found.T, np.eye(184), atol=1e-5)
    assert np.array_equal(found, random_rotation(184, 3)) and not np.allclose(found, random_rotation(184, 4))


@pytest.mark.parametrize(("form", "name"), [("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")])
def test_eight_bit_floats_are_those_of_the_standard_bit_for_bit(form: fp8.Form, name: str) -> None:
    kinds = pytest.importorskip("ml_dtypes", reason="ml_dtypes judges the codes")
    kind = np.dtype(getattr(kinds, name))
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(fp8.decode(codes, form), codes.view(kind).astype(np.float32), equal_nan=True)
    random = np.random.default_rng(0)
    values = fp8.decode(codes, form)
    finite = np.sort(values[np.isfinite(values)])
    middles = (finite[1:] + finite[:-1]) / 2
    near = [np.nextafter(middles, np.float32(sign * np.inf)) for sign in (-1, 1)]
    wide = random.standard_normal(20000) * np.exp(random.uniform(-14, 13, 20000))
    edges = [464, 464.0001, 480, 61440, 61439.9, 65536, 1e30, np.inf, -np.inf, np.nan, 0.0, -0.0]
    tried = np.concatenate([finite, middles, *near, wide, edges]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = tried.astype(kind).view(np.uint8)
    found = fp8.encode(tried, form, saturate=False)
    isnan = np.isnan(tried)
    assert np.array_equal(found[~isnan], wanted[~isnan])
    assert np.isnan(fp8.decode(found[isnan], form)).all()


@pytest.mark.parametrize(("form", "most", "least"), [("e4m3", 448.0, 2.0**-9), ("e5m2", 57344.0, 2.0**-16)])
def test_eight_bit_floats_have_the_published_ends(form: fp8.Form, most: float, least: float) -> None:
    assert fp8.largest(form) == most
    assert fp8.decode(np.array([1], np.uint8), form)[0] == least
    told = fp8.decode(fp8.encode(np.array([1e9, -1e9, np.inf, least / 2], np.float32), form), form)
    assert told.tolist() == [most, -most, most, 0.0]


def test_a_channel_that_is_all_zero_stays_so() -> None:
    weights = np.zeros((2, 4), np.float32)
    weights[1] = (1, -2, 3, 448)
    assert np.array_equal(fp8.Fp8().rounded(weights), weights)


def test_biases_and_an_output_of_its_own_take_part(reference: Path, sentences: str, tmp_path: Path) -> None:
    """As qwen2 has them; llama.cpp reads them in a llama too."""
    random, file, other = np.random.default_rng(1), GgufFile(reference), tmp_path / "other.gguf"
    made = {
        f"blk.{layer}.attn_{one}.bias": size for layer in (0, 1) for one, size in (("q", 576), ("k", 192), ("v", 192))
    }
    added = tuple(GgufTensor(name, "F32", (size,), 0, 4 * size) for name, size in made.items())
    table = file["token_embd.weight"]

    def data(tensor: GgufTensor) -> np.ndarray:
        weights = file.weights(table)[::-1] if tensor.name == "output.weight" else random.normal(size=tensor.shape)
        return np.ascontiguousarray(weights, np.float32).view(np.uint8).reshape(-1)

    rewrite(file, other, Changes({}, added=(*added, replace(table, name="output.weight"))), data)
    right = logits(other, sentences)
    for number, one in enumerate(({"use": "rotate"}, {"use": "smooth", "windows": 4})):
        changed, told = passed(other, tmp_path / str(number), sentences, one)
        assert np.abs(logits(changed, sentences) - right).max() < 1e-3, told
        assert "apart" not in told[0]
        name = "blk.0.attn_v.bias"
        assert not np.allclose(
            GgufFile(changed).raw(GgufFile(changed)[name]), GgufFile(other).raw(GgufFile(other)[name])
        )
    with pytest.raises(BadModelFile, match=r"A tensor that .*other\.gguf has already cannot be added to it once more"):
        rewrite(GgufFile(other), tmp_path / "twice.gguf", Changes({}, added=added[:1]), data)
