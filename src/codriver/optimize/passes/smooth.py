"""SmoothQuant: what stands out in activations is moved into weights, so that both can be rounded to eight bits.

Source: Xiao et al. 2023 (arXiv:2211.10438): a column's scale is max|input|^alpha / max|weight|^(1 - alpha).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.config import setting

from ..recipe import Workshop
from .inputs import changeable, inputs
from .scaling import largest_weights, read_columns, usable, write_scaled

_NEVER = 1 << 20  # no rows are kept: the largest of each column will do


@dataclass(frozen=True)
class Smooth:
    """Scale the inputs of every matrix by how large they and their weights get."""

    alpha: float = setting(0.5, "How much of it moves into the weights: 0 nothing, 1 all.", least=0, most=1)
    windows: int = setting(16, "Windows of 512 tokens that are read.", least=4)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadModelFile`; :class:`BadConfigValue` for a text that is too short."""
        decoder = changeable(source)
        run = shop.run("reads how large inputs get")
        seen = read_columns(source, shop.text, self.windows, run, _NEVER)
        scales = {}
        for shared in inputs(decoder):
            weights = largest_weights(decoder, shared)
            found = seen[next(name for name in shared.read if name in seen)].most
            with np.errstate(divide="ignore", invalid="ignore"):
                wanted = found**self.alpha / weights ** (1 - self.alpha)
            scales[shared.made] = usable(shared.gathered(wanted))
        write_scaled(decoder, target, scales)
        return f"{len(scales)} inputs smoothed, alpha {self.alpha:g}"
