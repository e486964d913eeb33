"""Activation-aware scaling: columns that much goes into are made larger before rounding, and lose less by it.

Source: Lin et al. 2024 (AWQ, arXiv:2306.00978): the scale is mean|input|^exponent, and the exponent is searched for
each input by what rounding does to the output, on rows of real inputs. Here a scale is kept only where it also loses
less on a part of the text that it was not searched on. Clipping is left to ggml's own choice of scales.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue

from ..calibrate import LEAST_WINDOWS
from ..decoder import Decoder
from ..evaluate import WINDOW, Run
from ..ggml import Floats, dequantise, quantise
from ..gguf_file import fits
from ..recipe import Workshop
from .inputs import Shared, changeable, inputs
from .nearest import known_kind
from .scaling import Columns, read_columns, usable, write_scaled

_ROWS = 256  # of each input that the search looks at


@dataclass(frozen=True)
class Awq:
    """Scale inputs so that rounding their weights costs the output least."""

    kind: str = setting("Q4_0", "The type that the search rounds to.")
    steps: int = setting(10, "Exponents that are tried, from 0 on, less than 1.", least=2, most=100)
    windows: int = setting(16, "Windows of 512 tokens that are read; a quarter as many are kept back.", least=4)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadModelFile`; :class:`BadConfigValue` for a type that does not fit or too short a text."""
        decoder = changeable(source)
        self._refuse(decoder)
        cut = len(shop.text) * 4 // 5
        held_windows = max(LEAST_WINDOWS, self.windows // 4)
        fit = _seen(source, shop.text[:cut], self.windows, shop.run("reads what goes into each matrix"))
        held = _seen(source, shop.text[cut:], held_windows, shop.run("reads it for text that is kept back"))
        every, run = [*inputs(decoder)], shop.run("searches scales")
        scales: dict[str, Floats] = {}

        def one(shared: Shared) -> Floats | None:
            kept = shop.scratch / f"{shared.made}.npy"
            if not kept.exists():
                name = next(name for name in shared.read if name in fit)
                found = self._searched(decoder, shared, fit[name], held[name])
                part = kept.with_suffix(".part")
                with part.open("wb") as file:
                    np.save(file, np.zeros(0, np.float32) if found is None else found)
                part.replace(kept)
            scale: Floats = np.load(kept)
            return scale if scale.size else None

        with ThreadPoolExecutor(run.threads) as pool:  # ggml works outside of Python's lock
            for number, (shared, scale) in enumerate(zip(every, pool.map(one, every), strict=True)):
                if scale is not None:
                    scales[shared.made] = scale
                run.tell(number + 1, len(every))
        write_scaled(decoder, target, scales)
        return f"{len(scales)} of {len(every)} inputs scaled for {self.kind}"

    def _refuse(self, decoder: Decoder) -> None:
        kind = known_kind(self.kind, "awq")
        for name in (name for shared in inputs(decoder) for name in shared.read):
            if not fits(kind, decoder.file[name]):
                width = decoder.file[name].shape[0]
                raise BadConfigValue(
                    f"'awq.kind' is {kind}, and the rows of '{name}' of {decoder.file.path} are {width} wide: no whole "
                    "number of its blocks.",
                    param="awq.kind",
                )

    def _searched(self, decoder: Decoder, shared: Shared, fit: Columns, held: Columns) -> Floats | None:
        """One scale per made column; ``None`` where none is better than to leave the input as it is."""
        weights = [decoder.file.weights(decoder.file[name]) for name in shared.read]
        exponents = [step / self.steps for step in range(1, self.steps)]
        size, rows = shared.gathered(fit.mean), fit.rows
        tried = [usable(size ** np.float32(exponent)) for exponent in exponents]
        losses = [self._loss(weights, shared.spread(scale), rows) for scale in tried]
        best = tried[int(np.argmin(losses))]
        alone, rows = np.ones_like(size), held.rows
        gain = self._loss(weights, shared.spread(alone), rows) - self._loss(weights, shared.spread(best), rows)
        return best if gain > 0 else None

    def _loss(self, weights: list[Floats], scale: Floats, rows: Floats) -> float:
        """What rounding scaled weights does to the outputs of ``rows``, squared and summed."""
        lost, scaled = 0.0, rows / scale
        importance = np.square(scaled).mean(axis=0)
        for one in weights:
            wanted = one * scale
            rounded = dequantise(self.kind, quantise(self.kind, wanted, importance), one.shape)
            lost += float(np.square(scaled @ (wanted - rounded).T).sum())
        return lost


def _seen(source: Path, text: str, windows: int, run: Run) -> dict[str, Columns]:
    return read_columns(source, text, windows, run, max(1, windows * WINDOW // _ROWS))
