"""The process in which ExecuTorch runs a ``.pte`` file: ``executorch_child.py FILE THREADS METHOD``. See
``graph_process.py``. Its Python binding takes and gives tensors of torch, which is why torch must be installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
from graph_child import Named, first_line, serve  # type: ignore[import-not-found]

sys.path.pop()  # the other files there have names of libraries

# ExecuTorch's runtime/core/error.h and the order of c10's ScalarType: parts of its file format.
_ERRORS = {
    0x01: "an internal error",
    0x02: "it is in a state that does not allow this",
    0x10: "something in it is not supported by this build",
    0x11: "something in it is not implemented",
    0x12: "an argument does not fit",
    0x13: "a value is of the wrong type",
    0x14: "an operator that it needs is not built into this runtime",
    0x15: "more kernels are registered than there is room for",
    0x20: "something that it names is not in it, such as a delegate of this build",
    0x21: "memory could not be had",
    0x22: "the file could not be read",
    0x23: "it is no valid program",
    0x24: "its external data are not valid",
    0x25: "out of resources",
    0x30: "it was made for another version of its delegate",
    0x31: "memory for its delegate could not be had",
    0x32: "its delegate cannot be used here",
}
_DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", None, None, None, "bool")


def load(file: str, threads: int, method: str) -> Any:
    import torch  # first: the binding needs its libraries in the process

    # The binding itself: ``executorch.runtime`` is a thin layer on it that brings the whole exporter into the process.
    from executorch.extension.pybindings import _portable_lib as binding

    if threads:
        binding._unsafe_reset_threadpool(threads)
    program = binding._load_program(file, program_verification=binding.Verification.InternalConsistency)
    methods = [program.get_method_name(at) for at in range(program.num_methods())]
    if method not in methods:
        raise ValueError(f"it has no method '{method}'; it has: {', '.join(sorted(methods))}")
    loaded = program.load_method(method)
    about = loaded.method_meta()
    inputs = [_named("input", at, about.input_tensor_meta(at)) for at in range(about.num_inputs())]
    outputs = [_named("output", at, about.output_tensor_meta(at)) for at in range(about.num_outputs())]

    def run(feed: dict[str, Any]) -> list[tuple[Named, bytes]]:
        tensors = []
        for name, dtype, _ in inputs:
            shape, data = feed[name]
            tensors.append(torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape))
        found = []
        for (name, _, _), tensor in zip(outputs, loaded(tensors), strict=True):
            dtype = str(tensor.dtype).removeprefix("torch.")
            found.append(((name, dtype, tuple(tensor.shape)), tensor.contiguous().numpy().tobytes()))
        return found

    return inputs, outputs, run


def _named(what: str, at: int, about: Any) -> Named:
    """A ``.pte`` file gives its inputs and outputs no names: they go by their place."""
    code = int(about.dtype())
    dtype = _DTYPES[code] if code < len(_DTYPES) else None
    if dtype is None:
        raise ValueError(f"its {what} {at} is of a type that this engine does not take (number {code})")
    return f"{what}_{at}", dtype, tuple(about.sizes())


def whats_wrong(error: BaseException) -> str:
    """ExecuTorch says numbers, mostly."""
    line = first_line(error)
    numbers = re.findall(r"0x:?([0-9a-fA-F]+)", line)
    meaning = _ERRORS.get(int(numbers[-1], 16)) if numbers else None
    return f"{meaning} ({line.rstrip('.')})." if meaning else line


if __name__ == "__main__":
    serve(lambda: load(sys.argv[1], int(sys.argv[2]), sys.argv[3]), whats_wrong)
