"""Channels in the middle of each block's feed-forward part taken out, as many in every block.

A channel's score is what the part's output loses with it, over the text: the size of its column of the last matrix,
times the mean square of what comes through it (as in Wanda, by columns: An et al. 2024, FLAP, arXiv:2312.11983, scores
alike); what is left of that matrix makes good for it. Limits: a file has one number of channels for all blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue, BadModelFile

from ..calibrate import Inputs, read_inputs
from ..decoder import as_many_layers, only_plain, read_decoder
from ..gguf_file import GgufFile
from ..recipe import Workshop
from .cutting import Choice, Cut, write_cut


@dataclass(frozen=True)
class PruneChannels:
    """``ffn_gate``, ``ffn_up`` and ``ffn_down`` lose the channels that go."""

    share: float = setting(0.25, "Of channels that go.", least=0.0, most=1.0)
    multiple: int = setting(256, "The number that stays is one of this: 256 so that every block format fits, 32 fewer.",
                            least=1)  # fmt: skip
    windows: int = setting(16, "Of 512 tokens, that show what comes through each channel.", least=4)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Errors: :class:`BadConfigValue` where none would go, or none would be left; those of ``read_decoder``."""
        file = GgufFile(source)
        decoder = read_decoder(file, only_plain, as_many_layers)
        left = round((1 - self.share) * decoder.channels / self.multiple) * self.multiple
        if not 0 < left < decoder.channels:
            raise BadConfigValue(
                f"Of the {decoder.channels} channels of {source}, {left} cannot stay: some go, and some stay, a "
                f"multiple of {self.multiple}.", param="share",
            )  # fmt: skip

        def read(names: frozenset[str]) -> Inputs:
            run = shop.run("sees what channels give")
            return read_inputs(source, shop.text, self.windows, run, names.__contains__)

        outputs = [f"blk.{block}.ffn_down.weight" for block in range(decoder.layers)]
        choice = Choice(file, outputs, (decoder.channels, left), read)
        cuts: dict[str, Cut] = {}
        for output in outputs:
            cuts[output] = choice.output_cut(output)
            cuts |= {output.replace("_down", part): choice.rows_cut(output, 1) for part in ("_gate", "_up")}
        if missing := [name for name in cuts if name not in file]:
            raise BadModelFile(f"{source} has no tensor '{missing[0]}'.")
        write_cut(file, target, cuts, {decoder.key("feed_forward_length"): left})
        return f"{decoder.channels - left} of {decoder.channels} channels went in every block"
