"""Whole blocks taken out of a decoder: those that change what passes through them least.

Source: Men et al. 2024 (ShortGPT, arXiv:2403.03853): a block's influence is 1 - the mean cosine of what goes into it
and what comes out, per token. Limits: all are judged at once, on the whole model; two blocks that the model can do
without may not be two that it can do without at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue, BadModelFile

from ..calibrate import read_windows
from ..decoder import as_many_layers, block_of, moved, only_plain, read_decoder
from ..evaluate import Run
from ..ggml import Floats
from ..gguf_file import Changes, GgufFile, rewrite
from ..llama_runtime import Results
from ..recipe import Workshop


@dataclass(frozen=True)
class PruneBlocks:
    """The blocks behind one that goes are numbered anew; the file is smaller by what they took."""

    blocks: int = setting(0, "How many go; 0 leaves it to the share.", least=0)
    share: float = setting(0.1, "Of blocks that go.", least=0.0, most=1.0)
    windows: int = setting(8, "Of 512 tokens, that show what each block does.", least=4)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadConfigValue` where none would go, or none would be left; those of ``read_decoder``."""
        file = GgufFile(source)
        decoder = read_decoder(file, only_plain, as_many_layers)
        count = self.blocks or round(self.share * decoder.layers)
        if not 0 < count < decoder.layers:
            raise BadConfigValue(
                f"Of the {decoder.layers} blocks of {source}, {count} cannot go: one at least goes, and one stays.",
                param="blocks" if self.blocks else "share",
            )
        found = influence(source, decoder.layers, shop.text, self.windows, shop.run("sees what each block does"))
        gone = sorted(int(block) for block in np.argsort(found, kind="stable")[:count])
        kept = [block for block in range(decoder.layers) if block not in gone]
        number = {block: at for at, block in enumerate(kept)}
        places = {t.name: block_of(t.name) for t in file}
        names = {n: moved(n, number[block]) for n, block in places.items() if block is not None and block in number}
        changes = Changes(
            {}, {decoder.key("block_count"): len(kept)}, frozenset(n for n, block in places.items() if block in gone),
            names=names,
        )  # fmt: skip
        rewrite(file, target, changes, file.raw)
        told = ", ".join(f"{block} ({found[block]:.3f})" for block in gone)
        return f"{count} of {decoder.layers} blocks went, by influence: {told}"


def influence(model: Path, blocks: int, text: str, windows: int, run: Run) -> Floats:
    """Of each block, (blocks,). Errors: :class:`BadModelFile` where llama.cpp does not show a block's output."""
    sums, count, before = np.zeros(blocks, np.float64), np.zeros(blocks, np.int64), np.zeros((0, 0), np.float32)
    names = {"embd": -1, "inp_embd": -1} | {f"l_out-{block}": block for block in range(blocks)}

    def take(name: str, values: Floats) -> None:
        nonlocal before
        block = names[name]
        if block >= 0:
            far = np.linalg.norm(values, axis=1) * np.linalg.norm(before, axis=1)
            sums[block] += float((1 - np.einsum("tw,tw->t", values, before) / np.maximum(far, 1e-12)).sum())
            count[block] += len(values)
        before = values.copy()

    read_windows(model, text, windows, run, (None, Results(names.__contains__, take)))
    if not count.all():
        raise BadModelFile(f"llama.cpp does not show what block {int(count.argmin())} of {model} results in.")
    found: Floats = (sums / count).astype(np.float32)
    return found
