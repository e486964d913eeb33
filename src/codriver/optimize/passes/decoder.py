"""What passes know of a decoder in a GGUF file: its sizes, what each matrix reads, and where that was made.

For the layouts of llama and qwen2 as llama.cpp has them (pre-norm, gated feed-forward, grouped query attention). The
rule kept: a file with a tensor that these layouts do not have is refused, so that none is left out of a change that all
must take part in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.errors import BadModelFile
from codriver.core.gguf import GgufTensor

from ..ggml import Bytes, Floats, quantise
from ..gguf_file import Changes, GgufFile, rewrite

ARCHITECTURES = ("llama", "qwen2")
PLAIN = ("F32", "F16")
EMBEDDING, OUTPUT, LAST_NORM = "token_embd.weight", "output.weight", "output_norm.weight"
_OUTSIDE = {EMBEDDING, OUTPUT, LAST_NORM, "rope_freqs.weight"}
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_INSIDE = {f"{name}.weight" for name in ("attn_norm", "ffn_norm", *_MATRICES)}
_BIASES = {"attn_q.bias", "attn_k.bias", "attn_v.bias"}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Decoder:
    """``heads`` of queries share ``pairs`` of keys and values, each ``head_width`` wide."""

    file: GgufFile
    layers: int
    width: int
    heads: int
    pairs: int
    head_width: int

    @property
    def tied(self) -> bool:
        """The embedding is the output matrix as well."""
        return OUTPUT not in self.file

    def inputs(self) -> Iterator[Shared]:
        """In the order of the layers."""
        for layer in range(self.layers):
            at = f"blk.{layer}."
            yield Shared(f"{at}attn_norm.weight", (f"{at}attn_q.weight", f"{at}attn_k.weight", f"{at}attn_v.weight"))
            yield Shared(f"{at}attn_v.weight", (f"{at}attn_output.weight",), self.heads // self.pairs, self.head_width)
            yield Shared(f"{at}ffn_norm.weight", (f"{at}ffn_gate.weight", f"{at}ffn_up.weight"))
            yield Shared(f"{at}ffn_up.weight", (f"{at}ffn_down.weight",))


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


def decoder_of(path: Path, plain: bool = True) -> Decoder:
    """Errors: :class:`BadModelFile` naming the architecture, or the tensor that is of no use here."""
    file = GgufFile(path)
    name, told = file.header.architecture, file.header.metadata
    if name not in ARCHITECTURES:
        raise BadModelFile(f"{path} is a '{name}'; passes over weights know {' and '.join(ARCHITECTURES)}.")
    sizes = ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")
    found = [told.get(f"{name}.{size}") for size in sizes]
    if None in found[:3]:
        raise BadModelFile(f"{path} does not say its '{name}.{sizes[found.index(None)]}'.")
    layers, width, heads = (int(size or 0) for size in found[:3])
    pairs = int(found[3] or heads)
    for tensor in file:
        _refuse(tensor, path, plain)
    wanted = {f"blk.{layer}.{part}" for layer in range(layers) for part in _INSIDE} | {EMBEDDING, LAST_NORM}
    missing = sorted(one for one in wanted if one not in file)
    if missing:
        raise BadModelFile(f"{path} has no tensor '{missing[0]}', as a {name} has.")
    value_width = file["blk.0.attn_v.weight"].shape[1]
    if not heads or not pairs or heads % pairs or value_width % pairs:
        raise BadModelFile(f"{path} has {heads} heads over {pairs} keys and values of {value_width}: they do not fit.")
    return Decoder(file, layers, width, heads, pairs, value_width // pairs)


def _refuse(tensor: GgufTensor, path: Path, plain: bool) -> None:
    found = _LAYER.fullmatch(tensor.name)
    if tensor.name not in _OUTSIDE and (found is None or found[2] not in _INSIDE | _BIASES):
        raise BadModelFile(f"{path} has a tensor that passes over weights do not know: '{tensor.name}'.")
    if plain and tensor.type not in PLAIN:
        raise BadModelFile(f"The tensor '{tensor.name}' of {path} is {tensor.type}; passes change F32 and F16.")


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
