"""Where the routes of a file get in each other's way, and how sure they are: each example is judged by the others.

A *conflict* is a pair of routes whose examples are closer to each other than to their own, or a sentence that stands in
two routes: the file must be changed. An example that its own route would not win is told of, and no conflict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from .semantic_match import Matcher

# A pair is in conflict when this share of one route's examples is closer to the other route than to their own.
_CONFLICT_SHARE = 0.4


class RouteReport(msgspec.Struct, frozen=True):
    """Shares of a route's examples, each judged with itself left out: ``right`` won by the route, ``wrong`` won by
    another, ``abstained`` won by none.
    """

    route: str
    examples: int
    threshold: float
    right: float
    wrong: float
    abstained: float


class Lost(msgspec.Struct, frozen=True):
    """An example that its own route would not win; ``to`` is the route that would, or ``None``."""

    route: str
    text: str
    to: str | None
    why: str


class Conflict(msgspec.Struct, frozen=True):
    """``share`` of the examples of ``route`` are closer to ``other`` than to the rest of their own."""

    route: str
    other: str
    share: float


class Duplicate(msgspec.Struct, frozen=True):
    text: str
    routes: tuple[str, ...]


class Report(msgspec.Struct, frozen=True):
    routes: tuple[RouteReport, ...]
    conflicts: tuple[Conflict, ...]
    lost: tuple[Lost, ...]
    duplicates: tuple[Duplicate, ...]
    right: float
    wrong: float
    abstained: float

    @property
    def sound(self) -> bool:
        """True when no two routes are in conflict."""
        return not self.conflicts and all(len(set(one.routes)) == 1 for one in self.duplicates)


def report(matcher: Matcher) -> Report:
    """The findings on one file."""
    verdicts = [matcher.judge(row) for row in matcher.left_out]
    names = [matcher.names[owner] for owner in matcher.owners]
    routes: list[RouteReport] = []
    for route in filter(None, matcher.names):
        mine = [verdict.route for verdict, name in zip(verdicts, names, strict=True) if name == route]
        right, abstained = mine.count(route) / len(mine), mine.count(None) / len(mine)
        wrong = 1.0 - right - abstained
        routes.append(RouteReport(route, len(mine), matcher.thresholds[route], right, max(0.0, wrong), abstained))
    lost = [
        Lost(name, text, verdict.route, verdict.why)
        for verdict, name, text in zip(verdicts, names, matcher.texts, strict=True)
        if verdict.route != (name or None)
    ]
    total = sum(one.examples for one in routes)
    return Report(
        routes=tuple(routes),
        conflicts=tuple(_conflicts(matcher)),
        lost=tuple(lost),
        duplicates=tuple(_duplicates(names, matcher.texts)),
        right=sum(one.right * one.examples for one in routes) / total,
        wrong=sum(one.wrong * one.examples for one in routes) / total,
        abstained=sum(one.abstained * one.examples for one in routes) / total,
    )


def _conflicts(matcher: Matcher) -> Iterator[Conflict]:
    for at, route in enumerate(matcher.names):
        rows = [row for row, owner in zip(matcher.left_out, matcher.owners, strict=True) if owner == at]
        for other, name in enumerate(matcher.names):
            if at == other or not route or not name:
                continue
            share = sum(bool(row[other] >= row[at]) for row in rows) / len(rows)
            if share >= _CONFLICT_SHARE:
                yield Conflict(route, name, share)


def _duplicates(names: list[str], texts: list[str]) -> Iterator[Duplicate]:
    """Sentences that differ in nothing but case, spaces and marks."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, text in zip(names, texts, strict=True):
        found.setdefault(" ".join(re.findall(r"\w+", text.lower())), []).append((name or "other", text))
    for same in found.values():
        if len(same) > 1:
            yield Duplicate(same[0][1], tuple(name for name, _ in same))
