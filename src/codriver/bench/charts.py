"""The drive's plots as inline SVG: no library, no script, and colours that follow the page's light or dark theme.

Every function gives a complete ``<svg>`` element. Colours and strokes come from the report's style sheet by class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from codriver.optimize.reports.svg import LEFT, RIGHT, WIDTH, Axis, box, dot, legend, line, svg, text

from .drive_outcomes import Fate, PolicyRun, Summary
from .drive_settings import Window

FATE_WORDS = {
    "vehicle": "answered in time by the vehicle",
    "cloud": "by the cloud",
    "mixed": "begun by one, finished by the other",
    "lost": "late, cut or failed",
}


def fate_class(fate: Fate) -> str:
    return "lost" if not fate.in_time or fate.where == "nobody" else fate.where


def mark(x: float, y: float, kind: str, told: str) -> str:
    """A request: a disc (vehicle), a triangle (cloud), a diamond (mixed) or a cross (lost)."""
    shapes = {
        "vehicle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
        "cloud": f'<path d="M{x:.1f} {y - 6:.1f}l6 10.5h-12z"/>',
        "mixed": f'<path d="M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5-6.5z"/>',
        "lost": f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0-10l-10 10" class="cross"/>',
    }
    return f'<g class="fate {kind}"><title>{escape(told)}</title>{shapes[kind]}</g>'


# ---------------------------------------------------------------- the drive over time


def timeline(run: PolicyRun, window: Window) -> str:
    """Capacity of the link, its outages, what the vehicle believed of it, and each request's fate."""
    sources = sorted({fate.source for fate in run.fates})
    top, road = 26.0, 96.0
    lanes = road + 44
    bottom = lanes + 24 * max(1, len(sources))
    x = Axis(0.0, window.seconds + 8, 120.0, WIDTH - RIGHT)
    parts = [
        box((x.at(a), top, x.at(b) - x.at(a), bottom - top - 6), "outage", f"no service {a:.1f}–{b:.1f} s")
        for a, b in window.outages()
    ]
    parts += _capacity(window, x, road, top)
    parts += _belief(run, x, road + 8)
    for row, source in enumerate(sources):
        y = lanes + 24 * row
        parts += [text(x.start - 8, y + 4, source, "small", "end"), line(x.start, y, x.end, y, "grid")]
        for fate in run.fates:
            if fate.source == source:
                kind = fate_class(fate)
                end = x.at(fate.at_s + fate.total_ms / 1e3)
                parts.append(line(x.at(fate.at_s), y, end, y, f"span {kind}"))
                parts.append(mark(x.at(fate.at_s), y, kind, _told(fate)))
    for tick in range(0, int(window.seconds) + 1, _tick(window.seconds)):
        parts.append(text(x.at(tick), bottom + 8, f"{tick} s", "small", "middle"))
    parts += legend(14, FATE_WORDS, lambda lx, ly, kind: mark(lx, ly, kind, FATE_WORDS[kind]))
    return svg(bottom + 16, parts, f"{run.policy} on {run.trace}: link and requests over time")


def _tick(seconds: float) -> int:
    return next((step for step in (5, 10, 30, 60, 120, 300, 600) if seconds / step <= 20), 1800)


def _capacity(window: Window, x: Axis, base: float, top: float) -> list[str]:
    """The trace's own capacity towards the vehicle, in means over about a thousandth of the plot."""
    step_s = max(0.2, (x.high - x.low) / 1000)
    times_s = [step_s * i for i in range(int(x.high / step_s) + 1)]
    kbps = [_mean_kbps(window, at_s, step_s) for at_s in times_s]
    y = Axis(0.0, max(kbps) or 1.0, base, top)
    path = f"M{x.start:.1f} {base:.1f}"
    path += "".join(f"L{x.at(at_s):.1f} {y.at(value):.1f}" for at_s, value in zip(times_s, kbps, strict=True))
    return [
        f'<path d="{path}L{x.at(times_s[-1]):.1f} {base:.1f}Z" class="capacity"/>',
        text(x.start - 8, top + 10, f"{y.high / 1e3:.1f}", "small", "end"),
        text(x.start - 8, top + 24, "Mbit/s", "small", "end"),
        text(x.start - 8, base, "0", "small", "end"),
    ]


def _mean_kbps(window: Window, at_s: float, length_s: float) -> float:
    trace = window.trace
    moments = range(max(1, round(1e3 * length_s / trace.step_ms)))
    first_ms = 1e3 * (window.start_s + at_s)
    total = sum(trace.capacity_bytes("down", first_ms + i * trace.step_ms) for i in moments)
    return total * 8 / (len(moments) * trace.step_ms)


def _belief(run: PolicyRun, x: Axis, y: float) -> list[str]:
    """A strip: what the vehicle took the link for. Absent where a policy does not look."""
    parts: list[str] = []
    moments = run.link
    start = 0
    for i in range(1, len(moments) + 1):
        if i == len(moments) or moments[i].believed != moments[start].believed:
            state = moments[start].believed
            end_s = moments[i].t_s if i < len(moments) else moments[-1].t_s
            if state:
                left = x.at(moments[start].t_s)
                parts.append(
                    box((left, y, x.at(end_s) - left, 10), f"believed {state}", f"the vehicle believes: {state}")
                )
            start = i
    label = "believed" if parts else "not watched"
    return [*parts, text(x.start - 8, y + 9, label, "small", "end")]


def _told(fate: Fate) -> str:
    ways = " → ".join(f"{one.get('engine')} {one.get('outcome')}" for one in fate.attempts)
    return f"{fate.item} at {fate.at_s:.1f} s: {fate.outcome} after {fate.total_ms / 1e3:.2f} s; {fate.why}. {ways}"


# ---------------------------------------------------------------- figures side by side


def ttft_curves(runs: Sequence[PolicyRun]) -> str:
    """Share of all requests whose first token had come by a time; one that never came never counts."""
    y = Axis(0.0, 1.0, 250.0, 20.0)
    waits = {run.policy: sorted(f.ttft_ms for f in run.fates if f.ttft_ms is not None) for run in runs}
    known = [wait for each in waits.values() for wait in each]
    low, high = (max(1.0, min(known) * 0.8), max(known) * 1.2) if known else (1.0, 10.0)
    x = Axis(low, high, LEFT, WIDTH - RIGHT - 150, log=True)
    parts = _grid_y(y, (0.0, 0.25, 0.5, 0.75, 1.0), x, lambda v: f"{v:.0%}")
    ticks = [m * 10.0**e for e in range(0, 6) for m in (1, 2, 5)]
    for tick in ticks:
        if low <= tick <= high:
            label = f"{tick:g} ms" if tick < 1000 else f"{tick / 1e3:g} s"
            parts += [
                line(x.at(tick), y.end, x.at(tick), y.start, "grid"),
                text(x.at(tick), 266, label, "small", "middle"),
            ]
    for number, run in enumerate(runs):
        n = max(1, len(run.fates))
        path = f"M{x.start:.1f} {y.start:.1f}"
        for rank, wait in _thinned(waits[run.policy]):
            path += f"L{x.at(wait):.1f} {y.at(rank / n):.1f}L{x.at(wait):.1f} {y.at((rank + 1) / n):.1f}"
        path += f"L{x.end:.1f} {y.at(len(waits[run.policy]) / n):.1f}"
        parts.append(f'<path d="{path}" class="curve c{number}"/>')
        parts += [
            box((x.end + 14, 28 + 22 * number, 14, 4), f"fill c{number}"),
            text(x.end + 34, 34 + 22 * number, run.policy, "small"),
        ]
    return svg(276, parts, "Time to first token: cumulative share of requests")


def _thinned(waits: Sequence[float], most: int = 400) -> list[tuple[int, float]]:
    step = max(1, len(waits) // most)
    return [(rank, waits[rank]) for rank in range(0, len(waits), step)]


def quality_cost(summaries: Sequence[Summary]) -> str:
    """Accuracy against cost per thousand requests, with 95 % intervals of both."""
    costs = [1e3 * s.cost_usd.high for s in summaries if not math.isnan(s.cost_usd.high)]
    x = Axis(0.0, 1.15 * max(costs, default=0.0) or 1.0, LEFT, WIDTH - RIGHT - 150)
    y = Axis(0.0, 1.0, 250.0, 20.0)
    parts = _grid_y(y, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), x, lambda v: f"{v:.0%}")
    for step in range(6):
        value = x.high * step / 5
        parts.append(text(x.at(value), 266, f"${value:.3f}", "small", "middle"))
    for number, one in enumerate(summaries):
        if one.accuracy.n == 0:
            continue
        px, py = x.at(1e3 * one.cost_usd.value), y.at(one.accuracy.value)
        parts += [
            line(px, y.at(one.accuracy.low), px, y.at(one.accuracy.high), f"curve c{number}"),
            line(x.at(1e3 * (one.cost_usd.low or 0)), py, x.at(1e3 * (one.cost_usd.high or 0)), py, f"curve c{number}"),
            dot(px, py, number, one.policy),
            box((x.end + 14, 28 + 22 * number, 14, 4), f"fill c{number}"),
            text(x.end + 34, 34 + 22 * number, one.policy, "small"),
        ]
    parts.append(text((x.start + x.end) / 2, 286, "cost per 1,000 requests (assumed price)", "small", "middle"))
    return svg(292, parts, "Accuracy against cost")


def places(summaries: Sequence[Summary]) -> str:
    """Who answered, as a share of all requests."""
    parts = []
    for row, one in enumerate(summaries):
        y, left = 34.0 + 34 * row, 170.0
        parts.append(text(160, y + 16, one.policy, "", "end"))
        lost = one.n - one.by_vehicle - one.by_cloud - one.mixed
        counts = {"vehicle": one.by_vehicle, "cloud": one.by_cloud, "mixed": one.mixed, "lost": lost}
        for kind, count in counts.items():
            width = (WIDTH - RIGHT - 170) * count / max(1, one.n)
            parts.append(box((left, y, width, 22), f"fate {kind} bar", f"{FATE_WORDS[kind]}: {count}"))
            if width > 34:
                parts.append(text(left + width / 2, y + 15, str(count), "inside", "middle"))
            left += width
    parts += legend(16, FATE_WORDS, lambda x, y, kind: mark(x, y, kind, FATE_WORDS[kind]))
    return svg(40 + 34 * len(summaries), parts, "Where requests were answered")


def shares(points: Sequence[tuple[str, float, float, float, float]]) -> str:
    """(name, calls, share, low, high) of each way to choose who is asked: accuracy as a share of the strong model's."""
    known = [value for point in points for value in point[2:] if not math.isnan(value)]
    x = Axis(min([*known, 0.93]) - 0.01, max([*known, 1.0]) + 0.01, 200.0, WIDTH - RIGHT - 150)
    bottom = 20.0 + 26 * len(points)
    ticks = [v / 20 for v in range(0, 41) if x.low <= v / 20 <= x.high]
    parts = [line(x.at(v), 10, x.at(v), bottom, "aim" if v == 0.95 else "grid") for v in ticks]
    parts += [text(x.at(v), bottom + 16, f"{v:.0%}", "small", "middle") for v in ticks]
    for number, (name, calls, value, low, high) in enumerate(points):
        y = 24.0 + 26 * number
        colour = number % 8
        parts += [text(x.start - 12, y + 4, name, "", "end"), line(x.at(low), y, x.at(high), y, f"curve c{colour}")]
        parts.append(dot(x.at(value), y, colour, f"{name}: {value:.1%} at {calls:.1%} of the calls"))
        parts.append(text(x.end + 12, y + 4, f"{value:.1%} at {calls:.1%} calls", "small"))
    return svg(bottom + 24, parts, "Accuracy as a share of the strong model's, and the calls it took")


def _grid_y(y: Axis, ticks: Sequence[float], x: Axis, label: Callable[[float], str]) -> list[str]:
    parts = []
    for tick in ticks:
        parts += [
            line(x.start, y.at(tick), x.end, y.at(tick), "grid"),
            text(x.start - 8, y.at(tick) + 4, label(tick), "small", "end"),
        ]
    return parts
