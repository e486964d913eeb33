"""An ONNX graph under construction, its weights in one file beside it.

The rule kept here: a weight goes to the file when it is made, so that no more than one is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

CONTRIB = "com.microsoft"
DATA = "model.onnx.data"
_ALIGNED = 4096  # so that the weights can be mapped


class Graph:
    """``data`` is the open file :data:`DATA`."""

    def __init__(self, data: BinaryIO) -> None:
        self._data = data
        self._nodes: list[onnx.NodeProto] = []
        self._kept: list[onnx.TensorProto] = []
        self._known: set[str] = set()

    def is_new(self, name: str) -> bool:
        """Whether this is asked for the first time: what several nodes read is made once."""
        new = name not in self._known
        self._known.add(name)
        return new

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **settings: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, **({"name": outputs[0]} | settings)))

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """A small value in the graph itself; one that is known by this name already is the same."""
        if self.is_new(name):
            self._kept.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, value: NDArray[Any]) -> None:
        self._data.write(bytes(-self._data.tell() % _ALIGNED))
        tensor = TensorProto(name=name, dims=value.shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        place = {"location": DATA, "offset": self._data.tell(), "length": value.nbytes}
        for key, told in place.items():
            tensor.external_data.add(key=key, value=str(told))
        self._data.write(np.ascontiguousarray(value).tobytes())
        self._kept.append(tensor)

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        return helper.make_model(
            helper.make_graph(self._nodes, name, inputs, outputs, self._kept),
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)],
            ir_version=10,
            producer_name="codriver",
        )
