"""What a search tried, as plots: every trial, how far it came, the front, and what was required.

The rule kept: what was measured is filled; what was only expected or predicted is hollow, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..search_records import Found, Record
from .report_plots import FOOT, HEAD, axis_words, frame, room
from .svg import LEFT, RIGHT, WIDTH, Axis, line, marker, svg, text

_BEYOND = 20.0  # an expected KL that many times the worst measured one would leave no room for the others
_STATES = {"measured": "fill", "scored": "part", "expected": "open"}
WORDS = {
    "measured": "measured in full",
    "scored": "ruled out by a part of the windows",
    "expected": "ruled out before it was written",
}


def plots(found: Found, kept: Record | None) -> list[str]:
    """Size against KL, and each time to a first token that was required or measured. ``kept``: the artifact's own."""
    times = sorted({key for one in found.records for key in one.values if key.startswith("ttft_ms")})
    return [_plot(found, metric, kept) for metric in ("size", *times)]


def told(found: Found) -> str:
    """Counts in words, and what decided which trials were measured."""
    counts = [(sum(one.state == state for one in found.records), words) for state, words in WORDS.items()]
    tried = ", ".join(f"{count} {words}" for count, words in counts if count)
    asked = ", ".join(found.requirements)
    proxies = "".join(f"<li>{escape(one)}</li>" for one in found.proxies)
    return f"<p>Required: {escape(asked)}. Trials: {tried}.</p>" + (f"<ul>{proxies}</ul>" if proxies else "")


def _plot(found: Found, metric: str, kept: Record | None) -> str:
    (name, by, unit), (name_y, _, unit_y) = axis_words(metric), axis_words("kl")
    shown = _shown(found.records, metric)
    predicted = any(metric in one.predicted for one in shown)
    right = WIDTH - RIGHT - 250
    x = Axis(*room([one.values[metric] / by for one in shown]), LEFT, right)
    y = Axis(*_decades([one.kl for one in shown]), FOOT, HEAD, log=True)
    recipes = list(dict.fromkeys(one.recipe for one in found.records))
    parts = frame(x, y, (f"{name}{', predicted' if predicted else ''}, {unit}", f"{name_y}, {unit_y}"))
    parts += _limits(found, metric, x, y)
    best = _front([(one.values[metric] / by, one.kl) for one in shown if one.state == "measured"])
    if len(best) > 1:
        path = "".join(f"{'L' if at else 'M'}{x.at(a):.1f} {y.at(b):.1f}" for at, (a, b) in enumerate(best))
        parts.append(f'<path d="{path}" class="front"/>')
    for one in sorted(shown, key=lambda one: one.state == "measured"):
        parts.append(
            marker(
                x.at(one.values[metric] / by), y.at(one.kl), recipes.index(one.recipe), _words(one, metric),
                _STATES[one.state],
            )
        )  # fmt: skip
    parts += _legend(recipes, right + 24)
    if kept is not None:
        parts.append(text(x.at(kept.values[metric] / by) + 9, y.at(kept.kl) - 9, "kept", "front"))
    said = "; ".join(_words(one, metric) for one in shown if one.state == "measured")
    return svg(346.0, parts, f"trials of a search, {name} against {name_y}", said)


def _shown(records: Sequence[Record], metric: str) -> list[Record]:
    """Without those whose expected KL says no more than that nothing fits."""
    worst = max((one.kl for one in records if one.state != "expected"), default=0.0)
    return [one for one in records if metric in one.values and one.kl <= max(_BEYOND * worst, 1e-9)]


def _words(one: Record, metric: str) -> str:
    (_, by, unit), value = axis_words(metric), one.values[metric]
    kinds = "" if one.kinds == "all" else f", {one.kinds}"
    how = f"{one.recipe}{kinds}, damping {one.damping:g}, {WORDS[one.state]}"
    guessed = {key: " predicted" if key in one.predicted else "" for key in (metric, "kl")}
    return f"{how}: {value / by:.4g} {unit}{guessed[metric]}, {one.kl:.4g} nats/token{guessed['kl']}"


def _limits(found: Found, metric: str, x: Axis, y: Axis) -> list[str]:
    parts = []
    if metric in found.limits:
        at = found.limits[metric] / axis_words(metric)[1]
        if x.low <= at <= x.high:
            parts += [line(x.at(at), FOOT, x.at(at), HEAD, "limit"), text(x.at(at) + 4, HEAD + 10, "required", "small")]
    if "kl" in found.limits and y.low <= found.limits["kl"] <= y.high:
        at = y.at(found.limits["kl"])
        parts += [line(x.start, at, x.end, at, "limit"), text(x.end, at - 5, "required", "small", "end")]
    return parts


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for across, up in sorted(points):
        if not found or up < found[-1][1]:
            found.append((across, up))
    return found


def _decades(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.1), max(values, default=1.0)
    return max(low, 1e-9) / 1.3, max(high, 1e-9) * 1.3


def _legend(recipes: Sequence[str], left: float) -> list[str]:
    parts: list[str] = []
    for row, name in enumerate(recipes):
        parts += [marker(left, 42 + 22 * row, row, ""), text(left + 16, 46 + 22 * row, f"recipe {name}")]
    top = 52 + 22 * len(recipes)
    for row, (state, words) in enumerate(WORDS.items()):
        parts += [
            marker(left, top + 22 * row, 0, "", _STATES[state]),
            text(left + 16, top + 4 + 22 * row, words, "small"),
        ]
    return parts
