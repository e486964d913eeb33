"""A llama or qwen2 in torch, from a GGUF file and back into one: what the passes that train need of a model.

Plain functions over tensors that go by their names in the file, so that a pass can put what it likes in a weight's
place (an adapter beside it, its rounded self). Limits: weights are held as F32; texts are read from an empty memory;
the runtime's F16 cache and the rounding of what goes into quantised matrices are not simulated. Rotary positions: Su et
al. 2021 (arXiv:2104.09864), in neighbouring pairs for ``llama`` and in halves for ``qwen2``, as llama.cpp has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from codriver.core.errors import BadModelFile

from ..decoder import EMBEDDING, LAST_NORM, OUTPUT, ROPE_FACTORS, none_missing, none_unknown, only_plain, read_decoder
from ..ggml import Floats, quantise
from ..gguf_file import Changes, GgufFile, rewrite

Tensor = Any  # torch is not there where the types are checked
Tensors = Mapping[str, Tensor]


class Weights:
    """A model's tensors, as the arithmetic uses them; a pass with something of its own in a matrix's place overrides
    :meth:`multiply`.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def multiply(self, name: str, given: Tensor) -> Tensor:
        """``given`` (tokens, width) times the matrix ``name``, and its bias where it has one."""
        return F.linear(given, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))


class TorchDecoder:
    """``tensors``: every one of the file, F32. Errors: those of ``read_decoder`` and its checks,
    :class:`BadModelFile` for a scaling of positions that is not known here.
    """

    def __init__(self, file: Path) -> None:
        self.file = GgufFile(file)
        self.decoder = read_decoder(self.file, only_plain, none_unknown, none_missing)
        scaling = self.file.header.metadata.get(self.decoder.key("rope.scaling.type"), "none")
        if scaling != "none":
            raise BadModelFile(f"{file} scales its positions by '{scaling}', which cannot be trained here.")
        self.tensors: dict[str, Tensor] = {}
        for tensor in self.file:
            values = self.file.weights(tensor)
            self.tensors[tensor.name] = torch.from_numpy(values.reshape(-1) if len(tensor.shape) == 1 else values)

    def read(self, ids: Tensor, weights: Weights) -> tuple[Tensor, list[Tensor]]:
        """Logits (tokens, vocabulary) of the token ids (tokens,), and what each block results in (tokens, width)."""
        decoder, tensors = self.decoder, weights.tensors
        turn = self._turn(len(ids))
        stream, results = F.embedding(ids, tensors[EMBEDDING]), []
        for block in range(decoder.layers):
            stream = self._block(f"blk.{block}", stream, turn, weights)
            results.append(stream)
        given = self._norm(stream, tensors[LAST_NORM])
        output = OUTPUT if OUTPUT in tensors else EMBEDDING
        return weights.multiply(output.removesuffix(".weight"), given), results

    def _block(self, at: str, stream: Tensor, turn: tuple[Tensor, Tensor], weights: Weights) -> Tensor:
        decoder, tokens = self.decoder, len(stream)
        given = self._norm(stream, weights.tensors[f"{at}.attn_norm.weight"])

        def heads(part: str) -> Tensor:
            made = weights.multiply(f"{at}.attn_{part}", given)
            return made.view(tokens, -1, decoder.head_width).transpose(0, 1)

        query, key, value = self._turned(heads("q"), turn), self._turned(heads("k"), turn), heads("v")
        seen = F.scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, enable_gqa=decoder.kv_heads != decoder.heads
        )[0]
        stream = stream + weights.multiply(f"{at}.attn_output", seen.transpose(0, 1).reshape(tokens, -1))
        given = self._norm(stream, weights.tensors[f"{at}.ffn_norm.weight"])
        inner = F.silu(weights.multiply(f"{at}.ffn_gate", given)) * weights.multiply(f"{at}.ffn_up", given)
        return stream + weights.multiply(f"{at}.ffn_down", inner)

    def _norm(self, stream: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(stream, stream.shape[-1:], weight, self.decoder.epsilon)

    def _turn(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each position's angles: (tokens, pairs)."""
        width = self.decoder.rope_width
        slow = torch.arange(0, width, 2, dtype=torch.float64) / width
        angles = torch.arange(tokens, dtype=torch.float64)[:, None] * self.decoder.rope_base**-slow
        if ROPE_FACTORS in self.tensors:
            angles = angles / self.tensors[ROPE_FACTORS].double()
        return angles.cos().float(), angles.sin().float()

    def _turned(self, heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """(heads, tokens, width) with each pair turned by its position's angle."""
        cosine, sine = turn
        turning, rest = heads[..., : 2 * cosine.shape[1]], heads[..., 2 * cosine.shape[1] :]
        if self.decoder.interleaved:
            one, two = turning[..., 0::2], turning[..., 1::2]
        else:
            one, two = turning.chunk(2, dim=-1)
        pair = (one * cosine - two * sine, two * cosine + one * sine)
        made = torch.stack(pair, dim=-1).flatten(-2) if self.decoder.interleaved else torch.cat(pair, -1)
        return torch.cat([made, rest], dim=-1)


def write_tensors(source: GgufFile, target: Path, tensors: Tensors) -> None:
    """``source`` with ``tensors`` in the place of its own, in the types that it has. Errors: those of ``rewrite``."""

    def values(name: str) -> Floats:
        found: Floats = tensors[name].detach().numpy()
        return np.ascontiguousarray(found if found.ndim == 2 else found[None])

    changes = Changes({name: source[name].type for name in tensors})
    rewrite(source, target, changes, lambda tensor: quantise(tensor.type, values(tensor.name)))
