"""What is really in a model file: effective bits per weight, the type of each tensor, and what was put in silently.

A file's name says one type; its tensors hold several, some of them because the converter fell back: llama.cpp's K and
IQ types need rows of whole blocks of 256 weights, and where a row has none, another type is written without a word.
Which one, by llama.cpp's ``llama-quant.cpp``, is in ``FALLBACKS``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from codriver.core.gguf import TENSOR_TYPES, GgufTensor, read_header

# llama.cpp's ``llama_ftype`` → the name it goes by, and the type that most tensors of such a file are meant to have.
FILE_TYPES: dict[int, tuple[str, str]] = {
    0: ("F32", "F32"),
    1: ("F16", "F16"),
    2: ("Q4_0", "Q4_0"),
    3: ("Q4_1", "Q4_1"),
    7: ("Q8_0", "Q8_0"),
    8: ("Q5_0", "Q5_0"),
    9: ("Q5_1", "Q5_1"),
    10: ("Q2_K", "Q2_K"),
    11: ("Q3_K_S", "Q3_K"),
    12: ("Q3_K_M", "Q3_K"),
    13: ("Q3_K_L", "Q3_K"),
    14: ("Q4_K_S", "Q4_K"),
    15: ("Q4_K_M", "Q4_K"),
    16: ("Q5_K_S", "Q5_K"),
    17: ("Q5_K_M", "Q5_K"),
    18: ("Q6_K", "Q6_K"),
    19: ("IQ2_XXS", "IQ2_XXS"),
    20: ("IQ2_XS", "IQ2_XS"),
    21: ("Q2_K_S", "Q2_K"),
    22: ("IQ3_XS", "IQ3_S"),
    23: ("IQ3_XXS", "IQ3_XXS"),
    24: ("IQ1_S", "IQ1_S"),
    25: ("IQ4_NL", "IQ4_NL"),
    26: ("IQ3_S", "IQ3_S"),
    27: ("IQ3_M", "IQ3_S"),
    28: ("IQ2_S", "IQ2_S"),
    29: ("IQ2_M", "IQ2_S"),
    30: ("IQ4_XS", "IQ4_XS"),
    31: ("IQ1_M", "IQ1_M"),
    32: ("BF16", "BF16"),
    36: ("TQ1_0", "TQ1_0"),
    37: ("TQ2_0", "TQ2_0"),
}
# What llama.cpp writes where a row is no whole number of blocks of 256, and which types it stands in for.
FALLBACKS: dict[str, tuple[str, ...]] = {
    "IQ4_NL": ("Q2_K", "Q3_K", "IQ4_XS", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    "Q4_0": ("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"),
    "Q5_0": ("Q4_K",),
    "Q5_1": ("Q5_K",),
    "Q8_0": ("Q6_K",),
    "F16": tuple(name for name, block, _ in TENSOR_TYPES.values() if block > 1),
}
_BITS = {name: 8 * size / block for name, block, size in TENSOR_TYPES.values()}
_BLOCKS = {name: block for name, block, _ in TENSOR_TYPES.values()}


@dataclass(frozen=True)
class Share:
    """All tensors of one type: how many, how many weights, bytes, and bits per weight."""

    type: str
    tensors: int
    weights: int
    size_bytes: int

    @property
    def bits(self) -> float:
        return 8 * self.size_bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Substitution:
    """``tensor`` holds ``stored`` where a file of its kind is meant to hold ``wanted``, for ``extra_bytes`` more."""

    tensor: GgufTensor
    wanted: str
    stored: str

    @property
    def extra_bytes(self) -> int:
        return round(self.tensor.weights * (_BITS[self.stored] - _BITS[self.wanted]) / 8)


@dataclass(frozen=True)
class Inspection:
    """``named`` is what the file calls itself (``Q4_K_M``), and ``nominal_bits`` what its main type takes."""

    file: Path
    size_bytes: int
    architecture: str
    named: str
    nominal_bits: float
    tensors: tuple[GgufTensor, ...]
    substitutions: tuple[Substitution, ...]

    @property
    def weights(self) -> int:
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def bits(self) -> float:
        """Effective bits per weight, all tensors counted."""
        return 8 * sum(tensor.size_bytes for tensor in self.tensors) / max(1, self.weights)

    def shares(self) -> list[Share]:
        """By type, the largest first."""
        found: dict[str, Share] = {}
        for tensor in self.tensors:
            before = found.get(tensor.type, Share(tensor.type, 0, 0, 0))
            found[tensor.type] = Share(
                tensor.type, before.tensors + 1, before.weights + tensor.weights, before.size_bytes + tensor.size_bytes
            )
        return sorted(found.values(), key=lambda share: -share.size_bytes)

    def sentences(self) -> list[str]:
        """What a reader should know, in words."""
        told = []
        if self.named and self.nominal_bits and self.bits > 1.05 * self.nominal_bits:
            told.append(
                f"It is called {self.named} ({self.nominal_bits:.2f} bits) and takes {self.bits:.2f} bits per weight."
            )
        for (wanted, stored), group in _grouped(self.substitutions).items():
            widths = sorted({one.tensor.shape[0] for one in group})
            rows = " and ".join(map(str, widths[:4]))
            told.append(
                f"{len(group)} tensors hold {stored} in place of {wanted}: their rows of {rows} are no whole blocks of "
                f"{_BLOCKS[wanted]}. That is {sum(one.extra_bytes for one in group) / 1e6:+.1f} MB."
            )
        return told


def inspect(file: Path) -> Inspection:
    """Errors: :class:`MissingFile`; :class:`BadModelFile` naming the file, the tensor or the byte."""
    header = read_header(file)
    number = header.metadata.get("general.file_type")
    named, main = FILE_TYPES.get(number, ("", "")) if isinstance(number, int) else ("", "")
    return Inspection(
        file=file,
        size_bytes=file.stat().st_size,
        architecture=header.architecture,
        named=named,
        nominal_bits=_BITS.get(main, 0.0),
        tensors=header.tensors,
        substitutions=tuple(_substituted(header.tensors, main)),
    )


def _substituted(tensors: Iterable[GgufTensor], main: str) -> Iterable[Substitution]:
    """A file's main type is meant for every matrix; others that a mix has on purpose are no fallback of it."""
    block = _BLOCKS.get(main, 1)
    for tensor in tensors:
        if block < 256 or len(tensor.shape) < 2 or tensor.shape[0] % block == 0:
            continue
        stands_for = FALLBACKS.get(tensor.type, ())
        if stands_for:
            yield Substitution(tensor, main if main in stands_for else stands_for[0], tensor.type)


def _grouped(substitutions: Iterable[Substitution]) -> dict[tuple[str, str], list[Substitution]]:
    found: dict[tuple[str, str], list[Substitution]] = {}
    for one in substitutions:
        found.setdefault((one.wanted, one.stored), []).append(one)
    return found
