"""What a GGUF file of a language model is made of, as writers of other formats need it: shapes, names, tokens.

Architectures ``llama`` and ``qwen2`` (RMS norm, grouped-query attention, rotary positions, SiLU gate). The rule kept
here: a file that holds anything which a writer would leave out, or that leaves out what a writer needs, is refused by
the name of the key or the tensor; no answer is computed from a model that is only nearly the same.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.errors import BadModelFile
from codriver.core.gguf import GgufTensor

from .ggml import Floats
from .gguf_file import GgufFile

ARCHITECTURES = ("llama", "qwen2")
# The parts of one block: GGUF's name, and that of Hugging Face's llama and qwen2.
MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_WHOLE = ("token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight")
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Decoder:
    """``width``: of a token's vector; ``head``: of one head's; ``inner``: of the gate. ``interleaved``: rotary pairs
    are neighbours (llama in GGUF) and not halves apart. ``tied``: the embedding is the output's matrix too.
    """

    file: GgufFile
    architecture: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context_tokens: int
    epsilon: float
    rope_base: float
    interleaved: bool
    tied: bool

    def tensor(self, name: str) -> GgufTensor:
        return self.file[name]

    def vector(self, name: str) -> Floats | None:
        """A norm's weight or a bias, as float32; ``None`` where the file has none."""
        return self.file.weights(self.file[name]).reshape(-1) if name in self.file else None

    def rotation(self, positions: int) -> tuple[Floats, Floats]:
        """Cosines and sines of the rotary embedding, each (positions, head / 2)."""
        step = self.rope_base ** (-np.arange(0, self.head, 2, dtype=np.float64) / self.head)
        factors = self.vector("rope_freqs.weight")
        if factors is not None:
            step = step / factors
        angle = np.arange(positions, dtype=np.float64)[:, None] * step
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def read_decoder(path: Path) -> Decoder:
    """Errors: :class:`MissingFile`; :class:`BadModelFile` naming the key or the tensor that is not as it must be."""
    file = GgufFile(path)
    architecture = file.header.architecture
    if architecture not in ARCHITECTURES:
        raise BadModelFile(
            f"{path} is of the architecture '{architecture}'; writers of other formats know {', '.join(ARCHITECTURES)}."
        )
    numbers = _Numbers(file, architecture)
    heads, width = numbers.count("attention.head_count"), numbers.count("embedding_length")
    head = numbers.count("attention.key_length", width // heads)
    numbers.refuse_strange(head)
    found = Decoder(
        file=file,
        architecture=architecture,
        layers=numbers.count("block_count"),
        width=width,
        inner=numbers.count("feed_forward_length"),
        heads=heads,
        kv_heads=numbers.count("attention.head_count_kv", heads),
        head=head,
        vocabulary=_embedding(file).shape[1],
        context_tokens=numbers.count("context_length"),
        epsilon=numbers.real("attention.layer_norm_rms_epsilon", 1e-5),
        rope_base=numbers.real("rope.freq_base", 10000.0),
        interleaved=architecture == "llama",
        tied="output.weight" not in file,
    )
    _check(found)
    return found


class _Numbers:
    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file, self._architecture = file, architecture

    def count(self, key: str, default: int | None = None) -> int:
        name = f"{self._architecture}.{key}"
        found = self._file.header.metadata.get(name, default)
        if not isinstance(found, int) or not 0 < found < 1 << 24:
            raise BadModelFile(f"The metadata '{name}' of {self._file.path} is {found!r}, and must be a count.")
        return found

    def real(self, key: str, default: float) -> float:
        name = f"{self._architecture}.{key}"
        found = self._file.header.metadata.get(name, default)
        if not isinstance(found, float) or not (math.isfinite(found) and found > 0):
            raise BadModelFile(f"The metadata '{name}' of {self._file.path} is {found!r}, and must be above zero.")
        return found

    def refuse_strange(self, head: int) -> None:
        """What changes the answer and is not written."""
        told = self._file.header.metadata
        usual: dict[str, tuple[object, ...]] = {
            "rope.scaling.type": ("none", ""),
            "expert_count": (0,),
            "rope.dimension_count": (head,),
            "attention.value_length": (head,),
            "attention.sliding_window": (0,),
        }
        for key, allowed in usual.items():
            name = f"{self._architecture}.{key}"
            if name in told and told[name] not in allowed:
                raise BadModelFile(f"{self._file.path} has '{name}' = {told[name]!r}, which no writer carries over.")


def _embedding(file: GgufFile) -> GgufTensor:
    if "token_embd.weight" not in file or len(file["token_embd.weight"].shape) != 2:
        raise BadModelFile(f"{file.path} has no matrix 'token_embd.weight'.")
    return file["token_embd.weight"]


def _check(found: Decoder) -> None:
    """Every tensor that is needed is there in its shape, and no other."""
    path, q, kv = found.file.path, found.heads * found.head, found.kv_heads * found.head
    if found.heads % found.kv_heads or found.head % 2:
        raise BadModelFile(
            f"{path} has {found.heads} heads of {found.head} over {found.kv_heads}: that is no grouped attention."
        )
    shapes = {
        "attn_q": (found.width, q),
        "attn_k": (found.width, kv),
        "attn_v": (found.width, kv),
        "attn_output": (q, found.width),
        "ffn_gate": (found.width, found.inner),
        "ffn_up": (found.width, found.inner),
        "ffn_down": (found.inner, found.width),
    }
    needed: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (found.width, found.vocabulary),
        "output_norm.weight": (found.width,),
    }
    allowed = {"output.weight": (found.width, found.vocabulary), "rope_freqs.weight": (found.head // 2,)}
    for layer in range(found.layers):
        needed |= {f"blk.{layer}.{part}.weight": shape for part, shape in shapes.items()}
        needed |= {f"blk.{layer}.{part}.weight": (found.width,) for part in NORMS}
        allowed |= {f"blk.{layer}.{part}.bias": shape[1:] for part, shape in shapes.items()}
    for name, shape in (needed | allowed).items():
        if name in found.file and found.file[name].shape != shape:
            raise BadModelFile(f"The tensor '{name}' of {path} has the shape {found.file[name].shape}, not {shape}.")
        if name in needed and name not in found.file:
            raise BadModelFile(f"{path} has no tensor '{name}'.")
    strange = next(
        (tensor.name for tensor in found.file if tensor.name not in needed and tensor.name not in allowed), None
    )
    if strange:
        raise BadModelFile(f"{path} has a tensor '{strange}', which no writer carries over.")


def arrays(file: GgufFile) -> dict[str, list[str] | list[int] | list[float]]:
    """The metadata that are arrays, which the header passes over: tokens, merges, kinds and scores of tokens."""
    header = file.header
    with file.path.open("rb") as source:
        source.seek(header.pairs_begin)
        data = source.read(header.pairs_end - header.pairs_begin)
    found: dict[str, list[str] | list[int] | list[float]] = {}
    at = 0
    for _ in range(header.pairs):
        key, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        if kind == _STRING:
            _, at = _text(data, at)
        elif kind == _ARRAY:
            found[key], at = _array(data, at)
        else:
            at += struct.calcsize(_SCALARS[kind])
    return found


def _text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length].decode("utf-8", "replace"), at + 8 + length


def _array(data: bytes, at: int) -> tuple[list[str] | list[int] | list[float], int]:
    kind, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind == _STRING:
        texts: list[str] = []
        for _ in range(length):
            text, at = _text(data, at)
            texts.append(text)
        return texts, at
    if kind == _ARRAY:  # no writer needs arrays of arrays; they are passed over
        for _ in range(length):
            _, at = _array(data, at)
        return [], at
    code = _SCALARS[kind]
    size = struct.calcsize(code)
    return list(np.frombuffer(data, code, length, at).tolist()), at + size * length
