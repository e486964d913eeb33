"""Plots as inline SVG, by hand: no library, no script, and colours that follow the page's light or dark theme.

Colours and strokes come from the page's style sheet by class (``grid``, ``fill c0``…``c7``, ``curve c0``…). What a
colour tells, a shape tells too: :func:`marker` has a shape per number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 980.0
LEFT, RIGHT = 70.0, 20.0
_SHAPES = (
    "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
    "M-5.5-5.5h11v11h-11z",
    "M0-7l7 12h-14z",
    "M0-7.5l7.5 7.5l-7.5 7.5l-7.5-7.5z",
    "M0 7l7-12h-14z",
    "M-2-7h4v5h5v4h-5v5h-4v-5h-5v-4h5z",
    "M-7-3.5l3.5-3.5l3.5 3.5l3.5-3.5l3.5 3.5l-3.5 3.5l3.5 3.5l-3.5 3.5l-3.5-3.5l-3.5 3.5l-3.5-3.5l3.5-3.5z",
    "M-7-3h14v6h-14z",
)


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values from ``low`` to ``high`` onto pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        part = (value - low) / (high - low) if high > low else 0.0
        return self.start + min(1.0, max(0.0, part)) * (self.end - self.start)


def svg(height: float, parts: Sequence[str], title: str, told: str = "") -> str:
    """``title`` names the plot; ``told`` says in words what it shows, for who cannot see it."""
    more = f"<desc>{escape(told)}</desc>" if told else ""
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{more}{''.join(parts)}</svg>"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def box(frame: tuple[float, float, float, float], kind: str, told: str = "") -> str:
    """``frame``: left, top, width, height."""
    x, y, width, height = frame
    title = f"<title>{escape(told)}</title>" if told else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
    return f'<rect {place} class="{kind}">{title}</rect>'


def dot(x: float, y: float, number: int, told: str) -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="6"'
    return f'<circle {place} class="fill c{number}"><title>{escape(told)}</title></circle>'


def marker(x: float, y: float, number: int, told: str, kind: str = "fill") -> str:
    """A mark of its own colour and shape; ``told`` is shown where it is pointed at. ``kind``: how it is filled."""
    which = number % len(_SHAPES)
    title = f"<title>{escape(told)}</title>" if told else ""
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{_SHAPES[which]}" class="{kind} c{which}">{title}</path>'


def legend(y: float, entries: Mapping[str, str], draw: Callable[[float, float, str], str]) -> list[str]:
    parts, x = [], LEFT + 8
    for kind, words in entries.items():
        parts += [draw(x, y - 4, kind), text(x + 12, y, words, "small")]
        x += 30 + 6.4 * len(words)
    return parts


def ticks_log(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten from ``low`` to ``high``; both above 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [unit * 10.0**power for power in powers for unit in (1, 2, 5) if low <= unit * 10.0**power <= high]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next((unit * m for m in (1, 2, 2.5, 5) if unit * m >= rough), 10 * unit)
    first = math.ceil(low / step)
    return [step * at for at in range(first, math.floor(high / step + 1e-9) + 1)]
