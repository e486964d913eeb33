"""Every engine the contract is run against, each as an async context manager that opens a fresh one.

To add an engine, write a function that takes ``find`` (a file of real weights by name, or a skip with the reason) and
yields an open engine, and name it in ``CASES``.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine, EngineCard
from codriver.engines.null import Null, NullConfig
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.engines.replay import FixedTiming, Recording, Replay
from codriver.engines.swapping import SwappingEngine
from tests import graph_files
from tests.contract.upstream import serve

Find = Callable[[str], Path]
Open = Callable[[Find], AbstractAsyncContextManager[Engine]]

PROMPT = "Count from one to fifty in English words, separated by commas."
TEXT = "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen"
CONTEXT = 1000  # of the engines made here
THREADS = 1  # of real models: more of them spin on a busy machine, waiting for each other
_EVERYTHING = ("chat", "completions", "embeddings", "tools", "json_schema", "logprobs")


@asynccontextmanager
async def null(find: Find) -> AsyncIterator[Engine]:
    engine = Null(NullConfig(text=TEXT, per_token_ms=0.1, context_tokens=CONTEXT))
    yield engine
    await engine.aclose()


@asynccontextmanager
async def swapping(find: Find) -> AsyncIterator[Engine]:
    """In the place of another that was there first."""
    config = NullConfig(text=TEXT, per_token_ms=0.1, context_tokens=CONTEXT)

    async def load() -> Engine:
        return Null(config)

    engine = SwappingEngine(Null(config))
    await engine.swap(load)
    yield engine
    await engine.aclose()


@asynccontextmanager
async def replay(find: Find) -> AsyncIterator[Engine]:
    words = Recording(TEXT).pieces
    recordings = {PROMPT: Recording(TEXT, logprobs=tuple(-0.01 * n for n in range(len(words))))}
    card = EngineCard(
        id="recorded", locality="cloud", model="r-1", capabilities=frozenset({"chat", "logprobs", "prefill"})
    )
    engine = Replay(card, recordings, FixedTiming(ttft_ms=2, per_token_ms=0.1))
    yield engine
    await engine.aclose()


@asynccontextmanager
async def openai(find: Find) -> AsyncIterator[Engine]:
    """Against a small real server on loopback."""
    async with serve(Null(NullConfig(text=TEXT, context_tokens=CONTEXT))) as upstream:
        engine = OpenAIServer(OpenAIConfig(url=upstream.url, capabilities=_EVERYTHING, prefill="llama_cpp"))
        yield engine
        await engine.aclose()


@asynccontextmanager
async def openai_llama_server(find: Find) -> AsyncIterator[Engine]:
    """Against llama.cpp's own server."""
    xllamacpp: Any = pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(find("smollm2.gguf"))
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = 4, 4 * 2048
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.use_jinja, params.verbosity = True, 0
    server = xllamacpp.Server(params)
    # No tools: this model's template knows none, and the server answers in prose then.
    chat = ("chat", "completions", "json_schema", "logprobs")
    engine = OpenAIServer(OpenAIConfig(url=server.listening_address, capabilities=chat, prefill="llama_cpp"))
    await engine.discover(Deadline.after(10))
    yield engine
    await engine.aclose()
    del server


@asynccontextmanager
async def llama_cpp(find: Find) -> AsyncIterator[Engine]:
    pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp")
    from codriver.engines.llama_cpp import LlamaCpp
    from codriver.engines.llama_cpp_config import LlamaCppConfig

    engine = await LlamaCpp.start(LlamaCppConfig(model=find("smollm2.gguf"), context_tokens=CONTEXT, threads=THREADS))
    yield engine
    await engine.aclose()


@asynccontextmanager
async def openvino(find: Find) -> AsyncIterator[Engine]:
    pytest.importorskip("openvino_genai", reason="needs the extra: pip install 'codriver[openvino]'")
    from codriver.engines.openvino import OpenVino, OpenVinoConfig

    engine = await OpenVino.start(OpenVinoConfig(model=find("smollm2.gguf"), context_tokens=CONTEXT, threads=THREADS))
    yield engine
    await engine.aclose()


@asynccontextmanager
async def onnx_genai(find: Find) -> AsyncIterator[Engine]:
    pytest.importorskip("onnxruntime_genai", reason="needs the extra: pip install 'codriver[onnx]'")
    pytest.importorskip("tokenizers", reason="needs the extra: pip install 'codriver[onnx]'")
    from codriver.engines.onnx_genai import OnnxGenai, OnnxGenaiConfig
    from codriver.optimize.formats.export import export

    with tempfile.TemporaryDirectory() as folder:
        export(find("smollm2.gguf"), "onnx-genai", Path(folder) / "smollm2", lambda step: None)
        config = OnnxGenaiConfig(model=Path(folder) / "smollm2", context_tokens=CONTEXT, threads=THREADS)
        engine = await OnnxGenai.start(config)
        yield engine
        await engine.aclose()


@asynccontextmanager
async def onnx_runtime(find: Find) -> AsyncIterator[Engine]:
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'codriver[onnx]'")
    pytest.importorskip("tokenizers", reason="needs the extra: pip install 'codriver[onnx]'")
    from codriver.engines.onnx_runtime import OnnxConfig, OnnxRuntime

    engine = OnnxRuntime(OnnxConfig(model=find("minilm.onnx"), tokenizer=find("minilm-tokenizer.json")))
    yield engine
    await engine.aclose()


@asynccontextmanager
async def litert(find: Find) -> AsyncIterator[Engine]:
    pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'codriver[litert]'")
    from codriver.engines.litert import LiteRt, LiteRtConfig

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "doubler.tflite"
        file.write_bytes(graph_files.tflite())
        engine = await LiteRt.start(LiteRtConfig(model=file, threads=THREADS))
        yield engine
        await engine.aclose()


@asynccontextmanager
async def executorch(find: Find) -> AsyncIterator[Engine]:
    pytest.importorskip("executorch", reason="needs the extra: pip install 'codriver[executorch]'")
    from codriver.engines.executorch import ExecuTorch, ExecuTorchConfig

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "doubler.pte"
        file.write_bytes(graph_files.pte())
        engine = await ExecuTorch.start(ExecuTorchConfig(model=file, threads=THREADS))
        yield engine
        await engine.aclose()


WEIGHTS = {"openai_llama_server", "onnx_runtime", "llama_cpp", "onnx_genai", "openvino"}  # these need real weights
CASES: dict[str, Open] = {
    "null": null,
    "swapping": swapping,
    "replay": replay,
    "openai": openai,
    "openai_llama_server": openai_llama_server,
    "executorch": executorch,
    "litert": litert,
    "llama_cpp": llama_cpp,
    "onnx_genai": onnx_genai,
    "onnx_runtime": onnx_runtime,
    "openvino": openvino,
}
