"""What passes over weights know of a decoder: what each matrix reads, where that was made, and how it is written again.

The rule kept: a file with a tensor that the layouts do not have is refused, so that none is left out of a change that
all must take part in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.errors import BadModelFile
from codriver.core.gguf import GgufTensor

from ..decoder import Decoder, none_missing, none_unknown, only_plain, read_decoder
from ..ggml import Bytes, Floats, quantise
from ..gguf_file import Changes, GgufFile, rewrite

_BIASED = ("attn_q", "attn_k", "attn_v")  # others would have to take part in a rotation


@dataclass(frozen=True)
class Shared:
    """The input that the matrices ``read`` have in common, and the tensor that it is ``made`` by: a norm, or a matrix
    whose rows become the input's columns, heads of ``step`` columns ``times`` times over.
    """

    made: str
    read: tuple[str, ...]
    times: int = 1
    step: int = 1

    def spread(self, values: Floats) -> Floats:
        """From one value per made row to one per read column."""
        return values.reshape(-1, self.step).repeat(self.times, axis=0).reshape(-1)

    def gathered(self, values: Floats) -> Floats:
        """From one value per read column to one per made row: the mean of those that share it."""
        found: Floats = values.reshape(-1, self.times, self.step).mean(axis=1).reshape(-1)
        return found


def changeable(path: Path) -> Decoder:
    """Errors: :class:`BadModelFile` naming the architecture, or the tensor that is of no use here."""
    decoder = read_decoder(GgufFile(path), _no_other_biases, none_missing, only_plain)
    made, read = decoder.file["blk.0.attn_v.weight"].shape[-1], decoder.file["blk.0.attn_output.weight"].shape[0]
    if made * decoder.heads != read * decoder.kv_heads or made % decoder.kv_heads:
        raise BadModelFile(
            f"{path} has {decoder.kv_heads} heads of values that make {made} together, of which {decoder.heads} heads "
            f"of queries make {read}: they do not fit."
        )
    return decoder


def _no_other_biases(decoder: Decoder) -> None:
    none_unknown(decoder, _BIASED)


def value_width(decoder: Decoder) -> int:
    """Of one head's values; keys may have another."""
    return decoder.file["blk.0.attn_v.weight"].shape[1] // decoder.kv_heads


def inputs(decoder: Decoder) -> Iterator[Shared]:
    """In the order of the layers."""
    times, step = decoder.heads // decoder.kv_heads, value_width(decoder)
    for layer in range(decoder.layers):
        at = f"blk.{layer}."
        yield Shared(f"{at}attn_norm.weight", (f"{at}attn_q.weight", f"{at}attn_k.weight", f"{at}attn_v.weight"))
        yield Shared(f"{at}attn_v.weight", (f"{at}attn_output.weight",), times, step)
        yield Shared(f"{at}ffn_norm.weight", (f"{at}ffn_gate.weight", f"{at}ffn_up.weight"))
        yield Shared(f"{at}ffn_up.weight", (f"{at}ffn_down.weight",))


Change = Callable[[Floats], Floats]


def write_changed(
    file: GgufFile, target: Path, changed: Mapping[str, Change], added: Mapping[str, tuple[str, Change]] | None = None
) -> None:
    """Each tensor named in ``changed`` goes through what stands there, (rows, width) to the same; ``added``: a new
    name, whose tensor it is made from, and how. One tensor in memory. Errors: those of ``rewrite``, and
    :class:`BadModelFile` for what is no number any more.
    """
    new = {name: file[made] for name, (made, _) in (added or {}).items()}
    makes = dict(changed) | {name: change for name, (_, change) in (added or {}).items()}

    def data(tensor: GgufTensor) -> Bytes:
        weights = makes[tensor.name](file.weights(new.get(tensor.name, tensor)))
        made = quantise(tensor.type, weights)
        if not np.isfinite(made.view("<f2" if tensor.type == "F16" else "<f4")).all():
            raise BadModelFile(f"The tensor '{tensor.name}' of {file.path} has weights that {tensor.type} cannot hold.")
        return made

    more = tuple(GgufTensor(name, old.type, old.shape, 0, old.size_bytes) for name, old in new.items())
    rewrite(file, target, Changes({name: file[name].type for name in changed}, added=more), data)
