"""The plots of a report on artifacts."""

from __future__ import annotations

from collections.abc import Sequence

from .report_data import Front, Latency, Part, Told
from .svg import LEFT, RIGHT, WIDTH, Axis, box, line, marker, svg, text, ticks, ticks_log

HEAD, FOOT = 34.0, 300.0  # of a plot of points, in pixels from the top
AXES = {"size": ("bytes of the file", 1e6, "MB"), "kl": ("mean KL to the reference", 1.0, "nats/token")}


def axis_words(metric: str) -> tuple[str, float, str]:
    """What an axis is called, what its values are divided by, and their unit then."""
    if metric.startswith("ttft_ms@"):
        return f"time to the first token of {metric.partition('@')[2]} tokens", 1.0, "ms"
    return AXES.get(metric, (metric, 1.0, ""))


def label(one: Told) -> str:
    """The folder's own name: an artifact's name is that of the model, and the same for all of one model."""
    return one.folder.rstrip("/").rpartition("/")[2] or one.folder


def frame(x: Axis, y: Axis, words: tuple[str, str]) -> list[str]:
    """The grid of a plot of points, with what its axes are called."""
    parts = [text(LEFT, 20, words[1], "small")]
    for tick in ticks_log(y.low, y.high) if y.log else ticks(y.low, y.high):
        parts += [
            line(LEFT, y.at(tick), x.end, y.at(tick), "grid"),
            text(LEFT - 8, y.at(tick) + 4, f"{tick:g}", "small", "end"),
        ]
    for tick in ticks(x.low, x.high, 7):
        parts += [
            line(x.at(tick), FOOT, x.at(tick), FOOT + 5, "grid"),
            text(x.at(tick), FOOT + 19, f"{tick:g}", "small", "middle"),
        ]
    return [*parts, text((LEFT + x.end) / 2, FOOT + 38, words[0], "small", "middle")]


def pareto(front: Front, told: Sequence[Told]) -> str:
    """Each artifact by shape and colour; those on the front are joined, and named in bold."""
    (name_x, by_x, unit_x), (name_y, by_y, unit_y) = axis_words(front.x), axis_words(front.y)
    points = [(number, across / by_x, up / by_y) for number, across, up in front.points]
    right = WIDTH - RIGHT - 250
    x = Axis(*room([across for _, across, _ in points]), LEFT, right)
    y = Axis(*room([up for _, _, up in points]), FOOT, HEAD)
    parts = frame(x, y, (f"{name_x}{', predicted' if front.predicted else ''}, {unit_x}", f"{name_y}, {unit_y}"))
    best = sorted((across, up) for number, across, up in points if number in front.best)
    path = "".join(f"{'L' if at else 'M'}{x.at(a):.1f} {y.at(b):.1f}" for at, (a, b) in enumerate(best))
    if len(best) > 1:
        parts.append(f'<path d="{path}" class="front"/>')
    for row, (number, across, up) in enumerate(points):
        on = number in front.best
        words = f"{label(told[number])}{' (front)' if on else ''}"
        parts.append(marker(x.at(across), y.at(up), number, f"{words}: {across:.4g} {unit_x}, {up:.4g} {unit_y}"))
        parts += [
            marker(right + 24, 42 + 22 * row, number, ""),
            text(right + 40, 46 + 22 * row, words, "front" if on else ""),
        ]
    said = "; ".join(f"{label(told[n])}: {a:.4g} {unit_x}, {b:.4g} {unit_y}" for n, a, b in points)
    return svg(max(346.0, 60.0 + 22 * len(points)), parts, f"{name_x} against {name_y}", said)


def sensitivity(parts_of: Sequence[Part], name: str) -> str:
    """A bar per layer; what attention costs is plain, the rest hatched. ``name``: of the hatching, one of its own on a
    page.
    """
    base = 220.0
    most = max(part.attention + part.rest for part in parts_of) or 1.0
    y = Axis(0.0, most, base, 40.0)
    width = (WIDTH - LEFT - RIGHT) / len(parts_of)
    # The width of a bar decides whether its name fits below it.
    every = max(1, round(26 / width))
    parts = [
        f'<defs><pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" class="fill c1"/><line x1="0" y1="0" x2="0" y2="6" class="hatch"/></pattern></defs>'
    ]
    for tick in ticks(0, most, 4):
        parts += [
            line(LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick), "grid"),
            text(LEFT - 8, y.at(tick) + 4, f"{tick:.3g}", "small", "end"),
        ]
    for number, part in enumerate(parts_of):
        left = LEFT + width * number + 0.12 * width
        top, foot = y.at(part.attention + part.rest), y.at(part.attention)
        told = f"layer {part.layer}: attention {part.attention:.4g}, the rest {part.rest:.4g} nats/token"
        parts.append(box((left, foot, 0.76 * width, base - foot), "fill c0", told))
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{0.76 * width:.1f}" height="{max(0.0, foot - top):.1f}" '
            f'fill="url(#{name})"><title>{told}</title></rect>'
        )
        if number % every == 0 or not part.layer.isdigit():
            short = part.layer if part.layer.isdigit() else part.layer.replace("token_embd", "embd")[:6]
            parts.append(text(left + 0.38 * width, base + 16, short, "small", "middle"))
    parts += [
        text(LEFT, 20, "expected KL, nats/token", "small"),
        box((WIDTH - 330, 10, 14, 12), "fill c0"), text(WIDTH - 310, 20, "attention", "small"),
        f'<rect x="{WIDTH - 230:.1f}" y="10" width="14" height="12" fill="url(#{name})"/>',
        text(WIDTH - 210, 20, "feed-forward and the rest", "small"),
        text((LEFT + WIDTH) / 2, base + 34, "layer", "small", "middle"),
    ]  # fmt: skip
    worst = max(parts_of, key=lambda part: part.attention + part.rest)
    return svg(base + 42, parts, "Sensitivity by layer", f"The most sensitive is layer {worst.layer}.")


def latencies(rows: Sequence[Latency]) -> str:
    """Every run as a mark, the median as a line, its interval as a bar below."""
    parts: list[str] = []
    top = 10.0
    for row in rows:
        values = [*row.samples, row.median] + [bound for bound in (row.low, row.high) if bound is not None]
        x = Axis(*room(values), 190.0, WIDTH - RIGHT - 20)
        y = top + 26
        parts.append(text(180, y + 4, f"{row.metric.replace('ttft_ms', 'first token')}", "", "end"))
        parts.append(text(180, y + 20, f"n = {row.n}, {row.unit}", "small", "end"))
        for tick in ticks(x.low, x.high, 6):
            parts += [
                line(x.at(tick), y - 14, x.at(tick), y + 22, "grid"),
                text(x.at(tick), y + 36, f"{tick:g}", "small", "middle"),
            ]
        for number, value in enumerate(row.samples):
            told = f"run {number + 1}: {value:.4g} {row.unit}"
            parts.append(
                f'<circle cx="{x.at(value):.1f}" cy="{y:.1f}" r="5" class="run"><title>{told}</title></circle>'
            )
        if row.low is not None and row.high is not None:
            told = f"from {row.low:.4g} to {row.high:.4g} {row.unit}"
            parts.append(box((x.at(row.low), y + 12, x.at(row.high) - x.at(row.low), 5), "fill c0", told))
        told = f"<title>median {row.median:.4g} {row.unit}</title>"
        parts.append(f'<path d="M{x.at(row.median):.1f} {y - 13:.1f}v32" class="median">{told}</path>')
        top = y + 46
    return svg(top + 4, parts, "Runs, medians and their 95 % intervals", "")


def room(values: Sequence[float]) -> tuple[float, float]:
    """From where to where an axis goes that shows all of ``values``."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    more = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return (max(0.0, low - more) if low >= 0 else low - more), high + more
