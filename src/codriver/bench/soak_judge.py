"""What a soak must have shown, line by line: no leak, nothing stuck, no lie, and everything as it was at the end.

Each line is judged from figures alone, so that a test can feed it bad ones. A line that fails fails the bench.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .rows import Row
from .soak_load import Tally
from .soak_processes import PAUSE_S, Look
from .soak_slope import Slope, slope
from .soak_upstream import Finding

# A leak worth the name over an hour. A shorter run cannot tell so little from an allocator that settles.
BOUND_MB_PER_HOUR = 4.0
BOUND_MB = 2.0
_SPARE_SOCKETS = 4
_SPARE_TASKS = 2
# After the link is up: two probes, a breaker's pause, and an answer.
RECOVERY_S = PAUSE_S + 8.0
_LATE_SHARE = 1 / 2000
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Judged:
    """One line: what was asked of the run, whether it held, and the figures."""

    name: str
    holds: bool
    note: str
    value: float = math.nan

    def row(self) -> Row:
        return Row("codriver", "judged", self.name, float(self.holds), "", 1, note=self.note)


@dataclass(frozen=True)
class Ending:
    """The vehicle once the load is over. ``recovered_s``: from the link's return until the cloud answered a plain
    request; infinite when it did not. ``spent_usd`` is the record on disk, NaN where it is another day's.
    """

    recovered_s: float
    link_state: str
    breakers: dict[str, str]
    health: str
    in_flight: int
    upstream_working: int
    spent_usd: float
    told_usd: float


@dataclass
class Soak:
    """All that was seen. ``before`` and ``after`` are looks without any load."""

    before: Look
    after: Look
    looks: list[Look]
    calm: Tally
    soaked: Tally
    ending: Ending
    warm_s: float
    findings: list[Finding] = field(default_factory=list)
    whole_turns: dict[str, list[int]] = field(default_factory=dict)
    other_turns: dict[str, set[int]] = field(default_factory=dict)

    @property
    def fitted(self) -> list[Look]:
        """The looks under load after the warm-up."""
        return [look for look in self.looks if look.at_s >= self.warm_s]

    def memory(self) -> Slope:
        """MB an hour."""
        return slope([(look.at_s, look.rss_mb) for look in self.fitted]).times(3600.0)

    def hours(self) -> float:
        looks = self.fitted
        return (looks[-1].at_s - looks[0].at_s) / 3600.0 if len(looks) > 1 else 0.0


def judged(soak: Soak) -> list[Judged]:
    """Every line, in the order in which they are told."""
    return [
        no_leak(soak.memory(), soak.hours()),
        back_to("files", soak.before.files, soak.after.files, _SPARE_SOCKETS),
        back_to("sockets", soak.before.sockets, soak.after.sockets, _SPARE_SOCKETS),
        back_to("tasks", soak.before.tasks, soak.after.tasks, _SPARE_TASKS),
        none_of("hang", "no request was stuck", [soak.calm, soak.soaked]),
        none_of("lie", "no answer was a lie", [soak.calm, soak.soaked]),
        sheltered([soak.calm, soak.soaked]),
        calm_was_calm(soak.calm),
        *ended_well(soak.ending),
        honest_record(soak.ending),
        nothing_shown(soak.findings),
        sessions_hold(soak),
    ]


def no_leak(found: Slope, hours: float) -> Judged:
    """The interval of the slope holds no growth, or the slope is below the bound."""
    bound = max(BOUND_MB_PER_HOUR, BOUND_MB / hours) if hours else BOUND_MB_PER_HOUR
    name = "memory does not grow"
    if not found.is_known:
        return Judged(name, False, f"only {found.points} points: too few for a slope")
    within, below = found.low <= 0, found.value < bound
    figures = f"{found.value:+.2f} MB an hour, 95 % from {found.low:+.2f} to {found.high:+.2f}"
    why = "the interval holds 0" if within else "below the bound" if below else "ABOVE the bound"
    return Judged(name, within or below, f"{figures}; {why} ({bound:.1f} MB an hour)", found.value)


def back_to(what: str, before: int, after: int, spare: int) -> Judged:
    note = f"{before} before, {after} after, {spare} more allowed"
    return Judged(f"{what} are back", after <= before + spare, note, after - before)


def none_of(kind: str, name: str, tallies: Sequence[Tally]) -> Judged:
    count = sum(tally.kinds[kind] for tally in tallies)
    return Judged(name, not count, f"{count} of {_asked(tallies)}{_examples(tallies, kind)}", count)


def sheltered(tallies: Sequence[Tally]) -> Judged:
    """Where the vehicle may answer, whatever the cloud does is no reason for an error. A few may be late: a busy
    machine can stop a process for longer than the vehicle keeps back of the deadline.
    """
    count, late = sum(tally.unsheltered for tally in tallies), sum(tally.late for tally in tallies)
    allowed = max(1, round(_LATE_SHARE * _asked(tallies)))
    note = f"{count} errors and {late} late ones ({allowed} allowed) told of {_asked(tallies)} requests"
    sort = "told where the vehicle could answer"
    holds = not count and late <= allowed
    return Judged("the vehicle answered where it could", holds, note + _examples(tallies, sort), count + late)


def calm_was_calm(calm: Tally) -> Judged:
    """Without faults nothing goes wrong but what a limit on background requests refuses."""
    wrong = sum(count for kind, count in calm.kinds.items() if kind not in ("whole", "refused", "told"))
    return Judged("without faults all is well", not wrong, f"{calm.kinds['whole']} of {calm.asked} whole", wrong)


def ended_well(end: Ending) -> list[Judged]:
    breakers = ", ".join(f"{name} {state}" for name, state in sorted(end.breakers.items()))
    closed = bool(end.breakers) and set(end.breakers.values()) == {"closed"}
    recovered = f"after {end.recovered_s:.1f} s, {RECOVERY_S:g} s allowed"
    return [
        Judged("the cloud answers again", end.recovered_s <= RECOVERY_S, recovered, end.recovered_s),
        Judged("the link is up", end.link_state == "up", end.link_state),
        Judged("breakers are closed", closed, breakers or "no breaker is told of"),
        Judged("the vehicle is ready", end.health == "ok", end.health),
        Judged("nothing is in flight", not end.in_flight, f"{end.in_flight} requests", end.in_flight),
        Judged(
            "the upstream's work has stopped", not end.upstream_working, f"{end.upstream_working} calls",
            end.upstream_working,
        ),
    ]  # fmt: skip


def honest_record(end: Ending) -> Judged:
    """The day's record on disk is the sum of what the attempts were booked with."""
    name = "the day's costs are right"
    if math.isnan(end.spent_usd):
        return Judged(name, True, "not judged: the day turned during the run")
    holds = end.told_usd > 0 and abs(end.spent_usd - end.told_usd) <= _ROUNDING * end.told_usd
    return Judged(name, holds, f"{end.spent_usd:.6f} USD on record, {end.told_usd:.6f} USD told", end.spent_usd)


def nothing_shown(findings: Iterable[Finding]) -> Judged:
    shown = [found for found in findings if found.wrong.startswith("the cloud was shown")]
    note = f"{len(shown)} requests" + (f"; {shown[0].wrong}" if shown else "")
    return Judged("nothing private reached the cloud", not shown, note, len(shown))


def sessions_hold(soak: Soak) -> Judged:
    """Each history that the cloud was given is an unbroken end of what the client has heard in that session."""
    wrong = [found.wrong for found in soak.findings if found.wrong and not found.wrong.startswith("the cloud was")]
    told = [found for found in soak.findings if found.session]
    for found in told:
        whole = soak.whole_turns.get(found.session, [])
        other = soak.other_turns.get(found.session, set())
        if reason := broken_history(found, whole, other):
            wrong.append(reason)
    note = f"{len(told)} looks at {len({found.session for found in told})} sessions, {len(wrong)} wrong"
    return Judged("sessions hold", not wrong, note + (f": {wrong[0]}" if wrong else ""), len(wrong))


def broken_history(found: Finding, whole: Sequence[int], other: set[int]) -> str:
    """Why ``found.seen`` cannot be; empty where it can. Old turns may be forgotten, none between two kept ones; a turn
    whose client left may be in it or not.
    """
    strange = [turn for turn in found.seen if turn not in other and turn not in whole]
    if strange:
        return f"turn {found.turn} of '{found.session}' remembers turn {strange[0]}, which had no answer"
    if found.seen:
        missing = [turn for turn in whole if found.seen[0] < turn < found.turn and turn not in found.seen]
        if missing:
            return f"turn {found.turn} of '{found.session}' has forgotten turn {missing[0]}"
    return ""


def _asked(tallies: Sequence[Tally]) -> int:
    return sum(tally.asked for tally in tallies)


def _examples(tallies: Sequence[Tally], sort: str) -> str:
    found = [example for tally in tallies for example in tally.examples.get(sort, [])]
    return f"; {found[0]}" if found else ""
