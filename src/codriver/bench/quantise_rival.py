"""llama.cpp's own quantisation, in a process of its own: the function behind ``llama-quantize``, with an imatrix.

Run as ``python -m codriver.bench.quantise_rival LIBRARIES SOURCE TARGET TYPE IMATRIX``: a folder with ``libllama``
(the npm package ``@node-llama-cpp/linux-x64`` brings one; the engine's wheel leaves this function out), an F32 or F16
file, what to write, llama.cpp's number of the type, and an ``.npz`` of importance by tensor.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path

import numpy as np

_BYTES = 256
# nthread, ftype, two tensor types (43: none of them), then six flags of which only the second is on.
_DEFAULT = struct.pack("<ii", 0, 7)
_FLAGS = bytes([0, 1, 0, 0, 0, 0])


class _Params(ctypes.Structure):
    _fields_ = [("raw", ctypes.c_ubyte * _BYTES)]


class _Importance(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


def main(libraries: Path, source: Path, target: Path, file_type: int, importance: Path) -> int:
    """llama.cpp's return code, 0 for a file that was written."""
    lib = _loaded(libraries)
    lib.llama_model_quantize_default_params.restype = _Params
    raw = bytearray(lib.llama_model_quantize_default_params().raw)
    if raw[:8] != _DEFAULT or raw[16:22] != _FLAGS:
        raise SystemExit("this libllama has quantisation parameters of another version than this is for")
    arrays = {name: np.ascontiguousarray(data, np.float32) for name, data in np.load(importance).items()}
    table = (_Importance * (len(arrays) + 1))(
        *(
            _Importance(name.encode(), data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), data.size)
            for name, data in arrays.items()
        )
    )
    struct.pack_into("<ii", raw, 0, 2, file_type)
    struct.pack_into("<Q", raw, 24, ctypes.addressof(table))
    params = (ctypes.c_ubyte * _BYTES)(*raw)
    lib.llama_backend_init()
    lib.llama_model_quantize.restype = ctypes.c_uint32
    return int(lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)))


def _loaded(folder: Path) -> ctypes.CDLL:
    for name in ("libggml-base.so", "libggml.*.so", "libllama.*.so"):
        files = sorted(folder.glob(name))
        if not files:
            raise SystemExit(f"{folder} has no {name}")
        found = ctypes.CDLL(str(files[0]), mode=ctypes.RTLD_GLOBAL)
    return found


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    sys.exit(main(given[0], given[1], given[2], int(sys.argv[4]), given[4]))
