"""Which layers stay float, so that the noise at the outputs stays within a bound: by measured cost, not by a rule.

Runs of layers that follow each other are made int8 alone, and the noise that each brings is measured. They are then
made float in the order of noise per multiplication that stays slow, as few as meet the bound: found by halving,
each step measured on the whole graph, since noise does not add up exactly. Noise: as the task reads the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from ..evaluate import Run
from .graph import Wiring, outputs_of
from .tasks import Task

Floats = NDArray[np.float32]
_RUNS = 8


@dataclass(frozen=True)
class Bounds:
    """``most_noise`` on ``pictures``, as ``task`` counts it."""

    most_noise: float
    pictures: Sequence[Floats]
    task: Task


def kept_float(
    model: onnx.ModelProto, quantised: Callable[[Sequence[str]], onnx.ModelProto], bounds: Bounds, run: Run
) -> list[str]:
    """Names of nodes; all of a run, when one of it. ``quantised`` makes the graph with some kept."""
    right = outputs_of(model.SerializeToString(), bounds.pictures)

    def loud(kept: Sequence[str]) -> float:
        return bounds.task.noise(right, outputs_of(quantised(kept).SerializeToString(), bounds.pictures))

    if loud(()) <= bounds.most_noise:
        return []
    runs = _runs(model)
    every = [name for names in runs for name in names]
    costs = []
    for at, names in enumerate(runs):
        own = set(names)
        costs.append(loud([name for name in every if name not in own]) / max(1, _work(model, own)))
        run.tell(at + 1, len(runs))
    order = [runs[at] for at in np.argsort(costs)[::-1]]
    low, high = 1, len(order)  # high is always quiet enough: with all float there is no noise
    while low < high:
        middle = (low + high) // 2
        kept = [name for names in order[:middle] for name in names]
        low, high = (low, middle) if loud(kept) <= bounds.most_noise else (middle + 1, high)
    return [name for names in order[:low] for name in names]


def _runs(model: onnx.ModelProto) -> list[list[str]]:
    """All nodes, cut behind every so many convolutions."""
    nodes = list(model.graph.node)
    total = sum(node.op_type == "Conv" for node in nodes)
    size, seen = max(1, total // _RUNS), 0
    runs: list[list[str]] = [[]]
    for node in nodes:
        if node.op_type == "Conv":
            if seen and seen % size == 0:
                runs.append([])
            seen += 1
        runs[-1].append(node.name)
    return runs


def _work(model: onnx.ModelProto, names: set[str]) -> int:
    """Multiplications of the convolutions among ``names``."""
    wiring = Wiring(model)
    told = onnx.shape_inference.infer_shapes(model).graph
    shapes = {one.name: [side.dim_value or 1 for side in one.type.tensor_type.shape.dim]
              for one in (*told.value_info, *told.output)}  # fmt: skip
    count = 0
    for layer in wiring.convolutions():
        if layer.node.name in names:
            kernel = int(np.prod(wiring.constants[layer.weight].dims))
            count += kernel * int(np.prod(shapes.get(layer.node.output[0], [1])[2:]))
    return count
