"""What an operator can set about routing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codriver.core.config import setting
from codriver.core.messages import Failover, Policy, Privacy


@dataclass(frozen=True)
class RouteConfig:
    policy: Policy = setting("auto", "Who answers when the request does not say.")
    privacy: Privacy = setting("any", "The least privacy class of every request; a request can only be stricter.")
    failover: Failover = setting("resume", "What happens when an engine dies in the middle of an answer.")
    deadline_s: float = setting(30.0, "Longest time for a whole answer when the request does not say.", least=0.05)
    first_token_s: float = setting(6.0, "Longest wait for an engine's first token.", least=0.01)
    inter_token_s: float = setting(3.0, "Longest gap between two tokens of one engine.", least=0.01)
    min_confidence: float = setting(
        0.55, "Least calibrated probability at which the vehicle's draft is the answer.", least=0.0, most=1.0
    )
    skip_below: float = setting(
        0.25, "Below this prior probability the vehicle does not draft while a cloud is there.", least=0.0, most=1.0
    )
    probe_tokens: int = setting(8, "Tokens of a draft read before the first verdict on it.", least=1)
    link_aware: bool = setting(True, "Use the link estimate: off, the router knows the link only by its time-outs.")
    hedge_after: float = setting(
        0.0,
        "Quantile of its first-token times after which a slow first engine is joined by the next, as 0.95; 0: never.",
        least=0.0,
        most=0.999,
    )
    cannot_see: str = setting(
        "I cannot see the picture right now. ",
        "How the vehicle's answer begins when only a model without eyes is left for a picture; empty: it refuses.",
    )
    lead_sentence: bool = setting(
        False, "The vehicle gives the first sentence where the cloud is to answer and slower to begin."
    )
    stall_grace_s: float = setting(0.7, "Time a running cloud answer may stay silent once the link is down.", least=0.0)
    budget_usd: float | None = setting(None, "Most that one answer may cost, in US dollars.", least=0.0)
    budget_day_usd: float | None = setting(
        None, "Most that all answers of a day (UTC) may cost; then only engines that cost nothing answer.", least=0.0
    )
    spent_file: Path | None = setting(None, "Where the day's costs are kept; not given: beside the models.")
    sessions: int = setting(256, "Conversations kept in the vehicle; the least recently used goes first.", least=0)
    session_messages: int = setting(64, "Messages kept per conversation.", least=2)
    calibration: Path | None = setting(None, "File with this vehicle's own quality calibration.")
    learned: bool = setting(True, "Read each request with the quality model, where NumPy and the embedder are there.")
    quality_model: Path | None = setting(
        None, "File made by `codriver route train`; not given: the one shipped with the package."
    )
    read_within_s: float = setting(
        0.05, "Longest time that reading a request may take before it is planned.", least=0.0
    )
    least_gain: float = setting(
        0.1, "Utility by which a cloud must beat a vehicle whose draft nothing can judge.", least=0.0, most=1.0
    )
    cost_weight: float = setting(0.05, "Probability of a good answer that is worth one US cent.", least=0.0)
    late_weight: float = setting(
        0.1, "Probability of a good answer that is worth one second past the deadline.", least=0.0
    )
    strain_weight: float = setting(
        0.3, "Probability of a good answer by the vehicle that is worth sparing it when it is hot or low.", least=0.0
    )
    warm_c: float = setting(80.0, "Temperature in °C from which the car's computer is spared.")
    hot_c: float = setting(95.0, "Temperature in °C at which it is spared most.")
    low_charge: float = setting(
        0.2, "Share of a battery that is being emptied below which the car's computer is spared.", least=0.0, most=1.0
    )
    condense: Literal["auto", "always", "never"] = setting(
        "auto",
        "Whether `codriver.context` is condensed: auto from twice the budget on, always above it, never: whole.",
    )
    condense_tokens: int = setting(512, "Most tokens of what long documents are condensed to, by estimate.", least=64)
    condense_within_s: float = setting(
        0.0, "Longest time for reading passages by their meaning; then their words choose. 0: words alone.", least=0.0
    )
    semantic_file: Path | None = setting(None, "TOML file with semantic routes; see: codriver routes check.")


@dataclass(frozen=True)
class LinkConfig:
    probe_interval_s: float = setting(0.2, "Time between probes while the cloud is in use.", least=0.01)
    idle_interval_s: float = setting(1.0, "Time between probes while it is not.", least=0.01)
    down_after_s: float = setting(
        0.7, "An unanswered probe this old, with no other byte heard, means down.", least=0.01
    )
    retry_s: float = setting(2.0, "A probe unanswered this long is given up and tried on a new connection.", least=0.01)
    degraded_rtt_s: float = setting(0.5, "Round trips above this mean a degraded link.", least=0.001)
    up_after: int = setting(2, "Answered probes in a row before a link that was down counts as up.", least=1)


@dataclass(frozen=True)
class BreakerConfig:
    failures: int = setting(3, "Failures in a row that open an engine's breaker.", least=1)
    open_s: float = setting(2.0, "How long it first stays open; doubles with each failed probe.", least=0.01)
    most_open_s: float = setting(30.0, "The longest it stays open.", least=0.01)
