"""Attention heads taken out: a group of keys and values with all query heads that read it, as many in every block.

A group's score is what the attention's output loses with it, over the text (its part of the output matrix, weighted by
its input's second moment); what is left of that matrix makes good for it. Limits: a file has one number of heads for
all blocks, so every block loses as many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue

from ..calibrate import Inputs, MomentsAhead, read_inputs
from ..cutting import Cut, Places, losses, mended, write_cut
from ..decoder import Decoder, decoder_of
from ..gguf_file import GgufFile
from ..recipe import Workshop


@dataclass(frozen=True)
class PruneHeads:
    """Key, value, query and output matrices, and the first three's biases, lose what belongs to the groups that go."""

    groups: int = setting(0, "Of keys and values that go in every block; 0 leaves it to the share.", least=0)
    share: float = setting(0.34, "Of groups that go.", least=0.0, most=1.0)
    windows: int = setting(16, "Of 512 tokens, that show what each head does.", least=4)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadConfigValue` where none would go, or none would be left; those of ``decoder_of``."""
        file = GgufFile(source)
        decoder = decoder_of(file)
        count = self.groups or round(self.share * decoder.groups)
        if not 0 < count < decoder.groups:
            raise BadConfigValue(
                f"Of the {decoder.groups} key-value groups of {source}, {count} cannot go: one at least goes, and one "
                "stays.", param="groups" if self.groups else "share",
            )  # fmt: skip
        choice = _Choice(file, decoder, decoder.groups - count, self, shop)
        cuts = {name: cut for block in range(decoder.blocks) for name, cut in choice.cuts(block).items()}
        left, per = decoder.groups - count, decoder.heads // decoder.groups
        told: dict[str, str | int] = {
            decoder.key("attention.head_count"): left * per,
            decoder.key("attention.head_count_kv"): left,
            decoder.key("attention.key_length"): decoder.head_width,
            decoder.key("attention.value_length"): decoder.head_width,
        }
        write_cut(file, target, cuts, told)
        return f"{count} of {decoder.groups} key-value groups went in every block, with {per} query heads each"


class _Choice:
    """Which groups each block keeps; seen when the first of its tensors is written."""

    def __init__(self, file: GgufFile, decoder: Decoder, left: int, how: PruneHeads, shop: Workshop) -> None:
        self._file, self._decoder, self._left = file, decoder, left

        def read(whole: Callable[[str], bool]) -> Inputs:
            return read_inputs(file.path, shop.text, how.windows, shop.run("reads what heads give"), whole)

        outputs = [f"blk.{block}.attn_output.weight" for block in range(decoder.blocks)]
        self._ahead = MomentsAhead({name: file[name].shape[0] for name in outputs}, read)
        self._kept = cache(self._chosen)

    def cuts(self, block: int) -> dict[str, Cut]:
        decoder, file = self._decoder, self._file
        per, wide = decoder.heads // decoder.groups, decoder.head_width
        found = {}
        for part, run in (("q", per * wide), ("k", wide), ("v", wide)):
            rows = _rows(lambda run=run: self._columns(block, run))
            for name in (f"blk.{block}.attn_{part}.weight", f"blk.{block}.attn_{part}.bias"):
                if name in file:
                    found[name] = Cut(self._left * run, None, rows)
        output = f"blk.{block}.attn_output.weight"
        found[output] = Cut(
            None, self._left * per * wide,
            lambda weights: mended(weights, self._ahead.moment(output), self._columns(block, per * wide)),
        )  # fmt: skip
        return found
