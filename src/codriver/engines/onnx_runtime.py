"""ONNX Runtime as an engine: sentence embeddings (a graph with its tokenizer) and generic tensor graphs.

Extra ``onnx``. The graph runs in a thread; a deadline stops it at the next operator. Limits: CPU; one graph per engine;
a text of more than ``max_tokens`` is refused, or cut where the setting ``truncate`` says so. The rule kept here: what
does not fit the graph is refused by name before anything runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from codriver.core.config import setting
from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, EngineCard, Health
from codriver.core.errors import (
    BadModelFile,
    DeadlineExceeded,
    EngineUnavailable,
    MissingFile,
    PromptTooLong,
    RequestError,
    UnsupportedModality,
    UnsupportedParameter,
)
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, Tensor, TensorRequest, Tensors

from .onnx_runtime_integers import in_integers
from .tensor_fit import Spec, outputs_wanted

T = TypeVar("T")
Floats = NDArray[np.float32]
_NO_CHUNKS: tuple[ChatChunk, ...] = ()  # makes ``generate`` an iterator that refuses on its first step

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    **{
        f"tensor({name})": name
        for name in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    },
}


@dataclass(frozen=True)
class OnnxConfig:
    """One graph. With a tokenizer it makes embeddings as well."""

    id: str = setting("embedder", "The engine's name.")
    model: Path = setting(Path("model.onnx"), "The ONNX file.")
    tokenizer: Path | None = setting(None, "The tokenizer.json of an embedding model.")
    locality: Literal["vehicle", "cloud"] = setting("vehicle", "Where the engine runs.")
    pooling: Literal["mean", "cls"] = setting("mean", "How token vectors become one: their mean, or the first.")
    max_tokens: int = setting(256, "Most tokens of a text; all-MiniLM-L6-v2 was trained on 256.", least=8)
    truncate: bool = setting(False, "Cut longer texts in silence, instead of refusing them.")
    batch: int = setting(16, "Texts that go through the graph at once.", least=1)
    threads: int = setting(1, "Threads of one run; 0 means one per core. One is best for single sentences.", least=0)
    integers: bool = setting(True, "Multiply in integers where the file's weights are int8, and not as float32.")


class OnnxRuntime:
    """Errors on construction: :class:`MissingFile`, :class:`BadModelFile` for a file that is no usable graph."""

    def __init__(self, config: OnnxConfig) -> None:
        self._config = config
        self._session, in_integers = _open_session(config)
        # A graph that quantises as it runs scales over its batch: the same text would differ by its company.
        self._batch = 1 if in_integers else config.batch
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self._specs = {name: _spec(item) for name, item in self._inputs.items()}
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._tokenizer = _open_tokenizer(config) if config.tokenizer is not None else None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"onnx-{config.id}")
        self._waiting = 0
        self._closed = False
        capabilities: tuple[Capability, ...] = ("tensors", "embeddings") if self._tokenizer else ("tensors",)
        self.card = EngineCard(
            id=config.id,
            locality=config.locality,
            model=config.model.stem,
            modalities=frozenset({"text"} if self._tokenizer else set()),
            capabilities=frozenset(capabilities),
            context_tokens=config.max_tokens if self._tokenizer else 0,
        )

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        for chunk in _NO_CHUNKS:
            yield chunk
        raise UnsupportedModality(f"The model '{self.card.id}' does not chat.", param="model")

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        """Texts as unit vectors; ``dimensions`` keeps the first ones and makes the rest unit again.

        A file that quantises as it runs scales over its batch: the same text in other company differs. Where the engine
        itself put products in integers, each text runs alone.

        Errors: :class:`UnsupportedModality` without a tokenizer, :class:`UnsupportedParameter` for more dimensions than
        there are, :class:`PromptTooLong` for a text over ``max_tokens``.
        """
        if self._tokenizer is None:
            raise UnsupportedModality(f"The model '{self.card.id}' does not make embeddings.", param="model")
        texts = request.texts()
        vectors, tokens = await self._in_thread(lambda run: self._embed_all(texts, run), deadline)
        if request.dimensions is not None:
            vectors = self._shortened(vectors, request.dimensions)
        return Embeddings(vectors.tolist(), tokens, self.card.model)

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        """Run the graph. Errors: :class:`RequestError` naming the tensor, what was expected and what came."""
        wanted = outputs_wanted(self.card.id, self._specs, self._outputs, request)
        feed = {tensor.name: _as_array(tensor) for tensor in request.inputs}
        arrays = await self._in_thread(lambda run: self._run(wanted, feed, run), deadline)
        return Tensors(tuple(_as_tensor(name, array) for name, array in zip(wanted, arrays, strict=True)))

    def health(self) -> Health:
        if self._closed:
            return Health("down", reason="closed")
        return Health("busy" if self._waiting > 1 else "ready", queue=self._waiting)

    async def aclose(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[Any], T], deadline: Deadline) -> T:
        """Run ``work(run options)`` in the engine's thread; leaving early tells the run to stop."""
        if self._closed:
            raise EngineUnavailable(f"The engine '{self.card.id}' is closed.", engine=self.card.id)
        if deadline.expired():
            raise DeadlineExceeded("The deadline passed before the graph was run.")
        run = ort.RunOptions()
        self._waiting += 1
        try:
            return await deadline.wait(asyncio.get_running_loop().run_in_executor(self._pool, work, run))
        finally:
            run.terminate = True  # without effect on a run that is over
            self._waiting -= 1

    def _run(self, outputs: list[str], feed: dict[str, Any], run: Any) -> list[NDArray[Any]]:
        if run.terminate:
            raise DeadlineExceeded("The deadline passed before the graph was run.")
        try:
            found: list[NDArray[Any]] = self._session.run(outputs, feed, run)
        except (RuntimeError, ValueError, *_ORT_ERRORS) as error:
            raise RequestError(f"The graph '{self.card.id}' cannot take these inputs: {_first_line(error)}") from error
        return found

    def _embed_all(self, texts: list[str], run: Any) -> tuple[Floats, int]:
        """Vectors in the order of the texts; those of similar length share a batch, which pads the least."""
        assert self._tokenizer is not None
        encoded = self._tokenizer.encode_batch(texts)
        self._refuse_long([len(item.ids) for item in encoded])
        order = sorted(range(len(texts)), key=lambda index: len(encoded[index].ids))
        vectors: dict[int, Floats] = {}
        for start in range(0, len(order), self._batch):
            part = order[start : start + self._batch]
            pooled = self._embed_batch([encoded[index].ids for index in part], run)
            vectors.update(zip(part, pooled, strict=True))
        tokens = sum(len(item.ids) for item in encoded)
        return np.stack([vectors[index] for index in range(len(texts))]), tokens

    def _refuse_long(self, tokens: list[int]) -> None:
        limit = self._config.max_tokens
        for number, count in enumerate(tokens, start=1):
            if count > limit:
                which = "The input" if len(tokens) == 1 else f"Text {number} of {len(tokens)} of the input"
                raise PromptTooLong(
                    f"{which} has {count} tokens; '{self.card.id}' takes at most {limit} per text. Split it.",
                    param="input",
                )

    def _embed_batch(self, ids: list[list[int]], run: Any) -> Floats:
        length = max(map(len, ids))
        padded = np.zeros((len(ids), length), np.int64)
        mask = np.zeros((len(ids), length), np.int64)
        for row, sequence in enumerate(ids):
            padded[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        feed = {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros_like(padded)}
        (states,) = self._run(self._outputs[:1], {k: v for k, v in feed.items() if k in self._inputs}, run)
        if self._config.pooling == "cls":
            return _unit(states[:, 0])
        weights = mask[:, :, None].astype(np.float32)
        return _unit((states * weights).sum(axis=1) / weights.sum(axis=1))

    def _shortened(self, vectors: Floats, dimensions: int) -> Floats:
        if not 1 <= dimensions <= vectors.shape[1]:
            raise UnsupportedParameter(
                f"The model '{self.card.id}' makes vectors of 1 to {vectors.shape[1]} dimensions, not {dimensions}.",
                param="dimensions",
            )
        return _unit(vectors[:, :dimensions])


_ORT_ERRORS = tuple(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
)


def _open_session(config: OnnxConfig) -> tuple[Any, bool]:
    """The session, and whether products were put in integers."""
    if not config.model.is_file():
        raise MissingFile(f"The model file {config.model} of '{config.id}' does not exist; pull it, or mend the path.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = config.threads
    # Waiting threads sleep: in a vehicle the cores belong to others as well.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised, not printed
    providers = ["CPUExecutionProvider"]
    graph = in_integers(config.model) if config.integers else None
    if graph is not None:
        with contextlib.suppress(RuntimeError, *_ORT_ERRORS):  # then the file as it is
            return ort.InferenceSession(graph, options, providers=providers), True
    try:
        return ort.InferenceSession(str(config.model), options, providers=providers), False
    except (RuntimeError, *_ORT_ERRORS) as error:
        raise BadModelFile(
            f"The model file {config.model.absolute()} of '{config.id}' is not a usable ONNX graph: "
            f"{_first_line(error)}"
        ) from error


def _open_tokenizer(config: OnnxConfig) -> Any:
    from tokenizers import Tokenizer

    path = config.tokenizer
    assert path is not None
    if not path.is_file():
        raise MissingFile(f"The tokenizer file {path} of '{config.id}' does not exist; pull it, or mend the path.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself, nothing narrower
        raise BadModelFile(
            f"The tokenizer file {path.absolute()} of '{config.id}' cannot be read: {_first_line(error)}"
        ) from error
    tokenizer.no_padding()  # batches are padded here, to their own longest text
    if config.truncate:
        tokenizer.enable_truncation(config.max_tokens)
    else:
        tokenizer.no_truncation()
    return tokenizer


def _spec(item: Any) -> Spec:
    return Spec(item.name, _DTYPES.get(item.type, item.type), tuple(item.shape))


def _as_array(tensor: Tensor) -> NDArray[Any]:
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)


def _as_tensor(name: str, array: NDArray[Any]) -> Tensor:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return Tensor(name, array.dtype.name, tuple(array.shape), little.tobytes())


def _unit(vectors: NDArray[Any]) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return line if line.endswith(".") else line + "."
