"""A graph in the runtimes that ship it: ONNX Runtime and OpenVINO, on the CPU, and how long both take.

Limits: one input. The rule kept: figures that are compared come from one process, each runtime in turn with the same
number of threads, picture by picture, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from codriver.core.errors import BadModelFile, MissingExtra

Floats = NDArray[np.float32]
RUNTIMES = ("onnxruntime", "openvino")


_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
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
    ),
)


class Graph(Protocol):
    shape: tuple[int, ...]

    def run(self, picture: Floats) -> list[Floats]:
        """All outputs in the graph's order, copied out of the runtime."""


class OrtGraph:
    """Errors: :class:`BadModelFile` for what ONNX Runtime does not load or run."""

    def __init__(
        self, model: Path | bytes, threads: int, optimised_to: Path | None = None, extended: bool = True
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what fails is raised, not printed
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not extended:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if optimised_to is not None:
            options.optimized_model_filepath = str(optimised_to)
        self._called = "the graph" if isinstance(model, bytes) else str(model)
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session: Any = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except _ERRORS as error:
            raise BadModelFile(f"ONNX Runtime does not load {self._called}: {_first_line(error)}") from error
        (first, *_) = self._session.get_inputs()
        self._input = str(first.name)
        self.shape = tuple(side if isinstance(side, int) else 1 for side in first.shape)
        self.outputs = [str(one.name) for one in self._session.get_outputs()]

    def run(self, picture: Floats) -> list[Floats]:
        try:
            found: list[Floats] = self._session.run(None, {self._input: picture})
        except _ERRORS as error:
            raise BadModelFile(f"ONNX Runtime does not run {self._called}: {_first_line(error)}") from error
        return found


class OpenvinoGraph:
    """Errors: :class:`MissingExtra`; :class:`BadModelFile` for what OpenVINO does not load."""

    def __init__(self, model: Path, threads: int) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise MissingExtra("OpenVINO is not installed: pip install 'codriver[openvino]'.")
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        try:
            compiled = openvino.Core().compile_model(str(model), "CPU", settings)
        except RuntimeError as error:
            raise BadModelFile(f"OpenVINO does not load {model}: {_first_line(error)}") from error
        self._request: Any = compiled.create_infer_request()
        self.shape = tuple(compiled.input(0).shape)
        self._outputs = range(len(compiled.outputs))

    def run(self, picture: Floats) -> list[Floats]:
        found = self._request.infer({0: picture})
        return [np.array(found[at]) for at in self._outputs]


def open_graph(file: Path, runtime: str, threads: int) -> Graph:
    """``runtime``: one of ``RUNTIMES``. Errors: those of the graphs."""
    return OrtGraph(file, threads) if runtime == "onnxruntime" else OpenvinoGraph(file, threads)


def usable() -> tuple[str, ...]:
    return tuple(name for name in RUNTIMES if importlib.util.find_spec(name) is not None)


@dataclass(frozen=True)
class Times:
    """Milliseconds of each run: by the clock, and of the processor, which other work lengthens less."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.wall_ms))

    @property
    def cpu_p50_ms(self) -> float:
        return float(np.median(self.cpu_ms))

    def interval(self) -> tuple[float, float]:
        """95 % of the median, by ranks (binomial)."""
        return median_interval(self.wall_ms)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """By ranks, without a shape: Conover, Practical Nonparametric Statistics, 1999, section 3.2."""
    ranked, count = sorted(values), len(values)
    reach = 1.96 * np.sqrt(count) / 2
    low, high = int(np.floor(count / 2 - reach)), int(np.ceil(count / 2 + reach))
    return ranked[max(0, low)], ranked[min(count - 1, high)]


def interleaved(graphs: Mapping[str, Graph], pictures: Sequence[Floats], rounds: int) -> dict[str, Times]:
    """Each graph on each picture in turn; two runs of each that warm up are not counted."""
    wall: dict[str, list[float]] = {name: [] for name in graphs}
    cpu: dict[str, list[float]] = {name: [] for name in graphs}
    for at in range(rounds + 2):
        for name, graph in graphs.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            graph.run(pictures[at % len(pictures)])
            wall[name].append(1e3 * (time.perf_counter() - wall_s))
            cpu[name].append(1e3 * (time.process_time() - cpu_s))
    return {name: Times(tuple(wall[name][2:]), tuple(cpu[name][2:])) for name in graphs}


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return line if line.endswith(".") else line + "."
