"""What asking an engine is worth: expected quality, less what it costs and how late it is likely to be.

``utility = P(good) - cost_weight · cost in US cents - late_weight · expected seconds past the deadline``, and for an
engine of the vehicle ``- strain_weight · strain`` (``condition.py``). How long an
answer takes is taken as normal around the engine's smoothed pace, half as wide as it is long; a cloud behind a link
that is degraded is expected to take longer by what its probes lose. The rule kept: no term is unbounded, so that an
engine which was slow once can win again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import RouteConfig
from .lineup import Lineup

_MOST_LATE_S = 10.0
_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Worth:
    """``good``: the probability of a good answer; ``late_s``: expected seconds past the deadline."""

    good: float
    cost_usd: float
    late_s: float
    utility: float


def worth(
    lineup: Lineup, config: RouteConfig, engine: str, good: float, limits: tuple[float, int, int | None]
) -> Worth:
    """``limits``: seconds to the deadline, tokens of the prompt, most tokens of the answer."""
    deadline_s, prompt_tokens, most = limits
    pace, card = lineup.paces[engine], lineup.engines[engine].card
    tokens = pace.tokens if most is None else min(pace.tokens, float(most))
    cost_usd = card.price.cost_usd(prompt_tokens, math.ceil(tokens))
    took_s = pace.ttft_s + tokens * pace.token_s + lineup.engines[engine].health().eta_s
    if card.locality == "cloud":
        link = lineup.link.estimate()
        if link.state == "degraded":
            took_s = (took_s + (0.0 if math.isnan(link.rtt_s) else link.rtt_s)) / max(0.2, 1.0 - link.loss)
    late_s = min(_MOST_LATE_S, expected_excess(took_s, _SPREAD * took_s, deadline_s))
    utility = good - config.cost_weight * 100 * cost_usd - config.late_weight * late_s
    if card.locality == "vehicle":
        utility -= config.strain_weight * lineup.sensors.read().strain(config)
    return Worth(good, cost_usd, late_s, utility)


def expected_excess(mean: float, spread: float, limit: float) -> float:
    """E[max(0, X - limit)] for a normal X."""
    if math.isinf(limit):
        return 0.0
    if spread <= 0:
        return max(0.0, mean - limit)
    z = (mean - limit) / spread
    above = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return (mean - limit) * above + spread * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
