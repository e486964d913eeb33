"""How fast will a GGUF file be on a car computer that is not here? A roofline, calibrated on this machine.

The model (Williams, Waterman and Patterson 2009, the roofline): a matrix takes what its bytes take from memory or what
its arithmetic takes, whichever is longer. While one token is written every matrix is read once; while N are read the
arithmetic is N-fold. Rates by type are measured here on llama.cpp's own product; what a model adds to its matrices
(norms, attention, waiting for each other) is fitted on files measured here, and scaled by the cores' arithmetic.
For another computer the rates are scaled by its figures: bandwidth by bandwidth, arithmetic by arithmetic.

The limits: dense decoders; llama.cpp on CPU cores; nothing is said of an accelerator. The rule kept: every figure says
that it is predicted, and how wrong the model was on this machine on files that it had not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from codriver.core.errors import MissingFile

from ..gguf_file import Changes, GgufFile
from .host import HostFigures, kept
from .matmul import LAID_OUT
from .target import Target, home

_KV_BYTES = 2  # llama.cpp keeps keys and values as F16
LEAST_FILES = 4
METRICS = ("ttft_ms", "decode_tps", "rss")


class Layout(msgspec.Struct, frozen=True):
    """What of a file decides how fast it is. ``blocks``: by type, weights and bytes of the matrices that every token
    goes through; ``head``: those of the output, which only a token that is asked for goes through.
    """

    name: str
    blocks: dict[str, tuple[int, int]]
    head: tuple[str, int, int]
    layers: int
    width: int
    kv_width: int
    vocabulary: int
    file_bytes: int


class Timed(msgspec.Struct, frozen=True):
    """A file measured on this machine: seconds by prompt length, seconds per token while writing, bytes of memory."""

    layout: Layout
    prompts: dict[str, float]
    token_s: float
    memory_bytes: float


class Fitted(msgspec.Struct, frozen=True):
    """What a model takes beyond its matrices. ``prompt_s``: seconds per layer, token and 1,000 of width; ``token_s``:
    seconds per layer; ``memory_bytes``: besides weights, cache and logits. One number each: with more, files that are
    all of one model would not tell them apart.
    """

    prompt_s: float
    token_s: float
    memory_bytes: float


class Calibration(msgspec.Struct, frozen=True):
    """``errors``: the share by which each metric was wrong, by file, when that file was left out of the fit."""

    machine: str
    started: str
    threads: int
    load: float
    fitted: Fitted
    files: tuple[Timed, ...]
    errors: dict[str, dict[str, float]]

    def error(self, metric: str) -> float:
        """The largest error of a metric (``ttft_ms``, ``decode_tps``, ``rss``) on a file that was left out."""
        return max(abs(value) for value in self.errors[metric].values())


@dataclass(frozen=True)
class Rates:
    """What a computer does a second: 10^9 operations by type, for one token and for many; 10^9 bytes read."""

    one: dict[str, float]
    many: dict[str, float]
    bandwidth_gbps: float
    overhead: float = 1.0  # how much longer than here all takes that is not a matrix

    def matrices_s(self, kinds: dict[str, tuple[int, int]], tokens: int) -> float:
        return sum(self.matrix_s(kind, *amounts, tokens) for kind, amounts in kinds.items())

    def matrix_s(self, kind: str, weights: int, size_bytes: int, tokens: int) -> float:
        """The longer of reading it and of computing with it."""
        rates = self.one if tokens == 1 else self.many
        rate = rates.get(kind, min(rates.values()))
        return max(size_bytes / (1e9 * self.bandwidth_gbps), 2.0 * weights * tokens / (1e9 * rate))


def layout_of(file: Path, kinds: Mapping[str, str] | None = None) -> Layout:
    """``kinds``: types that tensors would have in a file that is not written yet. Errors: those of ``read_header``."""
    source, changes = GgufFile(file), Changes(kinds or {})
    told, name = source.header.metadata, source.header.architecture

    def number(key: str, otherwise: int) -> int:
        found = told.get(f"{name}.{key}", otherwise)
        return found if isinstance(found, int) else otherwise

    blocks: dict[str, tuple[int, int]] = {}
    head = ("F16", 0, 0)
    vocabulary = 0
    tied = "output.weight" not in source
    file_bytes = file.stat().st_size
    for stored in source:
        tensor = changes.applied(stored)
        file_bytes += tensor.size_bytes - stored.size_bytes
        if len(tensor.shape) < 2:
            continue
        if tensor.name == "token_embd.weight":
            vocabulary = tensor.shape[1]
        if tensor.name == ("token_embd.weight" if tied else "output.weight"):
            head = (tensor.type, tensor.weights, tensor.size_bytes)
        elif tensor.name.startswith("blk."):
            weights, size = blocks.get(tensor.type, (0, 0))
            blocks[tensor.type] = (weights + tensor.weights, size + tensor.size_bytes)
    heads = max(1, number("attention.head_count", 1))
    width = number("embedding_length", 0)
    return Layout(
        name=file.name,
        blocks=blocks,
        head=head,
        layers=number("block_count", 0),
        width=width,
        kv_width=width // heads * number("attention.head_count_kv", heads),
        vocabulary=vocabulary,
        file_bytes=file_bytes,
    )


def here(figures: HostFigures) -> Rates:
    """This machine's rates. One token at a time is bound by what a large product gets from memory, not by a read."""
    bandwidth = max(figures.bandwidth["product_Q8_0"].median, figures.bandwidth["product_F16"].median)
    return Rates(
        {kind: spread.median for kind, spread in figures.one.items()},
        {kind: spread.median for kind, spread in figures.many.items()},
        bandwidth,
    )


def elsewhere(target: Target, figures: HostFigures) -> tuple[Rates, bool]:
    """Rates on ``target``, and whether its arithmetic is known; where it is not, only memory bounds what is written.

    Errors: ``BadConfigValue`` where its bandwidth is not known.
    """
    mine = here(figures)
    bandwidth = mine.bandwidth_gbps / figures.bandwidth["read"].median * target.need("memory.bandwidth_gbps")
    faster = target.cpu.peak_gops / figures.peak_gops if figures.peak_gops else 0.0
    if not faster:
        return Rates(dict.fromkeys(mine.one, math.inf), dict.fromkeys(mine.many, math.inf), bandwidth), False
    scaled = [{kind: rate * faster for kind, rate in rates.items()} for rates in (mine.one, mine.many)]
    return Rates(scaled[0], scaled[1], bandwidth, 1 / faster), True


def prompt_s(layout: Layout, rates: Rates, fitted: Fitted, tokens: int) -> float:
    matrices, rest = _prompt_parts(layout, rates, tokens)
    return matrices + rest * fitted.prompt_s


def token_s(layout: Layout, rates: Rates, fitted: Fitted) -> float:
    matrices, rest = _token_parts(layout, rates)
    return matrices + rest * fitted.token_s


def memory_bytes(layout: Layout, fitted: Fitted, tokens: int) -> float:
    """Of a process that has read a prompt of ``tokens`` (and room for as many positions)."""
    return _known_bytes(layout, tokens) + fitted.memory_bytes


def fit(files: Sequence[Timed], rates: Rates) -> Fitted:
    """Least squares of relative errors; nothing takes less than no time."""
    prompts = [
        (_prompt_parts(one.layout, rates, int(tokens)), taken) for one in files for tokens, taken in one.prompts.items()
    ]
    written = [(_token_parts(one.layout, rates), one.token_s) for one in files]
    memory = [one.memory_bytes - _known_bytes(one.layout, _longest(one)) for one in files]
    return Fitted(_least(prompts), _least(written), float(np.median(memory)))


def leave_one_out(files: Sequence[Timed], rates: Rates) -> dict[str, dict[str, float]]:
    """Each file predicted by a fit on the others: by metric and file, the share by which it was too high."""
    errors: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    for number, one in enumerate(files):
        fitted = fit([other for at, other in enumerate(files) if at != number], rates)
        wrong = [prompt_s(one.layout, rates, fitted, int(tokens)) / taken - 1 for tokens, taken in one.prompts.items()]
        errors["ttft_ms"][one.layout.name] = max(wrong, key=abs)
        errors["decode_tps"][one.layout.name] = one.token_s / token_s(one.layout, rates, fitted) - 1
        told = memory_bytes(one.layout, fitted, _longest(one))
        errors["rss"][one.layout.name] = told / one.memory_bytes - 1 if one.memory_bytes else 0.0
    return errors


def load_calibration() -> tuple[HostFigures, Calibration]:
    """Errors: :class:`MissingFile` before this machine was measured and calibrated."""
    figures = kept()
    file = home() / "calibration.json"
    if figures is None or not file.exists():
        raise MissingFile(
            "Nothing can be predicted before this machine is calibrated: codriver targets measure, then "
            "codriver targets calibrate MODEL…"
        )
    return figures, msgspec.json.decode(file.read_bytes(), type=Calibration)


def _prompt_parts(layout: Layout, rates: Rates, tokens: int) -> tuple[float, float]:
    """Seconds of the matrices and of attention's products; layers × tokens × 1,000 of width."""
    attention = 4.0 * tokens * tokens * layout.width * layout.layers / (1e9 * rates.many["F16"])
    matrices = rates.matrices_s(layout.blocks, tokens) + rates.matrix_s(*layout.head, 1)
    return matrices + attention, layout.layers * tokens * layout.width / 1e3


def _token_parts(layout: Layout, rates: Rates) -> tuple[float, float]:
    return rates.matrices_s(layout.blocks, 1) + rates.matrix_s(*layout.head, 1), float(layout.layers)


def _known_bytes(layout: Layout, tokens: int) -> float:
    """Weights (twice those that llama.cpp lays out anew: the file's pages stay), keys and values, and the logits of
    every position, for which it keeps room.
    """
    anew = sum(size for kind, (_, size) in layout.blocks.items() if kind in LAID_OUT)
    cache = 2 * _KV_BYTES * layout.layers * layout.kv_width * tokens
    return float(layout.file_bytes + anew + cache + 4 * layout.vocabulary * tokens)


def _longest(one: Timed) -> int:
    return max(int(tokens) for tokens in one.prompts) + 32


def _least(rows: Sequence[tuple[tuple[float, float], float]]) -> float:
    """How much of the second part explains, with the first as it is, what was measured."""
    parts = np.array([part for part, _ in rows])
    taken = np.array([value for _, value in rows])
    left, rest = 1 - parts[:, 0] / taken, parts[:, 1] / taken
    return max(0.0, float(left @ rest / (rest @ rest)))
