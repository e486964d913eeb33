"""How fast does llama.cpp multiply on this machine? Its own matrix product, alone, by type and by how much there is.

One graph with one product, computed by the functions that the engine's wheel carries; nothing else of a model. A small
matrix stays in the cache and shows what the arithmetic can do; a large one shows what memory lets through.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np

from codriver.core.errors import MissingExtra

from ..ggml import NUMBERS, Bytes, library, quantise
from ..llama_runtime import GgmlTensor

LAID_OUT = ("Q4_0", "Q4_K", "IQ4_NL")  # ggml-cpu/repack.cpp, on AVX2 and on Arm's dot products
_LAYING_OUT = "_Z35ggml_backend_cpu_repack_buffer_typev"
_ROOM = 4 << 20  # for the graph and what describes its tensors


def busy_s(threads: int) -> float:
    """A clock that stands while others have the cores: this process's time on them, as a share of ``threads``. On a
    machine of its own it goes as the wall's does, but for waiting. Needs OpenMP that waits asleep
    (``OMP_WAIT_POLICY=passive``).
    """
    return time.process_time() / threads


class _InitParams(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _Plan(ctypes.Structure):
    """The begin of a ``ggml_cplan``, and room for what follows."""

    _fields_ = [("work_size", ctypes.c_size_t), ("work", ctypes.c_void_p), ("rest", ctypes.c_ubyte * 112)]


@cache
def _ggml() -> ctypes.CDLL:
    lib = library()
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, number, number]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_new_graph", pointer, [pointer]),
        ("ggml_build_forward_expand", None, [pointer, pointer]),
        ("ggml_graph_plan", _Plan, [pointer, ctypes.c_int, pointer]),
        ("ggml_graph_compute", ctypes.c_int, [pointer, ctypes.POINTER(_Plan)]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_backend_alloc_ctx_tensors_from_buft", pointer, [pointer, pointer]),
        ("ggml_backend_tensor_set", None, [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t]),
        ("ggml_backend_buffer_free", None, [pointer]),
    ):  # fmt: skip
        function = getattr(lib, name, None)
        if function is None:
            raise MissingExtra(f"The library in xllamacpp has no {name}: it is of another llama.cpp than this is for.")
        function.restype, function.argtypes = result, arguments
    lib.ggml_cpu_init()
    return lib


@dataclass(frozen=True)
class Shape:
    """``rows`` × ``width`` weights times ``tokens`` columns; ``times`` such products in one graph, as in a model."""

    rows: int
    width: int
    tokens: int = 1
    times: int = 1

    @property
    def operations(self) -> float:
        """Multiplications and additions of the whole graph."""
        return 2.0 * self.rows * self.width * self.tokens * self.times


@contextmanager
def product(kind: str, shape: Shape, threads: int) -> Iterator[Callable[[], float]]:
    """A function that computes the graph once and gives the seconds that it took (:func:`busy_s`). Errors:
    :class:`MissingExtra`.
    """
    lib = _ggml()
    data = _weights(kind, shape.rows, shape.width)
    laid_out = None
    inputs = np.random.default_rng(1).standard_normal(shape.width * shape.tokens).astype(np.float32)
    results = 4 * shape.rows * shape.tokens * shape.times
    context = lib.ggml_init(_InitParams(data.nbytes + inputs.nbytes + results + _ROOM, None, False))
    if not context:
        raise MissingExtra("llama.cpp gives no memory for a product.")
    try:
        laid_out = _laid_out(kind, shape, data)
        weights = laid_out[1] if laid_out else lib.ggml_new_tensor_2d(context, NUMBERS[kind], shape.width, shape.rows)
        given = lib.ggml_new_tensor_2d(context, NUMBERS["F32"], shape.width, shape.tokens)
        if not laid_out:
            ctypes.memmove(lib.ggml_get_data(weights), data.ctypes.data, data.nbytes)
        ctypes.memmove(lib.ggml_get_data(given), inputs.ctypes.data, inputs.nbytes)
        graph = lib.ggml_new_graph(context)
        for _ in range(shape.times):
            lib.ggml_build_forward_expand(graph, lib.ggml_mul_mat(context, weights, given))
        plan = lib.ggml_graph_plan(graph, threads, None)
        work = (ctypes.c_ubyte * max(1, plan.work_size))()
        plan.work = ctypes.addressof(work)

        def seconds() -> float:
            began_s = busy_s(threads)
            lib.ggml_graph_compute(graph, ctypes.byref(plan))
            return busy_s(threads) - began_s

        yield seconds
    finally:
        if laid_out:
            lib.ggml_backend_buffer_free(laid_out[2])
            lib.ggml_free(laid_out[0])
        lib.ggml_free(context)


def _laid_out(kind: str, shape: Shape, data: Bytes) -> tuple[int, int, int] | None:
    """The weights as llama.cpp lays some types out anew when it loads a file, for this processor: their context, tensor
    and buffer. ``None`` for a type that it leaves as it is.
    """
    lib = _ggml()
    if kind not in LAID_OUT or not hasattr(lib, _LAYING_OUT):
        return None
    function = getattr(lib, _LAYING_OUT)
    function.restype, function.argtypes = ctypes.c_void_p, []
    context = lib.ggml_init(_InitParams(_ROOM, None, True))
    weights = lib.ggml_new_tensor_2d(context, NUMBERS[kind], shape.width, shape.rows)
    buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, function())
    # What follows the name in a tensor says how it is laid out; it stays empty where that is not done here.
    if not buffer or not ctypes.c_void_p.from_address(weights + ctypes.sizeof(GgmlTensor)).value:
        if buffer:
            lib.ggml_backend_buffer_free(buffer)
        lib.ggml_free(context)
        return None
    lib.ggml_backend_tensor_set(weights, data.ctypes.data, 0, data.nbytes)
    return context, weights, buffer


def _weights(kind: str, rows: int, width: int) -> Bytes:
    """A few rounded rows, again and again: rounding takes long, and their values do not change how fast they are."""
    few = min(rows, 64)
    values = np.random.default_rng(0).standard_normal((few, width)).astype(np.float32)
    part = quantise(kind, values, np.ones(width, np.float32))
    row = part.nbytes // few
    return np.resize(part, rows * row)
