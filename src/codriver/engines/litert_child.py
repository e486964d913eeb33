"""The process in which LiteRT runs a ``.tflite`` file: ``litert_child.py FILE THREADS``. See ``graph_process.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

import numpy as np
from graph_child import Named, first_line, serve  # type: ignore[import-not-found]

sys.path.pop()  # the other files there have names of libraries


def load(file: str, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=file, num_threads=threads)
    interpreter.allocate_tensors()
    names = _public_names(interpreter)
    inputs = [_named(item, names) for item in interpreter.get_input_details()]
    outputs = [_named(item, names) for item in interpreter.get_output_details()]
    where = {name: item for (name, _, _), item in zip(inputs, interpreter.get_input_details(), strict=True)}
    shapes = {name: tuple(int(size) for size in item["shape"]) for name, item in where.items()}

    def run(feed: dict[str, Any]) -> list[tuple[Named, bytes]]:
        asked = {name: tuple(shape) for name, (shape, _) in feed.items()}
        if asked != shapes:
            for name, shape in asked.items():
                interpreter.resize_tensor_input(where[name]["index"], shape)
            shapes.clear()  # should memory for them not be had, the next request asks again
            interpreter.allocate_tensors()
            shapes.update(asked)
        for name, (shape, data) in feed.items():
            item = where[name]
            interpreter.set_tensor(item["index"], np.frombuffer(data, item["dtype"]).reshape(shape))
        interpreter.reset_all_variables()  # a request does not depend on the one before it
        interpreter.invoke()
        found = []
        for (name, dtype, _), item in zip(outputs, interpreter.get_output_details(), strict=True):
            array = interpreter.get_tensor(item["index"])
            found.append(((name, dtype, array.shape), array.tobytes()))
        return found

    return inputs, outputs, run


def _public_names(interpreter: Any) -> dict[int, str]:
    """The names that the file's one signature gives to tensors; those of the tensors themselves without one."""
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return {}
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    named = {
        int(item["index"]): str(name)
        for details in (runner.get_input_details(), runner.get_output_details())
        for name, item in details.items()
    }
    own = {item["index"] for item in [*interpreter.get_input_details(), *interpreter.get_output_details()]}
    return named if own == set(named) else {}  # a signature of another subgraph


def _named(item: Any, names: dict[int, str]) -> Named:
    dtype = np.dtype(item["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"its tensor '{item['name']}' is of the type {dtype.name}, and only numbers are taken here")
    shape = item["shape_signature"] if len(item["shape_signature"]) else item["shape"]
    return names.get(int(item["index"]), str(item["name"])), dtype.name, tuple(int(size) for size in shape)


if __name__ == "__main__":
    serve(lambda: load(sys.argv[1], int(sys.argv[2])), first_line)
