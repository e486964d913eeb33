"""What an artifact must reach, in a line: ``ppl<=+3%, size<=110MB, ttft_ms<=300@512``.

A requirement is a metric, ``<=`` or ``>=``, a number with a unit where the metric has one, ``+N%`` or ``Nx`` where it
counts against the reference (``-N%`` for what must be at least so much), and ``@N`` where it is of a prompt of N
tokens. Sizes: kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024. Task sets are metrics by the names they are given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codriver.core.errors import BadConfigValue

_PART = re.compile(
    r"\s*([a-z_0-9]+?)\s*(<=|>=)\s*([+-]?)([0-9]*\.?[0-9]+)\s*(%|x|[KMG]i?B|kB|B)?\s*(?:@\s*([0-9]+))?\s*"
)
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# Metric → the direction that makes sense, and what it is.
METRICS: dict[str, tuple[str, str]] = {
    "ppl": ("<=", "perplexity"),
    "kl": ("<=", "mean KL to the reference, in nats per token"),
    "same_top": (">=", "share of tokens on which it agrees with the reference"),
    "size": ("<=", "bytes of the file"),
    "bits": ("<=", "effective bits per weight"),
    "ttft_ms": ("<=", "time to the first token of a prompt, as in 300@512"),
    "decode_tps": (">=", "tokens a second while writing"),
    "rss": ("<=", "memory of the process that has it loaded"),
    "agreement": (">=", "how far a vision model agrees with the reference, from 0 to 1"),
    "latency": ("<=", "median time of a picture over the reference's, as in 0.66x"),
    "latency_ms": ("<=", "median time of a picture"),
}
_BYTES = ("size", "rss")


@dataclass(frozen=True)
class Requirement:
    """``relative``: ``limit`` is a share over the reference's value. ``tokens``: the prompt it is of; 0 for none."""

    metric: str
    at_most: bool
    limit: float
    relative: bool = False
    tokens: int = 0

    @property
    def key(self) -> str:
        return f"{self.metric}@{self.tokens}" if self.tokens else self.metric

    def bound(self, reference: Mapping[str, float]) -> float:
        """The limit as a value. Errors: :class:`BadConfigValue` where the reference has none to compare with."""
        if not self.relative:
            return self.limit
        if self.key not in reference:
            raise BadConfigValue(f"'{self.metric}' cannot be required in percent: the reference has no such value.")
        return reference[self.key] * (1 + self.limit if self.at_most else 1 - self.limit)

    def met(self, value: float, reference: Mapping[str, float]) -> bool:
        bound = self.bound(reference)
        return value <= bound if self.at_most else value >= bound

    def __str__(self) -> str:
        sign = "+" if self.at_most else "-"
        share = f"{1 + self.limit:g}x" if self.metric == "latency" else f"{sign}{100 * self.limit:g}%"
        number = share if self.relative else f"{self.limit:g}"
        return f"{self.metric}{'<=' if self.at_most else '>='}{number}{f'@{self.tokens}' if self.tokens else ''}"


def parse_requirements(line: str, task_sets: Sequence[str] = ()) -> list[Requirement]:
    """``task_sets``: names of those that are asked; ``NAME`` is its accuracy, ``NAME_flips`` its share of flips.

    Errors: :class:`BadConfigValue` naming the part, and what it might have been.
    """
    known = dict(METRICS)
    for name in task_sets:
        known[name] = (">=", "share of right answers, from 0 to 1")
        known[f"{name}_flips"] = ("<=", "share of answers that turned from right to wrong or back")
    return [_parse(part, known) for part in line.split(",") if part.strip()]


def _parse(part: str, known: Mapping[str, tuple[str, str]]) -> Requirement:
    found = _PART.fullmatch(part)
    if found is None:
        raise _bad(part, "write a metric, <= or >=, and a number")
    metric, sense, sign, number, unit, tokens = found.groups()
    if metric not in known:
        raise _bad(part, f"there is no metric '{metric}'; known: {', '.join(known)}")
    if sense != known[metric][0]:
        raise _bad(part, f"'{metric}' ({known[metric][1]}) takes {known[metric][0]}")
    if unit == "%":
        if sense == "<=" and sign != "+":
            raise _bad(part, f"write {metric}<=+{number}% for a share over the reference")
        if sense == ">=" and sign != "-":
            raise _bad(part, f"write {metric}>=-{number}% for a share below the reference")
        return Requirement(metric, sense == "<=", float(number) / 100, relative=True)
    if (unit == "x") != (metric == "latency"):
        raise _bad(part, "a multiple of the reference's value (0.66x) belongs to latency, and to it alone")
    if unit == "x":
        return Requirement(metric, sense == "<=", float(number) - 1, relative=True)
    if sign:
        raise _bad(part, "only a share in percent counts against the reference")
    if (unit is not None) != (metric in _BYTES):
        raise _bad(part, f"'{metric}' takes {'a unit: B, kB, MB, GB, KiB, MiB or GiB' if unit is None else 'no unit'}")
    if (tokens is not None) != (metric == "ttft_ms"):
        raise _bad(part, "a prompt's length (@512) belongs to ttft_ms, and to it alone")
    scale = _UNITS[unit] if unit is not None else 1
    return Requirement(metric, sense == "<=", float(number) * scale, tokens=int(tokens or 0))


def _bad(part: str, why: str) -> BadConfigValue:
    return BadConfigValue(f"The requirement '{part.strip()[:80]}' is not valid: {why}.", param="require")
