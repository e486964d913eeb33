"""The families of language models whose inside is known here, and what their files say of it.

Known: ``llama`` and ``qwen2`` as llama.cpp has them, dense, all layers alike (RMS norm, rotary positions, SwiGLU,
grouped-query attention: Ainslie et al. 2023). The rule kept: what is not known is refused by the name of its key or
tensor. Whoever needs more of a file than its numbers asks for it with the checks that stand here, or with its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from codriver.core.errors import BadModelFile

from .gguf_file import GgufFile

FAMILIES = ("llama", "qwen2")
EMBEDDING, OUTPUT, LAST_NORM, ROPE_FACTORS = (
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "rope_freqs.weight",
)
_OUTSIDE = (EMBEDDING, OUTPUT, LAST_NORM, ROPE_FACTORS)
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NORMS = ("attn_norm", "ffn_norm")
_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,7})\.(.+)")


@dataclass(frozen=True)
class Decoder:
    """``width`` of the stream between layers; ``heads`` of queries share ``kv_heads`` of keys and values, each
    ``head_width`` wide, of which ``rope_width`` are turned by the position; ``channels`` in the middle of a layer's
    feed-forward part.
    """

    file: GgufFile
    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    channels: int
    context_tokens: int
    rope_width: int
    rope_base: float
    epsilon: float

    @property
    def tied(self) -> bool:
        """The embedding is the output matrix as well."""
        return OUTPUT not in self.file

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, which must be there."""
        return self.file[EMBEDDING].shape[1]

    @property
    def interleaved(self) -> bool:
        """Rotary pairs are neighbours, and not halves apart."""
        return self.architecture == "llama"

    def key(self, name: str) -> str:
        """The metadata's name for what is called ``name`` in every family."""
        return f"{self.architecture}.{name}"

    def needed(self) -> Iterator[str]:
        """The tensors that no file of the family is without."""
        yield EMBEDDING
        yield LAST_NORM
        for layer in range(self.layers):
            yield from (f"blk.{layer}.{part}.weight" for part in (*MATRICES, *NORMS))


Check = Callable[[Decoder], None]


def read_decoder(file: GgufFile, *checks: Check) -> Decoder:
    """The file's numbers, after ``checks`` in their order. Errors: :class:`BadModelFile` for an unknown family,
    experts, a number that is missing or cannot be; those of the checks.
    """
    architecture = file.header.architecture
    if architecture not in FAMILIES:
        raise BadModelFile(
            f"The architecture of {file.path} is '{architecture}'; what is inside is known here of "
            f"{', '.join(FAMILIES)}."
        )
    if experts := file.header.metadata.get(f"{architecture}.expert_count", 0):
        raise BadModelFile(
            f"{file.path} is a mixture of experts ('{architecture}.expert_count' = {experts!r}); only dense models are "
            "known here."
        )
    width, heads = _count(file, "embedding_length"), _count(file, "attention.head_count")
    head_width = _count(file, "attention.key_length", width // heads)
    found = Decoder(
        file=file,
        architecture=architecture,
        layers=_count(file, "block_count"),
        width=width,
        heads=heads,
        kv_heads=_count(file, "attention.head_count_kv", heads),
        head_width=head_width,
        channels=_count(file, "feed_forward_length"),
        context_tokens=_count(file, "context_length"),
        rope_width=_count(file, "rope.dimension_count", head_width),
        rope_base=_real(file, "rope.freq_base", 10000.0),
        epsilon=_real(file, "attention.layer_norm_rms_epsilon"),
    )
    if heads % found.kv_heads or head_width % 2:
        raise BadModelFile(
            f"{file.path} has {heads} heads of {head_width} over {found.kv_heads}: that is no grouped attention."
        )
    for check in checks:
        check(found)
    return found


def only_plain(decoder: Decoder) -> None:
    """Errors: :class:`BadModelFile` naming a tensor that is rounded."""
    for tensor in decoder.file:
        if tensor.type not in ("F32", "F16"):
            path = decoder.file.path
            raise BadModelFile(f"The tensor '{tensor.name}' of {path} is {tensor.type}; F32 or F16 is needed.")


def as_many_layers(decoder: Decoder) -> None:
    """Errors: :class:`BadModelFile` where the file's number of layers is not that of its tensors."""
    there = len({layer for tensor in decoder.file if (layer := block_of(tensor.name)) is not None})
    if there != decoder.layers:
        raise BadModelFile(
            f"{decoder.file.path} says that it has {decoder.layers} blocks, and there are tensors of {there}."
        )


def none_missing(decoder: Decoder) -> None:
    """Errors: :class:`BadModelFile` naming a tensor that is not there."""
    for name in decoder.needed():  # one by one: what says how many there are may be damaged
        if name not in decoder.file:
            raise BadModelFile(f"{decoder.file.path} has no tensor '{name}', as a {decoder.architecture} has.")


def none_unknown(decoder: Decoder, biased: Collection[str] = MATRICES) -> None:
    """``biased``: the matrices that may have a bias. Errors: :class:`BadModelFile` naming a tensor that the family does
    not have, and that would be left out of what is done.
    """
    inside = {f"{part}.weight" for part in (*MATRICES, *NORMS)} | {f"{part}.bias" for part in biased}
    for tensor in decoder.file:
        found = _LAYER.fullmatch(tensor.name)
        known = int(found[1]) < decoder.layers and found[2] in inside if found else tensor.name in _OUTSIDE
        if not known:
            raise BadModelFile(f"{decoder.file.path} has a tensor '{tensor.name}', which is not known here.")


def block_of(name: str) -> int | None:
    """The number of the block (layer) that a tensor stands in; ``None`` outside of them."""
    found = _LAYER.fullmatch(name)
    return int(found[1]) if found else None


def moved(name: str, block: int) -> str:
    """The tensor's name in another block."""
    return _LAYER.sub(rf"blk.{block}.\2", name)


def _count(file: GgufFile, name: str, otherwise: int | None = None) -> int:
    found = _number(file, name, otherwise)
    if not isinstance(found, int) or not 0 < found < 1 << 24:
        raise BadModelFile(f"The metadata '{_key(file, name)}' of {file.path} is {found!r}, and must be a count.")
    return found


def _real(file: GgufFile, name: str, otherwise: float | None = None) -> float:
    found = _number(file, name, otherwise)
    if not (math.isfinite(found) and found > 0):
        raise BadModelFile(f"The metadata '{_key(file, name)}' of {file.path} is {found!r}, and must be above zero.")
    return float(found)


def _number(file: GgufFile, name: str, otherwise: float | None) -> int | float:
    found = file.header.metadata.get(_key(file, name), otherwise)
    if not isinstance(found, int | float):
        raise BadModelFile(f"The metadata of {file.path} has no single number '{_key(file, name)}'.")
    return found


def _key(file: GgufFile, name: str) -> str:
    return f"{file.header.architecture}.{name}"
