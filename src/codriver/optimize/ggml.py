"""The arithmetic of llama.cpp's block formats, by llama.cpp itself: the functions that the engine's wheel carries.

The wheel ``xllamacpp`` exports ggml's C functions, so that what is written here is what the vehicle's own runtime
reads, bit for bit. Nothing is imported from it; its library is opened by ``ctypes``. Types go by their names in GGUF
files (``Q4_K``, ``Q8_0``, ``F16``).
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codriver.core.errors import MissingExtra
from codriver.core.gguf import TENSOR_TYPES

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
_PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8")}
_FLOAT_P = ctypes.POINTER(ctypes.c_float)


def library_file() -> Path | None:
    """The library in the wheel of llama.cpp; ``None`` where that is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    return next(iter(sorted(folder.glob("xllamacpp*.so"))), None) if folder is not None else None


@cache
def library() -> ctypes.CDLL:
    """Errors: :class:`MissingExtra` where the wheel is missing or exports no ggml."""
    file = library_file()
    if file is None:
        raise MissingExtra("GGUF weights are read and written by xllamacpp, which is not installed here.")
    found = ctypes.CDLL(str(file))
    if not hasattr(found, "ggml_quantize_chunk"):
        raise MissingExtra(f"The library {file} does not export ggml's functions; install xllamacpp from PyPI.")
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, _FLOAT_P, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _FLOAT_P
    ]  # fmt: skip
    found.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return found


def block(kind: str) -> tuple[int, int]:
    """Weights and bytes of one block of a type."""
    _, weights, size = TENSOR_TYPES[NUMBERS[kind]]
    return weights, size


def bits(kind: str) -> float:
    """Bits that a weight of this type takes in a file."""
    weights, size = block(kind)
    return 8 * size / weights


def size_bytes(kind: str, weights: int) -> int:
    per_block, size = block(kind)
    return weights // per_block * size


def dequantise(kind: str, data: Bytes, shape: tuple[int, int]) -> Floats:
    """Weights as ``(rows, width)`` from their bytes in a file."""
    if kind in _PLAIN:
        plain: Floats = data.view(_PLAIN[kind]).astype(np.float32).reshape(shape)
        return plain
    if kind == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    source = np.ascontiguousarray(data)
    weights = np.empty(shape, np.float32)
    function = getattr(library(), f"dequantize_row_{_symbol(kind)}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, _FLOAT_P, ctypes.c_int64]
    function(source.ctypes.data, _pointer(weights), weights.size)
    return weights


def quantise(kind: str, weights: Floats, importance: Floats | None = None) -> Bytes:
    """The bytes of ``weights`` (rows × width) rounded as llama.cpp rounds them.

    ``importance``: how much each column counts (llama.cpp's *imatrix*: the mean square of what is multiplied by it).
    """
    if kind in _PLAIN:
        return np.ascontiguousarray(weights.astype(_PLAIN[kind])).view(np.uint8).reshape(-1)
    rows, width = weights.shape
    source = np.ascontiguousarray(weights, np.float32)
    data = np.empty(size_bytes(kind, source.size), np.uint8)
    weigh = None if importance is None else np.ascontiguousarray(importance, np.float32)
    lib, number = library(), NUMBERS[kind]
    wanted = lib.ggml_quantize_requires_imatrix(number)
    if wanted and weigh is None:
        weigh = np.ones(width, np.float32)
    lib.ggml_quantize_init(number)
    lib.ggml_quantize_chunk(
        number, _pointer(source), data.ctypes.data, 0, rows, width, None if weigh is None else _pointer(weigh)
    )
    return data


def _symbol(kind: str) -> str:
    return kind.lower().replace("_k", "_K") if kind.endswith("_K") else kind.lower()


def _pointer(array: Floats) -> ctypes._Pointer[ctypes.c_float]:
    return array.ctypes.data_as(_FLOAT_P)
