"""Does a request for tensors fit a graph? What does not is refused by name, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from codriver.core.errors import RequestError
from codriver.core.messages import Tensor, TensorRequest

_ITEM_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2} | {
    name: size for size in (4, 8) for name in (f"int{8 * size}", f"uint{8 * size}", f"float{8 * size}")
}


def count_bytes(dtype: str, shape: Sequence[int | str]) -> int:
    """Errors: ``KeyError`` for a type that no graph's tensors have, ``ValueError`` for a size that is not known."""
    return math.prod(map(int, shape)) * _ITEM_BYTES[dtype]


class Spec(msgspec.Struct, frozen=True):
    """An input or output of a graph. ``shape``: a word where a request may choose the size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def outputs_wanted(graph: str, inputs: Mapping[str, Spec], outputs: Sequence[str], request: TensorRequest) -> list[str]:
    """The outputs to give for ``request``: all where it names none. Errors: :class:`RequestError` naming the tensor,
    what was expected and what came.
    """
    for tensor in request.inputs:
        _refuse_unfit(graph, inputs, tensor)
    given = {tensor.name for tensor in request.inputs}
    for name in inputs:
        if name not in given:
            raise RequestError(f"The graph '{graph}' needs the input '{name}', which is missing.", param=name)
    for name in request.outputs:
        if name not in outputs:
            raise RequestError(f"The graph '{graph}' has no output '{name}'; it has: {', '.join(outputs)}.", param=name)
    return list(request.outputs) or list(outputs)


def _refuse_unfit(graph: str, inputs: Mapping[str, Spec], tensor: Tensor) -> None:
    expected = inputs.get(tensor.name)
    if expected is None:
        raise RequestError(
            f"The graph '{graph}' has no input '{tensor.name}'; it has: {', '.join(inputs)}.", param=tensor.name
        )
    where = f"The input '{tensor.name}' of the graph '{graph}'"
    if tensor.dtype != expected.dtype:
        raise RequestError(f"{where} is {expected.dtype}; got {tensor.dtype}.", param=tensor.name)
    fits = len(expected.shape) == len(tensor.shape) and all(
        (want == got if isinstance(want, int) else got >= 0)
        for want, got in zip(expected.shape, tensor.shape, strict=False)
    )
    if not fits:
        wanted = ", ".join(map(str, expected.shape))
        raise RequestError(f"{where} has shape ({wanted}); got {tensor.shape}.", param=tensor.name)
    needed = count_bytes(expected.dtype, tensor.shape)
    if len(tensor.data) != needed:
        raise RequestError(
            f"{where} needs {needed} bytes for shape {tensor.shape}; got {len(tensor.data)}.", param=tensor.name
        )
