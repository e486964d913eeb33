"""The families of language models whose inside is known here, and what their files say of it.

Passes that cut a model or train it must know which tensors belong together. Known: ``llama`` and ``qwen2``, dense, all
blocks alike (SwiGLU, RMS norm, grouped-query attention: Ainslie et al. 2023). Any other is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from codriver.core.errors import BadModelFile

from .gguf_file import GgufFile

FAMILIES = ("llama", "qwen2")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Decoder:
    """``width`` of the stream between blocks; ``heads`` read ``groups`` of keys and values, each ``head_width`` wide,
    of which ``rope_width`` are turned by the position; ``channels`` in the middle of a block's feed-forward part.
    """

    architecture: str
    blocks: int
    width: int
    heads: int
    groups: int
    head_width: int
    channels: int
    rope_width: int
    rope_base: float
    epsilon: float

    def key(self, name: str) -> str:
        """The metadata's name for what is called ``name`` in every family."""
        return f"{self.architecture}.{name}"


def decoder_of(file: GgufFile) -> Decoder:
    """Errors: :class:`BadModelFile` for an unknown family, experts, a number that is missing, blocks that are not all
    there, or types that are not plain.
    """
    found = file.header.architecture
    if found not in FAMILIES:
        raise BadModelFile(
            f"The architecture of {file.path} is '{found}'; what is inside is known here of {', '.join(FAMILIES)}."
        )
    if _number(file, "expert_count", 0):
        raise BadModelFile(f"{file.path} is a mixture of experts; only dense models can be cut or trained here.")
    for tensor in file:
        if tensor.type not in ("F32", "F16"):
            raise BadModelFile(f"The tensor '{tensor.name}' of {file.path} is {tensor.type}; F32 or F16 is needed.")
    width, heads = int(_number(file, "embedding_length")), int(_number(file, "attention.head_count"))
    head_width = int(_number(file, "attention.key_length", width // max(1, heads)))
    blocks = int(_number(file, "block_count"))
    if (there := len({block for tensor in file if (block := block_of(tensor.name)) is not None})) != blocks:
        raise BadModelFile(f"{file.path} says that it has {blocks} blocks, and there are tensors of {there}.")
    return Decoder(
        found,
        blocks,
        width,
        heads,
        int(_number(file, "attention.head_count_kv", heads)),
        head_width,
        int(_number(file, "feed_forward_length")),
        int(_number(file, "rope.dimension_count", head_width)),
        float(_number(file, "rope.freq_base", 10000.0)),
        float(_number(file, "attention.layer_norm_rms_epsilon")),
    )


def block_of(name: str) -> int | None:
    """The number of the block that a tensor stands in; ``None`` outside of them."""
    found = _BLOCK.fullmatch(name)
    return int(found[1]) if found else None


def moved(name: str, block: int) -> str:
    """The tensor's name in another block."""
    return _BLOCK.sub(rf"blk.{block}.\2", name)


def _number(file: GgufFile, name: str, otherwise: float | None = None) -> int | float:
    key = f"{file.header.architecture}.{name}"
    found = file.header.metadata.get(key, otherwise)
    if not isinstance(found, int | float):
        raise BadModelFile(f"The metadata of {file.path} has no single number '{key}'.")
    return found
