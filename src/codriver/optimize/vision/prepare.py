"""Folding and fusing before anything else: what one operator can do is not left to three.

By optimisers that are kept by others: ONNX's own converter to an operator set with per-channel scales, ONNX Runtime's
offline optimisation at its basic level (constants folded, batch norms into convolutions, no operators of its own), and
onnxslim where it is installed.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx.version_converter

from codriver.core.config import setting
from codriver.core.errors import BadModelFile, MissingExtra

from ..recipe import Workshop
from .onnx_file import read_model, read_onnx, write_model
from .runtime import OrtGraph

_OPERATORS = 17


@dataclass(frozen=True)
class Fold:
    """Config → transform, as :class:`codriver.optimize.recipe.Pass`."""

    by: Literal["onnxruntime", "onnxslim", "both"] = setting("onnxruntime", "Which optimisers fold and fuse.")

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadModelFile`; :class:`MissingExtra` where onnxslim is asked for and not installed."""
        model = read_model(source)
        before = _kinds(model)
        made = converted(model, source)
        if self.by != "onnxruntime":
            made = _slimmed(made)
        if self.by != "onnxslim":
            OrtGraph(made.SerializeToString(), 1, optimised_to=target, extended=False)
            made = read_onnx(target)
        named(made)
        del made.metadata_props[:]
        made.metadata_props.extend(model.metadata_props)
        write_model(made, target)
        gone = before - _kinds(made)
        told = ", ".join(f"{count} {kind}" for kind, count in gone.most_common(4)) or "nothing"
        return f"{len(model.graph.node)} nodes became {len(made.graph.node)}; gone: {told}"


def converted(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """To an operator set that has a scale per channel (13 and later). Errors: :class:`BadModelFile`."""
    if any(one.domain in ("", "ai.onnx") and one.version >= 13 for one in model.opset_import):
        made = onnx.ModelProto()
        made.CopyFrom(model)
        return made
    try:
        return onnx.version_converter.convert_version(model, _OPERATORS)
    except (RuntimeError, ValueError) as error:
        raise BadModelFile(
            f"The graph {file} cannot be brought to operator set {_OPERATORS}: {str(error)[:200]}"
        ) from None


def named(model: onnx.ModelProto) -> None:
    """Every node gets a name of its own: what is kept in float is told by it."""
    taken: set[str] = set()
    for at, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{at}"
        taken.add(node.name)


def _slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    if importlib.util.find_spec("onnxslim") is None:
        raise MissingExtra("onnxslim is not installed: pip install onnxslim, or fold by 'onnxruntime'.")
    import onnxslim

    slim: onnx.ModelProto = onnxslim.slim(model)
    return slim


def _kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)
