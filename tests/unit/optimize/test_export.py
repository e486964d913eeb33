"""Files in other runtimes' formats say what the GGUF file says, or are not there."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codriver.core.errors import BadConfigValue, BadModelFile, DiskFull
from codriver.optimize.formats import hf_folder, onnx_decoder
from codriver.optimize.formats.export import export
from codriver.optimize.formats.gguf_writer import Planned, write_gguf
from codriver.optimize.formats.onnx_weights import copied, joined, rounded, rounded_rows, turned
from codriver.optimize.formats.safetensors_file import read_entries
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.llama_runtime import LlamaModel
from tests.unit.optimize.tiny_models import write_tiny

IDS = list(np.random.default_rng(3).integers(2, 250, 40))
FLOATS = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)


def write(source: Path, form: str, target: Path) -> Path:
    export(source, form, target, lambda step: None)
    return target


def by_llama(file: Path, ids: list[int]) -> Any:
    """Log-probabilities of what follows each token."""
    with LlamaModel(file) as model, model.context(len(ids), 1) as context:
        return log_softmax(context.logits(ids).copy())


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class Stepper:
    """The exported graph, token by token: what its cache holds is part of what is tried."""

    def __init__(self, folder: Path) -> None:
        ort = pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'codriver[onnx]'")
        self._session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self._past = {
            one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
            for one in self._session.get_inputs()
            if one.name.startswith("past")
        }
        self._names = [one.name.replace("present", "past_key_values") for one in self._session.get_outputs()]
        self._read = 0

    def read(self, ids: list[int]) -> Any:
        self._read += len(ids)
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, self._read), np.int64)}
        found = dict(zip(self._names, self._session.run(None, feed | self._past), strict=True))
        logits = found.pop("logits")
        self._past = found
        return log_softmax(logits[0, -1])


@pytest.mark.parametrize(
    ("architecture", "kind", "form", "most"),
    [
        ("llama", "Q4_1", "onnx-genai", 0.003),
        ("llama", "Q4_0", "onnx-genai-int8", 0.003),
        ("qwen2", "Q5_1", "onnx-genai", 0.003),
        ("qwen2", "F16", "onnx-genai", 0.003),
        ("qwen2", "F16", "onnx-genai-int4", 0.5),
        ("llama", "Q4_1", "onnx-genai-w8a8", 0.02),
        ("qwen2", "F16", "onnx-genai-w8a8", 0.02),
    ],
)
def test_the_graph_predicts_what_llama_cpp_does(
    tmp_path: Path, architecture: str, kind: str, form: str, most: float
) -> None:
    pytest.importorskip("onnx", reason="needs the extra: pip install 'codriver[onnx]'")
    source = write_tiny(tmp_path / "tiny.gguf", architecture, kind)
    graph = Stepper(write(source, form, tmp_path / "out"))
    right = by_llama(source, IDS)
    told = [graph.read(IDS[:20]), *(graph.read([one]) for one in IDS[20:30]), graph.read(IDS[30:])]
    assert (-(np.exp(right) * right).sum(axis=-1) > 1.0).all()  # no certainty that would hide a difference
    places = [19, *range(20, 30), len(IDS) - 1]
    far = [float((np.exp(right[at]) * (right[at] - one)).sum()) for at, one in zip(places, told, strict=True)]
    assert max(far) < most
    # Random weights predict no token of their own accord: the positions must differ for this to mean anything.
    assert float((np.exp(right[5]) * (right[5] - right[19])).sum()) > 0.5


def test_inputs_are_turned_before_they_are_rounded(tmp_path: Path) -> None:
    """Else a column that stands out takes all of a token's steps; random weights have none, and would not show it."""
    onnx = pytest.importorskip("onnx", reason="needs the extra: pip install 'codriver[onnx]'")
    folder = write(write_tiny(tmp_path / "tiny.gguf", "llama", "Q4_0"), "onnx-genai-w8a8", tmp_path / "out")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    rounded_inputs = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(rounded_inputs) == 2 * 4 and all(name.endswith(".turned") for name in rounded_inputs)
    standing = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    standing[:, 5] *= 100

    def lost(values: Any) -> float:
        codes, scales = rounded_rows(values)
        return float(np.square((codes.astype(np.float32) - 128) * scales[:, None] - values).mean())

    assert lost(turned(standing)) < lost(standing) / 10
    other = np.random.default_rng(1).standard_normal((4, 128)).astype(np.float32)
    assert np.allclose(turned(standing) @ turned(other).T, standing @ other.T, rtol=1e-3, atol=1e-3), (
        "no product changes"
    )


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q8_0"])
def test_what_stands_on_the_grid_is_copied_to_the_last_bit_but_one(tmp_path: Path, kind: str) -> None:
    flat = FLOATS.copy()
    flat[0, :64] = 0.25  # blocks of one value have no steps
    flat[1] = 0.0
    file = GgufFile(write_gguf_of(tmp_path / "m.gguf", kind, flat))
    found = copied(file, file["w"])
    assert found is not None
    assert found.bits == (4 if kind in ("Q4_0", "Q4_1", "Q4_K") else 8)
    assert np.allclose(found.weights(), file.weights(file["w"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["Q6_K", "Q2_K", "IQ4_NL", "F16"])
def test_what_does_not_is_rounded(tmp_path: Path, kind: str) -> None:
    file = GgufFile(write_gguf_of(tmp_path / "m.gguf", kind, FLOATS))
    assert copied(file, file["w"]) is None


def write_gguf_of(path: Path, kind: str, weights: Any) -> Path:
    write_gguf(path, {"general.architecture": "llama"}, [Planned("w", kind, weights.shape, lambda: weights)])
    return path


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_rounding_is_off_by_half_a_step_at_most(bits: int, symmetric: bool) -> None:
    weights = FLOATS[:, :96].copy()
    weights[2] = 0
    found = rounded(weights, bits, symmetric)
    off = np.abs(found.weights() - weights).reshape(6, 3, 32).max(axis=-1)
    # The far end of a grid that has one code more on one side is cut by up to a step.
    assert (off <= np.abs(found.scales) * (1.01 if symmetric else 0.51) + 1e-6).all()
    if not symmetric:
        assert (off <= np.abs(found.scales) * 0.51 + 1e-6).all()
    pair = joined([found, found])
    assert pair is not None and np.array_equal(pair.weights(), np.concatenate([found.weights()] * 2))
    assert joined([found, rounded(weights, 12 - bits, symmetric)]) is None


@pytest.mark.parametrize("form", ["onnx-genai", "safetensors", "compressed-tensors"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = write_tiny(tmp_path / "tiny.gguf", "llama", "Q4_0")
    monkeypatch.setattr(onnx_decoder._Builder, "_logits", full)
    monkeypatch.setattr(hf_folder, "write_tensors", full)
    with pytest.raises(DiskFull, match=r"no room for .*out; nothing of it was kept"):
        write(source, form, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.gguf"]


def test_nothing_is_written_over_what_is_there(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "tiny.gguf", "llama", "Q4_0")
    (tmp_path / "out").mkdir()
    with pytest.raises(BadConfigValue, match="out is there already"):
        write(source, "onnx-genai", tmp_path / "out")
    with pytest.raises(BadConfigValue, match="'pickle' is no format to write; there are compressed-tensors"):
        write(source, "pickle", tmp_path / "other")


@pytest.mark.parametrize(
    ("more", "extra", "sentence"),
    [
        ({"llama.rope.scaling.type": "yarn"}, (), r"'llama\.rope\.scaling\.type' = 'yarn', which no writer carries"),
        ({"llama.expert_count": 8}, (), r"'llama\.expert_count' = 8"),
        ({"llama.attention.head_count": 0}, (), r"'llama\.attention\.head_count' of .* is 0, and must be a count"),
        ({"llama.attention.head_count_kv": 3}, (), "4 heads of 32 over 3: that is no grouped attention"),
        ({"llama.feed_forward_length": 128}, (), r"'blk\.0\.ffn_gate\.weight' of .* has the shape \(128, 256\)"),
        ({"llama.block_count": 3}, (), r"has no tensor 'blk\.2\.attn_q\.weight'"),
        ({"general.architecture": "gemma3"}, (), "The architecture of .* is 'gemma3'; what is inside is known here of"),
        ({"tokenizer.ggml.pre": "odd"}, (), "a tokenizer 'gpt2' that splits text as 'odd'"),
        ({"tokenizer.ggml.eos_token_id": 99999, "tokenizer.ggml.tokens": ["a"]}, (), "no whole tokenizer"),
        ({}, ("blk.0.attn_q_norm.weight",), r"has a tensor 'blk\.0\.attn_q_norm\.weight', which is not known here"),
    ],
)  # fmt: skip
def test_what_a_writer_would_leave_out_is_refused(
    tmp_path: Path, more: dict[str, Any], extra: tuple[str, ...], sentence: str
) -> None:
    added = tuple(Planned(name, "F32", (32,), lambda: np.ones(32, np.float32)) for name in extra)
    source = write_tiny(tmp_path / "tiny.gguf", "llama", "Q4_0", more, added)
    with pytest.raises(BadModelFile, match=sentence):
        write(source, "safetensors", tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "F16"), ("qwen2", "F16")])
def test_there_and_back_again(tmp_path: Path, architecture: str, kind: str) -> None:
    source = write_tiny(tmp_path / "tiny.gguf", architecture, kind)
    back = write(write(source, "safetensors", tmp_path / "hf"), "gguf-f32", tmp_path / "back.gguf")
    before, after = GgufFile(source), GgufFile(back)
    assert {one.name for one in before} == {one.name for one in after}
    for tensor in before:
        assert np.allclose(before.weights(tensor), after.weights(after[tensor.name]), rtol=1e-3, atol=1e-6)
    text = "hello world 1212 Ünï\n"
    with LlamaModel(source) as first, LlamaModel(back) as second:
        assert first.tokens(text) == second.tokens(text)
    right, told = by_llama(source, IDS), by_llama(back, IDS)
    assert ((np.exp(right) * (right - told)).sum(axis=-1) < 0.003).all()
    small = write(tmp_path / "hf", "gguf", tmp_path / "small.gguf")
    assert {one.type for one in GgufFile(small)} == {"F16", "F32"}


@pytest.mark.parametrize(
    ("form", "kind", "bits"), [("compressed-tensors", "Q4_0", 4), ("compressed-tensors-int8", "Q8_0", 8)]
)
def test_compressed_tensors_hold_the_files_own_codes(tmp_path: Path, form: str, kind: str, bits: int) -> None:
    source = write_tiny(tmp_path / "tiny.gguf", "qwen2", kind)
    folder = write(source, form, tmp_path / "out")
    entries, file = read_entries(folder / "model.safetensors"), GgufFile(source)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["num_bits"] == bits
    base = "model.layers.1.mlp.down_proj.weight"
    words = entries[f"{base}_packed"].raw().view(np.uint32)
    codes = (words[..., None] >> (np.arange(32 // bits, dtype=np.uint32) * bits)) & ((1 << bits) - 1)
    values = codes.reshape(len(words), -1).astype(np.float32) - (1 << (bits - 1))
    weights = values.reshape(len(words), -1, 32) * entries[f"{base}_scale"].raw().astype(np.float32)[..., None]
    assert np.array_equal(weights.reshape(len(words), -1), file.weights(file["blk.1.ffn_down.weight"]))
    assert list(entries[f"{base}_shape"].raw()) == [128, 256]


def one(shape: Any, begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


HEADS: dict[str, Any] = {
    "the header has 1152921504606846976 bytes": b"\0" * 7 + b"\x10" + b"{}",
    "byte 0 says that the header has 0 bytes": b"abc",
    "is no JSON of single keys": {"raw": b"{oops}"},
    "a key stands there twice": {"raw": b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{}}'},
    "'w' is not described by": {"w": {"dtype": "F32"}},
    "'w' has the type 'F99'": {"w": one([1], 0, 4, "F99")},
    r"'w' has the shape \[-1\]": {"w": one([-1], 0, 4)},
    r"'w' has the shape \[True\]": {"w": one([True], 0, 4)},
    r"'w' has the offsets \[-4, 0\]": {"w": one([1], -4, 0)},
    r"'w' stands from byte \d+ to \d+, and the file ends at": {"w": one([9], 0, 36)},
    r"'w' at byte \d+ takes 4611686018427387904 bytes, and has 16": {"w": one([1 << 30, 1 << 30], 0, 16)},
    r"'v' at byte \d+ overlaps the one before it": {"w": one([4], 0, 16), "v": one([1], 4, 8)},
    r"'w' at byte \d+ leaves a gap before it": {"w": one([3], 4, 16)},
    r"its tensors end at byte \d+, and the file at": {"w": one([3], 0, 12)},
}


@pytest.mark.parametrize("sentence", HEADS)
def test_a_hostile_header_of_safetensors(tmp_path: Path, sentence: str) -> None:
    told: Any = HEADS[sentence]
    if isinstance(told, dict):
        text = told["raw"] if "raw" in told else json.dumps(told).encode()
        told = len(text).to_bytes(8, "little") + text + bytes(16)
    file = tmp_path / "model.safetensors"
    file.write_bytes(told)
    with pytest.raises(BadModelFile, match=rf"(?s){file} is no usable safetensors file: .*{sentence}"):
        read_entries(file)


def test_bfloat16_is_read_and_numbers_that_are_none_are_not(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "tiny.gguf", "llama", "F16")
    folder = write(source, "safetensors", tmp_path / "hf")
    file = folder / "model.safetensors"
    entry = read_entries(file)["model.norm.weight"]
    raw = bytearray(file.read_bytes())
    raw[entry.offset : entry.offset + 2] = np.float16("nan").tobytes()
    file.write_bytes(raw)
    with pytest.raises(BadModelFile, match=r"'model\.norm\.weight' of .* holds numbers that are not finite"):
        write(folder, "gguf", tmp_path / "back.gguf")
    assert not list(tmp_path.glob("back*"))
    head = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    file.write_bytes(len(head).to_bytes(8, "little") + head + b"\x80\x3f\x00\xc0")
    assert read_entries(file)["w"].weights().tolist() == [1.0, -2.0]


@pytest.mark.model
def test_the_tokenizer_gives_the_ids_of_llama_cpp(tmp_path: Path, model_file: Any, shared_data: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra: pip install 'codriver[onnx]'")
    from codriver.optimize.formats.tokenizer_files import write_tokenizer

    source = model_file("smollm2.gguf")
    write_tokenizer(GgufFile(source), tmp_path)
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = shared_data("text/wiki.test.raw").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()][:300]
    lines += ["  a\n\nb\t\r\n", "½ ² Ⅷ ٣٤٥", "日本語 😀👍🏽", "don't I'LL", "e\u0301", "x" * 99, "\u00a0 \u2003em"]
    with LlamaModel(source) as model:
        assert [made.encode(line, add_special_tokens=False).ids for line in lines] == [
            model.tokens(one) for one in lines
        ]
