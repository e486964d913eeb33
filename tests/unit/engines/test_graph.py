"""The engines of graphs, LiteRT and ExecuTorch: real runtimes, real files, and files that were spoiled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from codriver.core.deadline import Deadline
from codriver.core.errors import (
    BadModelFile,
    CodriverError,
    DeadlineExceeded,
    EngineDied,
    EngineUnavailable,
    MissingFile,
    RequestError,
)
from codriver.core.messages import Tensor, TensorRequest
from codriver.engines.executorch import ExecuTorch, ExecuTorchConfig
from codriver.engines.graph import GraphEngine
from codriver.engines.graph_process import Child, ChildEnded, GraphProcess
from codriver.engines.litert import LiteRt, LiteRtConfig
from codriver.engines.registry import ENGINES
from tests import graph_files

NEVER = Deadline.never()
Shared = Callable[[str], Path]


def need(name: str) -> None:
    reason = ENGINES.why_not(name)
    if reason is not None:
        pytest.skip(reason)


def floats(*values: float, shape: tuple[int, ...], name: str = "x", dtype: str = "float32") -> Tensor:
    return Tensor(name, dtype, shape, struct.pack(f"<{len(values)}f", *values))


async def start(kind: str, file: Path, data: bytes | None = None, **settings: Any) -> GraphEngine:
    if data is not None:
        file.write_bytes(data)
    if kind == "litert":
        return await LiteRt.start(LiteRtConfig(id="doubler", model=file, **settings))
    return await ExecuTorch.start(ExecuTorchConfig(id="doubler", model=file, **settings))


@pytest_asyncio.fixture(params=["litert", "executorch"])
async def doubler(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GraphEngine]:
    """y = x + x in either runtime; its input is the first of ``inputs``."""
    need(request.param)
    data = graph_files.tflite() if request.param == "litert" else graph_files.pte()
    engine = await start(request.param, tmp_path / "doubler", data)
    yield engine
    await engine.aclose()


async def test_a_graph_runs_refuses_what_does_not_fit_and_outlives_its_process(doubler: GraphEngine) -> None:
    ((name, spec),) = doubler.inputs.items()
    rows, columns = spec.shape
    assert isinstance(rows, int) and isinstance(columns, int)
    count = rows * columns
    right = floats(*range(count), shape=(rows, columns), name=name)
    got = (await doubler.infer(TensorRequest((right,)), NEVER)).outputs[0]
    assert (got.dtype, got.shape) == ("float32", (rows, columns))
    assert struct.unpack(f"<{count}f", got.data) == tuple(2.0 * value for value in range(count))

    wrong = {
        f"The graph 'doubler' has no input 'z'; it has: {name}.": floats(1, 2, shape=(1, 2), name="z"),
        f"The input '{name}' of the graph 'doubler' is float32; got float64.": floats(
            1, shape=(1, 1), name=name, dtype="float64"
        ),
        f"has shape ({rows}, {columns}); got (1, 3).": floats(1, 2, 3, shape=(1, 3), name=name),
        f"needs {4 * count} bytes for shape": floats(1, shape=(rows, columns), name=name),
    }
    for words, tensor in wrong.items():
        with pytest.raises(RequestError) as caught:
            await doubler.infer(TensorRequest((tensor,)), NEVER)
        assert words in caught.value.message
    with pytest.raises(RequestError, match=f"needs the input '{name}', which is missing"):
        await doubler.infer(TensorRequest(()), NEVER)
    with pytest.raises(RequestError, match="has no output 'w'"):
        await doubler.infer(TensorRequest((right,), outputs=("w",)), NEVER)
    with pytest.raises(DeadlineExceeded):
        await doubler.infer(TensorRequest((right,)), Deadline.after(-1.0))

    process = doubler._process._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = await doubler.infer(TensorRequest((right,)), NEVER)
    assert again.outputs[0].data == got.data, "the process is started again"
    assert doubler.health().state == "ready"


async def test_a_run_that_never_ends_is_ended_and_the_next_one_answers(doubler: GraphEngine) -> None:
    ((name, spec),) = doubler.inputs.items()
    shape = tuple(int(size) for size in spec.shape)
    request = TensorRequest((floats(*[1.0] * (shape[0] * shape[1]), shape=shape, name=name),))
    process = doubler._process._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    doubler._process._run_s = 0.2
    with pytest.raises(EngineDied, match=r"'doubler' failed: it was ended after 0\.2 s without an answer"):
        await doubler.infer(request, NEVER)
    doubler._process._run_s = 60.0
    assert (await doubler.infer(request, NEVER)).outputs
    process = doubler._process._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        await doubler.infer(request, Deadline.after(0.05))
    waiting = asyncio.create_task(doubler.infer(request, NEVER))
    await asyncio.sleep(0)
    assert doubler.health().state == "busy"
    await doubler.aclose()
    with pytest.raises(EngineUnavailable, match="'doubler' is closed"):
        await waiting
    assert process.wait() == -signal.SIGKILL


def spoiled(whole: bytes, seed: int) -> bytes:
    """A file that was cut, or in which some bits flipped; near its ends, where formats keep their structure."""
    chance = random.Random(seed)
    if seed % 4 == 0:
        return whole[: chance.randrange(len(whole))]
    data = bytearray(whole)
    for _ in range(4):
        near = chance.randrange(min(len(data), 20_000))
        at = near if chance.random() < 0.5 else len(data) - 1 - near
        data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


async def outcome(kind: str, file: Path, data: bytes) -> str:
    """How a spoiled file ends: with a sentence of ours that names it, or with an answer."""
    try:
        engine = await start(kind, file, data, load_s=60.0, run_s=20.0)
    except BadModelFile as error:
        assert str(file) in error.message
        return "refused"
    try:
        feed = []
        for spec in engine.inputs.values():
            shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
            width = {"uint8": 1, "int8": 1, "bool": 1, "float16": 2, "int16": 2, "int64": 8, "float64": 8}
            size = width.get(spec.dtype, 4)
            for dimension in shape:
                size *= dimension
            if size > 1 << 26:
                return "too large to try"
            feed.append(Tensor(spec.name, spec.dtype, shape, bytes(size)))
        await engine.infer(TensorRequest(tuple(feed)), NEVER)
    except CodriverError as error:
        assert "doubler" in error.message
        return type(error).__name__
    finally:
        await engine.aclose()
    return "ran"


async def test_spoiled_tflite_files_end_in_a_sentence(tmp_path: Path, shared_data: Shared) -> None:
    need("litert")
    whole = shared_data("vision/coral/mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    found = [await outcome("litert", tmp_path / "spoiled.tflite", spoiled(whole, seed)) for seed in range(8)]
    assert found.count("refused") >= 2, found


async def test_spoiled_pte_files_end_in_a_sentence(tmp_path: Path) -> None:
    need("executorch")
    whole = graph_files.pte()
    found = [await outcome("executorch", tmp_path / "spoiled.pte", spoiled(whole, seed)) for seed in range(4)]
    assert found.count("refused") >= 1, found


async def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    need("litert")
    with pytest.raises(MissingFile, match=r"none\.tflite of 'doubler' does not exist"):
        await start("litert", tmp_path / "none.tflite")
    with pytest.raises(BadModelFile, match=r"text\.tflite of 'doubler' is not a usable TensorFlow Lite graph: "):
        await start("litert", tmp_path / "text.tflite", b"These are words.")
    with pytest.raises(BadModelFile, match="NoSuchOperator"):
        await start("litert", tmp_path / "custom.tflite", graph_files.tflite(custom="NoSuchOperator"))


async def test_a_free_dimension_is_the_requests_to_choose(tmp_path: Path) -> None:
    need("litert")
    engine = await start("litert", tmp_path / "free.tflite", graph_files.tflite(free=True))
    assert engine.inputs["x"].shape == ("any", 2)
    for rows in (3, 1):
        values = [float(value) for value in range(2 * rows)]
        (got,) = (await engine.infer(TensorRequest((floats(*values, shape=(rows, 2)),)), NEVER)).outputs
        assert got.shape == (rows, 2)
        assert struct.unpack(f"<{2 * rows}f", got.data) == tuple(2 * value for value in values)
    await engine.aclose()


async def test_a_method_that_a_program_lacks(tmp_path: Path) -> None:
    need("executorch")
    with pytest.raises(BadModelFile, match="it has no method 'backward'; it has: forward"):
        await start("executorch", tmp_path / "doubler.pte", graph_files.pte(), method="backward")


def bitmap(file: Path) -> bytes:
    """The pixels of an uncompressed BMP, rows from the top; RGB for three bytes a pixel."""
    data = file.read_bytes()
    start, width, height, depth = (*struct.unpack_from("<I", data, 10), *struct.unpack_from("<iixxH", data, 18))
    size = depth // 8
    stride = (width * size + 3) // 4 * 4
    rows = [data[start + stride * row : start + stride * row + width * size] for row in reversed(range(height))]
    if size == 3:
        rows = [bytes(row[at + 2 - at % 3 - at % 3] for at in range(len(row))) for row in rows]
    return b"".join(rows)


async def test_a_street_is_segmented_as_its_published_mask_says(shared_data: Shared) -> None:
    need("litert")
    folder = shared_data("vision/coral")
    engine = await start("litert", folder / "deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite")
    ((name, spec),) = engine.inputs.items()
    assert (spec.dtype, spec.shape) == ("uint8", (1, 513, 513, 3))
    street, mask = (bitmap(folder / f"cityscapes_segmentation{end}.bmp") for end in ("", "_mask"))
    (got,) = (await engine.infer(TensorRequest((Tensor(name, "uint8", (1, 513, 513, 3), street),)), NEVER)).outputs
    await engine.aclose()
    assert (got.name, got.dtype, got.shape) == ("ArgMax", "int64", (1, 513, 513))
    classes = got.data[::8]  # little-endian, and there are 19 of them
    same = sum(one == other for one, other in zip(classes, mask, strict=True)) / len(mask)
    assert same > 0.9, same


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11 ended it"),
        ("import no_such_runtime", "it ended with 1: ModuleNotFoundError: No module named 'no_such_runtime'"),
        ("print('a greeting that nobody asked for')", "as its answer could not be understood"),
        ("print('7fffffff{}', end='')", "as its answer could not be understood"),
        ("import time; time.sleep(600)", "it was ended after 0.3 s without an answer"),
    ],
)
def test_a_child_that_fails_says_how(tmp_path: Path, script: str, words: str) -> None:
    file = tmp_path / "child.py"
    file.write_text(script)
    process = GraphProcess(Child(Path(sys.executable), file, ()), 0.3 if "sleep" in script else 60.0, 60.0)
    with pytest.raises(ChildEnded) as caught:
        process.load()
    assert words in str(caught.value)
    process.forget()
