"""A decision in one sentence: who would be asked first, with which probabilities, on which link, and why."""

from __future__ import annotations

from codriver.core.messages import ChatRequest
from codriver.core.plan import AttemptPlan

from .decide import Decider
from .lineup import Lineup


def explain(lineup: Lineup, decider: Decider, request: ChatRequest, plan: AttemptPlan, assumed: str = "") -> str:
    """One sentence, for a request that ``lineup.quality`` has read. ``assumed``: said of the link's state."""
    first, *others = plan.attempts
    told = [_chance(lineup, decider, request, name, plan.deadline_s) for name in _asked(lineup)]
    known = "; ".join(part for part in told if part) or "nothing was read of the request"
    then = f", then {' and '.join(attempt.engine for attempt in others)}" if others else ", and nobody after it"
    gate = " behind a gate" if first.gate is not None else ""
    link = f"link {plan.link}{f' ({assumed})' if assumed else ''}"
    return f"{first.engine} goes first{gate} ({first.why}){then}, with {known}, {link}, policy {plan.policy}."


def _asked(lineup: Lineup) -> list[str]:
    return [name for name, engine in lineup.engines.items() if engine.card.can("chat")]


def _chance(lineup: Lineup, decider: Decider, request: ChatRequest, name: str, deadline_s: float) -> str:
    found = decider.worth(request, name, deadline_s)
    if found is None:
        quality = lineup.quality
        prior = quality.prior(name, quality.features(request)) if quality.calibrated(name) else None
        return "" if prior is None else f"P(good) of {name} {prior:.2f} by its calibration"
    cost = f", {100 * found.cost_usd:.3g} US cents" if found.cost_usd else ""
    late = f", {found.late_s:.1f} s late" if found.late_s >= 0.05 else ""
    return f"P(good) of {name} {found.good:.2f} (utility {found.utility:.2f}{cost}{late})"
