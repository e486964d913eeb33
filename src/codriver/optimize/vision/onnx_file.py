"""Reading an ONNX file that nobody vouches for, and writing one whole or not at all.

The rules kept: the size of everything that the file declares is worked out before memory is taken for it; a file that
refers to other files is refused, wherever they lie; and a graph is first loaded and run in a process of its own, with
a bound on memory and time, so that what makes the runtime crash costs a sentence and not the program.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from codriver.core.errors import BadModelFile, DiskFull, MissingFile

from .darknet import read_darknet
from .twinlitenet_graph import read_twinlitenet

LARGEST_FILE_BYTES = 1 << 30
LARGEST_TENSOR_BYTES = 1 << 29
_MOST_DIMENSIONS = 8
_TRIAL_S = 60


def read_model(file: Path) -> onnx.ModelProto:
    """An ``.onnx`` file, Darknet ``.weights`` with their ``.cfg`` beside them, or TwinLiteNet's checkpoint (``.pth``);
    nothing of it has been run.

    Errors: :class:`MissingFile`; :class:`BadModelFile` naming the file, and the tensor or layer.
    """
    readers: dict[str, Callable[[Path], onnx.ModelProto]] = {".weights": read_darknet, ".pth": read_twinlitenet}
    return readers.get(file.suffix, read_onnx)(file)


def read_onnx(file: Path) -> onnx.ModelProto:
    """Errors: as :func:`read_model`."""
    if not file.is_file():
        raise MissingFile(f"The model file {file} does not exist.")
    size = file.stat().st_size
    if size > LARGEST_FILE_BYTES:
        raise BadModelFile(f"The file {file} has {size:,} bytes; graphs of up to {LARGEST_FILE_BYTES:,} are read.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise BadModelFile(
            f"The file {file} is no ONNX graph, or it is cut short: its {size:,} bytes do not parse."
        ) from None
    if not model.graph.node or not model.opset_import:
        raise BadModelFile(f"The file {file} is no ONNX graph: it has no nodes, or no operator set.")
    for tensor in _tensors(model):
        _refuse_bad(tensor, file)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        _refuse_large(value, file)
    _refuse_invalid(model, file)
    return model


def write_model(model: onnx.ModelProto, target: Path) -> None:
    """Errors: :class:`DiskFull`; nothing is left under the name then."""
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as opened:
            opened.write(model.SerializeToString())
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"There is no room for {target}; nothing of it was kept.") from error
        raise


def refuse_unusable(file: Path) -> None:
    """Run the graph once, on zeros, in a process of its own. Errors: :class:`BadModelFile` with what it said."""
    command = [sys.executable, "-m", "codriver.optimize.vision.trial", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRIAL_S, check=False)
    except subprocess.TimeoutExpired:
        raise BadModelFile(f"The graph {file} did not run within {_TRIAL_S} seconds.") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = lines[-1][:300] if lines and done.returncode > 0 else f"its process ended with {done.returncode}"
        raise BadModelFile(f"The graph {file} does not run: {why}")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the file: initialisers, and attributes down to the last subgraph."""
    graphs = [model.graph]
    if model.functions or model.graph.sparse_initializer:
        nodes = [node for function in model.functions for node in function.node]
        for sparse in model.graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    else:
        nodes = []
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _refuse_bad(tensor: onnx.TensorProto, file: Path) -> None:
    called = f"The tensor '{tensor.name[:80]}' of {file}"
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        where = next((pair.value for pair in tensor.external_data if pair.key == "location"), "")
        raise BadModelFile(f"{called} keeps its data in another file, '{where[:80]}'; a model is one file here.")
    if len(tensor.dims) > _MOST_DIMENSIONS or any(side < 0 for side in tensor.dims):
        raise BadModelFile(f"{called} has impossible dimensions: {list(tensor.dims)[:9]}.")
    count = 1
    for side in tensor.dims:
        count *= side
    if count * 4 > LARGEST_TENSOR_BYTES:
        raise BadModelFile(f"{called} declares {count:,} values; that is more than is read.")
    try:
        found = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise BadModelFile(f"{called} is damaged: {str(error)[:200]}.") from None
    if found.size != count:
        raise BadModelFile(f"{called} declares {count:,} values and holds {found.size:,}.")


def _refuse_large(value: onnx.ValueInfoProto, file: Path) -> None:
    count = 1
    for side in value.type.tensor_type.shape.dim:
        count *= max(1, side.dim_value)
        if side.dim_value < 0 or count * 4 > LARGEST_TENSOR_BYTES:
            raise BadModelFile(f"The value '{value.name[:80]}' of {file} declares a shape of {count:,} values or more.")


def _refuse_invalid(model: onnx.ModelProto, file: Path) -> None:
    """Against the operators' own rules; inferred shapes must stay within bounds as well."""
    try:
        onnx.checker.check_model(model)
        told = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=False)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0][:300]
        raise BadModelFile(f"The graph of {file} is not valid ONNX: {line}") from None
    for value in told.graph.value_info:
        _refuse_large(value, file)
