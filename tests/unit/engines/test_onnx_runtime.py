"""ONNX Runtime with the real sentence model, and with graphs written here by hand."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'codriver[onnx]'")
pytest.importorskip("tokenizers", reason="needs the extra: pip install 'codriver[onnx]'")

from codriver.core.deadline import Deadline
from codriver.core.errors import (
    BadModelFile,
    DeadlineExceeded,
    MissingFile,
    PromptTooLong,
    RequestError,
    UnsupportedModality,
    UnsupportedParameter,
)
from codriver.core.messages import ChatRequest, EmbedRequest, Message, Tensor, TensorRequest
from codriver.engines.onnx_runtime import OnnxConfig, OnnxRuntime

ModelFile = Callable[[str], Path]
NEVER = Deadline.never()


@pytest.fixture(scope="module")
def embedder(model_file: ModelFile) -> OnnxRuntime:
    return OnnxRuntime(OnnxConfig(model=model_file("minilm.onnx"), tokenizer=model_file("minilm-tokenizer.json")))


# ---------------------------------------------------------------- a graph by hand: y = x + x, x float32 [batch, 2]


def _field(number: int, payload: bytes | int) -> bytes:
    """One protobuf member: an integer or a length-delimited value (ONNX files are protobuf)."""
    if isinstance(payload, int):
        return bytes([number << 3, payload])
    return bytes([number << 3 | 2, len(payload)]) + payload


def _value(name: bytes) -> bytes:
    batch = _field(1, _field(2, b"batch"))
    shape = _field(2, batch + _field(1, _field(1, 2)))
    tensor_type = _field(1, _field(1, 1) + shape)  # element type 1: float
    return _field(1, name) + _field(2, tensor_type)


@pytest.fixture
def doubler_file(tmp_path: Path) -> Path:
    node = _field(1, b"x") + _field(1, b"x") + _field(2, b"y") + _field(4, b"Add")
    graph = _field(1, node) + _field(2, b"g") + _field(11, _value(b"x")) + _field(12, _value(b"y"))
    file = tmp_path / "doubler.onnx"
    file.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 13)))
    return file


@pytest.fixture
def doubler(doubler_file: Path) -> OnnxRuntime:
    return OnnxRuntime(OnnxConfig(id="doubler", model=doubler_file))


def floats(*values: float, shape: tuple[int, ...], name: str = "x", dtype: str = "float32") -> Tensor:
    return Tensor(name, dtype, shape, struct.pack(f"<{len(values)}f", *values))


async def test_a_graph_runs(doubler: OnnxRuntime) -> None:
    request = TensorRequest((floats(1, 2, 3, 4, shape=(2, 2)),))
    (got,) = (await doubler.infer(request, NEVER)).outputs
    assert (got.name, got.dtype, got.shape) == ("y", "float32", (2, 2))
    assert struct.unpack("<4f", got.data) == (2, 4, 6, 8)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (floats(1, 2, shape=(1, 2), name="z"), "The graph 'doubler' has no input 'z'; it has: x."),
        (floats(1, 2, shape=(1, 2), dtype="float64"), "The input 'x' of the graph 'doubler' is float32; got float64."),
        (floats(1, 2, 3, shape=(1, 3)), "The input 'x' of the graph 'doubler' has shape (batch, 2); got (1, 3)."),
        (floats(1, 2, shape=(2,)), "has shape (batch, 2); got (2,)."),
        (floats(1, shape=(1, 2)), "needs 8 bytes for shape (1, 2); got 4."),
        (floats(shape=(-1, 2)), "has shape (batch, 2); got (-1, 2)."),
    ],
)
async def test_a_tensor_that_does_not_fit_is_refused_by_name(doubler: OnnxRuntime, tensor: Tensor, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        await doubler.infer(TensorRequest((tensor,)), NEVER)
    assert words in caught.value.message


async def test_missing_inputs_and_unknown_outputs(doubler: OnnxRuntime) -> None:
    with pytest.raises(RequestError, match="needs the input 'x', which is missing"):
        await doubler.infer(TensorRequest(()), NEVER)
    with pytest.raises(RequestError, match="has no output 'w'; it has: y"):
        await doubler.infer(TensorRequest((floats(1, 2, shape=(1, 2)),), outputs=("w",)), NEVER)


async def test_what_a_graph_is_not(doubler: OnnxRuntime) -> None:
    with pytest.raises(UnsupportedModality, match="'doubler' does not make embeddings"):
        await doubler.embed(EmbedRequest(input="x"), NEVER)
    with pytest.raises(UnsupportedModality, match="'doubler' does not chat"):
        await anext(doubler.generate(ChatRequest(messages=[Message(role="user", content="x")]), NEVER))


def test_missing_and_damaged_files(tmp_path: Path, doubler_file: Path) -> None:
    with pytest.raises(MissingFile, match=r"none\.onnx of 'embedder' does not exist"):
        OnnxRuntime(OnnxConfig(model=tmp_path / "none.onnx"))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(doubler_file.read_bytes()[:40])
    with pytest.raises(BadModelFile, match=rf"{damaged} of 'embedder' is not a usable ONNX graph: "):
        OnnxRuntime(OnnxConfig(model=damaged))
    with pytest.raises(MissingFile, match=r"none\.json of 'embedder' does not exist"):
        OnnxRuntime(OnnxConfig(model=doubler_file, tokenizer=tmp_path / "none.json"))
    damaged.write_bytes(b"{")
    with pytest.raises(BadModelFile, match=r"tokenizer file .* cannot be read"):
        OnnxRuntime(OnnxConfig(model=doubler_file, tokenizer=damaged))


# ---------------------------------------------------------------- the real sentence model


def cosine(left: list[float], right: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


@pytest.mark.model
async def test_paraphrases_are_nearer_than_other_sentences(embedder: OnnxRuntime) -> None:
    pairs = [
        ("Turn the heating up a bit.", "Make it warmer in here."),
        ("Where is the nearest charging station?", "Find me a place to charge the car nearby."),
        ("Play some jazz.", "I would like to hear jazz music."),
    ]
    made = await embedder.embed(EmbedRequest(input=[text for pair in pairs for text in pair]), NEVER)
    for index in range(0, len(made.vectors), 2):
        near = cosine(made.vectors[index], made.vectors[index + 1])
        others = [cosine(made.vectors[index], other) for at, other in enumerate(made.vectors) if at // 2 != index // 2]
        assert near > 0.5 > max(others)


@pytest.mark.model
async def test_a_batch_gives_what_single_texts_give(embedder: OnnxRuntime) -> None:
    texts = ["short", "a text of a few more words than that", "word " * 60]
    together = await embedder.embed(EmbedRequest(input=texts), NEVER)
    alone = [(await embedder.embed(EmbedRequest(input=text), NEVER)).vectors[0] for text in texts]
    # int8 activations are scaled over the batch, so equal means nearly equal.
    assert all(cosine(a, b) > 0.98 for a, b in zip(together.vectors, alone, strict=True))
    assert together.tokens == 3 + 11 + 62


@pytest.mark.model
async def test_long_texts_are_refused_unless_they_shall_be_cut(embedder: OnnxRuntime, model_file: ModelFile) -> None:
    with pytest.raises(PromptTooLong, match=r"The input has 1002 tokens; 'embedder' takes at most 256 per text") as one:
        await embedder.embed(EmbedRequest(input="word " * 1000), NEVER)
    assert (one.value.status, one.value.param) == (400, "input")
    with pytest.raises(PromptTooLong, match=r"Text 2 of 3 of the input has 257 tokens"):
        await embedder.embed(EmbedRequest(input=["x", "word " * 255, "y"]), NEVER)
    assert (await embedder.embed(EmbedRequest(input="word " * 254), NEVER)).tokens == 256
    files = {"model": model_file("minilm.onnx"), "tokenizer": model_file("minilm-tokenizer.json")}
    cutting = OnnxRuntime(OnnxConfig(**files, truncate=True))
    assert (await cutting.embed(EmbedRequest(input="word " * 1000), NEVER)).tokens == 256
    await cutting.aclose()


@pytest.mark.model
async def test_dimensions_stay_unit_length(embedder: OnnxRuntime) -> None:
    short = await embedder.embed(EmbedRequest(input="word " * 100, dimensions=64), NEVER)
    assert len(short.vectors[0]) == 64
    assert cosine(short.vectors[0], short.vectors[0]) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UnsupportedParameter, match="vectors of 1 to 384 dimensions, not 385"):
        await embedder.embed(EmbedRequest(input="x", dimensions=385), NEVER)


@pytest.mark.model
async def test_a_deadline_stops_the_run_and_the_engine_lives_on(embedder: OnnxRuntime) -> None:
    many = EmbedRequest(input=["word " * 250] * 200)
    with pytest.raises(DeadlineExceeded):
        await embedder.embed(many, Deadline.after(0.05))
    with pytest.raises(DeadlineExceeded, match="before the graph was run"):
        await embedder.embed(many, Deadline.after(-1))
    two = [asyncio.create_task(embedder.embed(EmbedRequest(input="x"), Deadline.after(20))) for _ in range(2)]
    await asyncio.sleep(0)
    assert (embedder.health().state, embedder.health().queue) == ("busy", 2)
    assert len(await asyncio.gather(*two)) == 2
    assert embedder.health().state == "ready"
