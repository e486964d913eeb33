"""What a report says of artifacts, as data: read from their folders, nothing measured again.

The rules kept: a percentile is only told where there are runs enough for it, and otherwise how many are needed; a point
is on the front when no other artifact is at least as good in both and better in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from codriver.core.artifact import Artifact, Measured, load_artifact
from codriver.core.errors import BadConfigValue, BadModelFile
from codriver.core.gguf import TENSOR_TYPES

from ..allocate import Choice
from ..inspect import inspect
from ..search_records import Found, read_found
from .percentiles import SHOWN, median, percentile

SENSITIVITY = "sensitivity.json"
_COARSE = 4.5  # bits per weight that a layer's sensitivity is told at: Q4_0's
_ATTENTION = ("attn_",)


class TypeShare(msgspec.Struct, frozen=True):
    type: str
    tensors: int
    weights: int
    size_bytes: int
    bits: float


class SizeTruth(msgspec.Struct, frozen=True):
    """``named``: what the file calls itself; ``told``: what was put in silently, as sentences."""

    named: str
    weights: int
    size_bytes: int
    bits: float
    types: tuple[TypeShare, ...]
    tensors: dict[str, str]
    told: tuple[str, ...]


class Part(msgspec.Struct, frozen=True):
    """Expected KL when all matrices of a layer are rounded to about 4.5 bits: of attention, of the rest."""

    layer: str
    attention: float
    rest: float


class Tail(msgspec.Struct, frozen=True):
    """``value`` is ``None`` where there are fewer than ``needed`` runs."""

    share: float
    value: float | None
    needed: int


class Latency(msgspec.Struct, frozen=True):
    """``low`` and ``high``: the 95 % interval of the median, where there are runs enough for one."""

    metric: str
    unit: str
    n: int
    median: float
    low: float | None
    high: float | None
    samples: tuple[float, ...]
    tails: tuple[Tail, ...]
    note: str


class Told(msgspec.Struct, frozen=True):
    """One artifact. ``size`` is ``None`` for a file that is no GGUF, ``search`` where no search led to it."""

    folder: str
    artifact: Artifact
    size: SizeTruth | None
    sensitivity: tuple[Part, ...]
    latency: tuple[Latency, ...]
    search: Found | None = None

    def value(self, metric: str) -> float | None:
        return next((one.value for one in self.artifact.card if one.metric == metric), None)


class Front(msgspec.Struct, frozen=True):
    """A plot: both metrics are better when lower. ``points``: index, x and y; ``best``: the indices on the front.
    ``predicted``: whether nobody measured ``x`` of one of them.
    """

    x: str
    y: str
    points: tuple[tuple[int, float, float], ...]
    best: tuple[int, ...]
    predicted: bool = False


class ReportData(msgspec.Struct, frozen=True):
    artifacts: tuple[Told, ...]
    fronts: tuple[Front, ...]


def gather(folders: Sequence[Path]) -> ReportData:
    """Errors: those of ``load_artifact`` and ``read_found``; :class:`BadConfigValue` for none."""
    if not folders:
        raise BadConfigValue("A report needs an artifact at least.", param="folders")
    told = tuple(_told(folder) for folder in folders)
    times = sorted({one.metric for each in told for one in each.artifact.card if one.metric.startswith("ttft_ms")})
    return ReportData(told, tuple(front(told, x, "kl") for x in ("size", *times)))


def front(told: Sequence[Told], x: str, y: str) -> Front:
    found = []
    for number, one in enumerate(told):
        across, up = one.value(x), one.value(y)
        if across is not None and up is not None:
            found.append((number, across, up))
    best = tuple(
        number
        for number, across, up in found
        if not any(a <= across and b <= up and (a < across or b < up) for _, a, b in found)
    )
    predicted = any(row.metric == x and row.predicted for one in told for row in one.artifact.card)
    return Front(x, y, tuple(found), best, predicted)


def _told(folder: Path) -> Told:
    artifact = load_artifact(folder)
    return Told(
        folder=str(folder),
        artifact=artifact,
        size=next((_size(folder / file.name) for file in artifact.files if file.format == "gguf"), None),
        sensitivity=_sensitivity(folder / SENSITIVITY),
        latency=tuple(_latency(one) for one in artifact.card if one.unit == "ms" or one.metric == "decode_tps"),
        search=read_found(folder),
    )


def _size(file: Path) -> SizeTruth:
    found = inspect(file)
    return SizeTruth(
        found.named,
        found.weights,
        found.size_bytes,
        found.bits,
        tuple(TypeShare(one.type, one.tensors, one.weights, one.size_bytes, one.bits) for one in found.shares()),
        {tensor.name: tensor.type for tensor in found.tensors},
        tuple(found.sentences()),
    )


def _latency(one: Measured) -> Latency:
    if not one.samples:
        return Latency(one.metric, one.unit, one.n, one.value, one.low, one.high, (), (), one.note)
    middle = median(one.samples)
    # A slow run is a late first token, and few tokens a second: the tail is where it hurts.
    slow_is_high = one.unit == "ms"
    tails = [percentile(one.samples if slow_is_high else [-value for value in one.samples], share) for share in SHOWN]
    told = tuple(
        Tail(tail.share, tail.value if tail.value is None or slow_is_high else -tail.value, tail.needed)
        for tail in tails
    )
    return Latency(
        one.metric, one.unit, middle.n, middle.value, middle.low, middle.high, one.samples, told, one.note
    )  # fmt: skip


def _sensitivity(file: Path) -> tuple[Part, ...]:
    """Empty where the artifact has none. Errors: :class:`BadModelFile` naming the file."""
    try:
        choices = msgspec.json.decode(file.read_bytes(), type=dict[str, list[Choice]])
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError) as error:
        raise BadModelFile(f"The sensitivities {file} are not valid: {error}.") from error
    bits = {name: 8 * size / block for name, block, size in TENSOR_TYPES.values()}
    sums: dict[str, list[float]] = {}
    for name, of in choices.items():
        if not of:
            continue
        loss = min(of, key=lambda one: abs(bits.get(one.kind, 99.0) - _COARSE)).loss
        layer = name.split(".")[1] if name.startswith("blk.") else name.removesuffix(".weight")
        pair = sums.setdefault(layer, [0.0, 0.0])
        pair[0 if any(part in name for part in _ATTENTION) else 1] += loss
    ordered = sorted(sums, key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0, layer))
    return tuple(Part(layer, *sums[layer]) for layer in ordered)
