"""Every matrix rounded to the nearest of one type and written back plain: what other methods have to beat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue
from codriver.core.gguf import GgufTensor

from ..decoder import EMBEDDING, OUTPUT
from ..ggml import Floats, dequantise, quantise
from ..gguf_file import GgufFile, fits
from ..recipe import Workshop
from ..task import KINDS
from .inputs import write_changed


@dataclass(frozen=True)
class Nearest:
    """Round each matrix as llama.cpp does without an imatrix."""

    kind: str = setting("Q4_0", "The type, by its name in GGUF files.")
    tables: bool = setting(False, "The embedding and the output matrix, too.")

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadModelFile`; :class:`BadConfigValue` for a type that is not known."""
        kind, file = known_kind(self.kind, "nearest"), GgufFile(source)

        def rounded(weights: Floats) -> Floats:
            return dequantise(kind, quantise(kind, weights), weights.shape)

        matrices = matrices_of(file, self.tables)
        fitting = [tensor for tensor in matrices if fits(kind, tensor)]
        write_changed(file, target, {tensor.name: rounded for tensor in fitting})
        left = f"; {len(matrices) - len(fitting)} left, whose rows are no whole blocks" if fitting != matrices else ""
        return f"{len(fitting)} matrices rounded to the nearest of {kind}{left}"


def known_kind(kind: str, name: str) -> str:
    """Errors: :class:`BadConfigValue`."""
    if kind not in KINDS:
        raise BadConfigValue(f"'{name}.kind' is '{kind}'; allowed: {', '.join(KINDS)}.", param=f"{name}.kind")
    return kind


def matrices_of(file: GgufFile, tables: bool) -> list[GgufTensor]:
    """Of rows and columns; the embedding and the output matrix with ``tables`` only."""
    return [t for t in file if len(t.shape) == 2 and (tables or t.name not in (EMBEDDING, OUTPUT))]
