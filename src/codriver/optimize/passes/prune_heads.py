"""Attention heads taken out: a group of keys and values with all query heads that read it, as many in every block.

A group's score is what the attention's output loses with it, over the text (its part of the output matrix, weighted by
its input's second moment); what is left of that matrix makes good for it. Limits: a file has one number of heads for
all blocks, so every block loses as many; and llama.cpp reads another number of heads for the same width in a ``llama``
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue, BadModelFile

from ..calibrate import Inputs, read_inputs
from ..decoder import Decoder, as_many_layers, only_plain, read_decoder
from ..gguf_file import GgufFile
from ..recipe import Workshop
from .cutting import Choice, Cut, write_cut


@dataclass(frozen=True)
class PruneHeads:
    """Key, value, query and output matrices, and the first three's biases, lose what belongs to the groups that go."""

    groups: int = setting(0, "Of keys and values that go in every block; 0 leaves it to the share.", least=0)
    share: float = setting(0.34, "Of groups that go.", least=0.0, most=1.0)
    windows: int = setting(16, "Of 512 tokens, that show what each head does.", least=4)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadConfigValue` where none would go, or none would be left; :class:`BadModelFile` for a
        family whose heads llama.cpp does not let go; those of ``read_decoder``.
        """
        file = GgufFile(source)
        decoder = read_decoder(file, only_plain, as_many_layers)
        if decoder.architecture != "llama":
            raise BadModelFile(
                f"{source} is a {decoder.architecture}: llama.cpp reads none with fewer heads than its width has room "
                "for."
            )
        count = self.groups or round(self.share * decoder.kv_heads)
        if not 0 < count < decoder.kv_heads:
            raise BadConfigValue(
                f"Of the {decoder.kv_heads} key-value groups of {source}, {count} cannot go: one at least goes, and "
                "one stays.", param="groups" if self.groups else "share",
            )  # fmt: skip

        def read(names: frozenset[str]) -> Inputs:
            run = shop.run("sees what heads give")
            return read_inputs(source, shop.text, self.windows, run, names.__contains__)

        left, per = decoder.kv_heads - count, decoder.heads // decoder.kv_heads
        outputs = [f"blk.{block}.attn_output.weight" for block in range(decoder.layers)]
        choice = Choice(file, outputs, (decoder.kv_heads, left), read)
        told: dict[str, str | int] = {
            decoder.key("attention.head_count"): left * per,
            decoder.key("attention.head_count_kv"): left,
            decoder.key("attention.key_length"): decoder.head_width,
            decoder.key("attention.value_length"): decoder.head_width,
        }
        write_cut(file, target, _cuts(file, decoder, choice), told)
        return f"{count} of {decoder.kv_heads} key-value groups went in every block, with {per} query heads each"


def _cuts(file: GgufFile, decoder: Decoder, choice: Choice) -> dict[str, Cut]:
    per, found = decoder.heads // decoder.kv_heads, {}
    for block in range(decoder.layers):
        output = f"blk.{block}.attn_output.weight"
        found[output] = choice.output_cut(output)
        for part, heads in (("q", per), ("k", 1), ("v", 1)):
            for name in (f"blk.{block}.attn_{part}.weight", f"blk.{block}.attn_{part}.bias"):
                if name in file:
                    found[name] = choice.rows_cut(output, heads * decoder.head_width)
    return found
