"""Recorded and made-up links: how many bytes can pass in each 100 ms, per direction.

The recorded ones are facts derived from the mahimahi traces of cellular links (Winstein, Sivaraman and Balakrishnan,
"Stochastic Forecasts Achieve High Throughput and Low Delay over Cellular Networks", NSDI 2013; repository
ravinet/mahimahi): only the count of packets per 100 ms is kept, ``tools/derive_traces.py`` makes it. Within a step the
capacity counts as spread evenly. What the traces do not say, such as delay and loss, is not here.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Literal

from codriver.core.errors import BadConfigValue, MissingFile, UnknownEntry

Direction = Literal["down", "up"]

PACKET_BYTES = 1500
"""What one line of a mahimahi trace lets pass."""

_SOURCE = "ravinet/mahimahi traces (Winstein et al., NSDI 2013), packets per 100 ms derived from {name}.down and .up"
_RECORDED = "data/traces"


@dataclass(frozen=True)
class LinkTrace:
    """Byte capacities per step and direction. ``down`` is towards the vehicle. Both directions have as many steps."""

    name: str
    source: str
    step_ms: int
    down_bytes: tuple[int, ...]
    up_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.down_bytes or len(self.down_bytes) != len(self.up_bytes):
            raise BadConfigValue(f"Trace {self.name} needs as many steps up as down, and at least one.", param="trace")
        if self.step_ms <= 0 or min(self.down_bytes) < 0 or min(self.up_bytes) < 0:
            raise BadConfigValue(f"Trace {self.name} has a negative capacity or no step length.", param="trace")

    @property
    def duration_s(self) -> float:
        return len(self.down_bytes) * self.step_ms / 1000

    def steps(self, direction: Direction) -> tuple[int, ...]:
        return self.down_bytes if direction == "down" else self.up_bytes

    def capacity_bytes(self, direction: Direction, t_ms: float) -> int:
        """Bytes that can pass in the step that holds ``t_ms``; the trace starts again at its end."""
        steps = self.steps(direction)
        return steps[int(t_ms // self.step_ms) % len(steps)]

    def mean_kbps(self, direction: Direction = "down") -> float:
        return sum(self.steps(direction)) * 8 / (self.duration_s * 1000)

    def outages(self, min_ms: int = 1000) -> list[tuple[float, float]]:
        """(start_s, end_s) of every stretch of at least ``min_ms`` in which no round trip can be made.

        That is: in each step at least one direction passes nothing.
        """
        found: list[tuple[float, float]] = []
        start: int | None = None
        for step in range(len(self.down_bytes) + 1):
            dead = step < len(self.down_bytes) and not (self.down_bytes[step] and self.up_bytes[step])
            if dead and start is None:
                start = step
            elif not dead and start is not None:
                if (step - start) * self.step_ms >= min_ms:
                    found.append((start * self.step_ms / 1000, step * self.step_ms / 1000))
                start = None
        return found

    def window(self, start_s: float, length_s: float) -> LinkTrace:
        """The part from ``start_s`` on, ``length_s`` long, in whole steps, cut at the trace's end."""
        first = math.floor(start_s * 1000 / self.step_ms + 1e-9)
        last = math.ceil((start_s + length_s) * 1000 / self.step_ms - 1e-9)
        if not 0 <= first < min(last, len(self.down_bytes)):
            raise BadConfigValue(
                f"Trace {self.name} lasts {self.duration_s:g} s: a window of {length_s:g} s from {start_s:g} s has "
                "nothing in it.",
                param="window",
            )
        return replace(self, down_bytes=self.down_bytes[first:last], up_bytes=self.up_bytes[first:last])


class CapacityCurve:
    """The bytes one direction could have passed since the trace began, as a rising curve over time.

    ``loop``: the trace starts again at its end; otherwise nothing passes after it.
    """

    def __init__(self, steps: Sequence[int], step_ms: int, loop: bool = True) -> None:
        self._steps = steps
        self._step_ms = step_ms
        self._loop = loop
        self._sums = [0, *accumulate(steps)]

    @cached_property
    def _span_ms(self) -> float:
        return float(len(self._steps) * self._step_ms)

    def bytes_until(self, t_ms: float) -> float:
        """The integral of the capacity from 0 to ``t_ms``."""
        laps, rest_ms = divmod(t_ms, self._span_ms)
        if laps and not self._loop:
            return float(self._sums[-1])
        step = int(rest_ms // self._step_ms)
        within = (rest_ms - step * self._step_ms) / self._step_ms
        return laps * self._sums[-1] + self._sums[step] + within * self._steps[step]

    def time_ms(self, total_bytes: float) -> float:
        """The first instant by which ``total_bytes`` can have passed; ``inf`` when the trace never gets there."""
        per_lap = self._sums[-1]
        if total_bytes <= 0:
            return 0.0
        if per_lap == 0 or (not self._loop and total_bytes > per_lap):
            return math.inf
        laps = math.ceil(total_bytes / per_lap) - 1
        rest = total_bytes - laps * per_lap
        # The step in which the running sum first reaches ``rest``: its capacity cannot be zero. Rounding may push
        # ``rest`` a hair past the lap's sum, hence the two ``min``.
        step = min(bisect_left(self._sums, rest), len(self._steps)) - 1
        within = (rest - self._sums[step]) / self._steps[step] if self._steps[step] else 1.0
        return laps * self._span_ms + (step + min(1.0, within)) * self._step_ms


# ---------------------------------------------------------------- made, not recorded


def ideal(kbps: float = 100_000.0, length_s: float = 60.0, name: str = "ideal") -> LinkTrace:
    """A link of constant speed, the same both ways."""
    step_bytes = round(kbps * 100 / 8)
    steps = (step_bytes,) * max(1, round(length_s * 10))
    return LinkTrace(name, f"generated: constant {kbps:g} kbit/s", 100, steps, steps)


def tunnel(before_s: float = 20.0, dark_s: float = 15.0, after_s: float = 25.0, kbps: float = 10_000.0) -> LinkTrace:
    """A constant link with one square outage in it."""
    on = round(kbps * 100 / 8)
    steps = (on,) * round(before_s * 10) + (0,) * round(dark_s * 10) + (on,) * round(after_s * 10)
    source = f"generated: {kbps:g} kbit/s, dark from {before_s:g} s to {before_s + dark_s:g} s"
    return LinkTrace("tunnel", source, 100, steps, steps)


_GENERATED: dict[str, Callable[[], LinkTrace]] = {"ideal": ideal, "tunnel": tunnel}


# ---------------------------------------------------------------- reading and writing


def names() -> tuple[str, ...]:
    """Every trace ``load`` knows: the recorded ones, then the generated ones."""
    folder = files("codriver.bench").joinpath(_RECORDED)
    recorded = sorted(item.name.removesuffix(".json") for item in folder.iterdir() if item.name.endswith(".json"))
    return (*recorded, *_GENERATED)


def load(name: str) -> LinkTrace:
    """The shipped or generated trace of that name."""
    if name in _GENERATED:
        return _GENERATED[name]()
    if name not in names():
        raise UnknownEntry(f"There is no link trace {name!r}. Known are: {', '.join(names())}.", param="trace")
    return from_json(files("codriver.bench").joinpath(_RECORDED, f"{name}.json").read_text("utf-8"))


def to_json(trace: LinkTrace) -> str:
    """JSON that diffs well: packets per step, run-length coded (``0x12`` = twelve empty steps), ten seconds a line.

    Capacities must be whole packets of 1500 bytes.
    """

    def rows(steps: tuple[int, ...]) -> list[str]:
        per_row = 10_000 // trace.step_ms
        packets = [step // PACKET_BYTES for step in steps]
        if [count * PACKET_BYTES for count in packets] != list(steps):
            raise BadConfigValue(f"Trace {trace.name} does not consist of whole packets.", param="trace")
        return [_runs(packets[at : at + per_row]) for at in range(0, len(packets), per_row)]

    fields = {
        "name": trace.name,
        "source": trace.source,
        "step_ms": trace.step_ms,
        "packet_bytes": PACKET_BYTES,
        "down": rows(trace.down_bytes),
        "up": rows(trace.up_bytes),
    }
    return json.dumps(fields, indent=1) + "\n"


def from_json(text: str) -> LinkTrace:
    """The inverse of :func:`to_json`."""
    fields = json.loads(text)
    packet_bytes = int(fields["packet_bytes"])

    def steps(rows: list[str]) -> tuple[int, ...]:
        found: list[int] = []
        for word in " ".join(rows).split():
            count, _, times = word.partition("x")
            found += [int(count) * packet_bytes] * int(times or 1)
        return tuple(found)

    return LinkTrace(fields["name"], fields["source"], fields["step_ms"], steps(fields["down"]), steps(fields["up"]))


def from_mahimahi(down_path: Path, up_path: Path, step_ms: int = 100) -> LinkTrace:
    """A trace from two mahimahi files: each line is a millisecond at which one 1500-byte packet can pass.

    The trace ends with the last whole step that both files cover.
    """
    down_ms, up_ms = _milliseconds(down_path), _milliseconds(up_path)
    steps = min(max(down_ms), max(up_ms)) // step_ms

    def count(times_ms: list[int]) -> tuple[int, ...]:
        packets = [0] * steps
        for t_ms in times_ms:
            if t_ms // step_ms < steps:
                packets[t_ms // step_ms] += 1
        return tuple(n * PACKET_BYTES for n in packets)

    name = down_path.stem
    return LinkTrace(name, _SOURCE.format(name=name), step_ms, count(down_ms), count(up_ms))


def _milliseconds(path: Path) -> list[int]:
    if not path.is_file():
        raise MissingFile(f"No mahimahi trace at {path}. They come from github.com/ravinet/mahimahi, folder traces.")
    try:
        times_ms = [int(line) for line in path.read_text("ascii").split()]
    except ValueError as error:
        raise BadConfigValue(f"{path} is no mahimahi trace: every line must be a whole millisecond.") from error
    if not times_ms:
        raise BadConfigValue(f"{path} is no mahimahi trace: it is empty.")
    return times_ms


def _runs(values: list[int]) -> str:
    words: list[str] = []
    at = 0
    while at < len(values):
        end = at
        while end < len(values) and values[end] == values[at]:
            end += 1
        words.append(f"{values[at]}x{end - at}" if end - at > 1 else str(values[at]))
        at = end
    return " ".join(words)
