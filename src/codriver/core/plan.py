"""The attempt plan: what the router decides, and the only thing the executor runs.

A plan is data: it can be printed, logged, compared and tested without a model. A request marked ``local_only`` cannot
get a plan that holds a cloud engine: the constructor refuses. In one marked ``redact`` the cloud's engines must be
veiled, which whoever runs it checks.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from .engine import Locality
from .messages import Failover, Privacy

Until = Literal["end", "first_sentence"]
Start = Literal["at_once", "after_failure", "after_rejection"]


class PlanError(ValueError):
    """A plan that must not exist was about to be built: a defect in the router, never the caller's fault."""


class Gate(msgspec.Struct, frozen=True):
    """When a draft is good enough to be the answer.

    ``min_confidence``: the least calibrated probability that the draft is right. ``probe_tokens``: the first
    verdict falls after this many tokens (or at the draft's end), so that a poor draft is given up while it is
    still being written. ``schema``: the finished draft must also parse as JSON and satisfy the asked schema.
    """

    min_confidence: float = 0.5
    probe_tokens: int = 8
    schema: bool = False


class Attempt(msgspec.Struct, frozen=True):
    """One engine's turn.

    ``start``: the first attempt starts ``at_once``; one ``after_failure`` when those before it failed;
    one ``after_rejection`` also when a draft before it was rejected (that draft is kept, in case this one fails).
    ``first_token_s`` and ``inter_token_s`` are the longest waits for a first and a following token. ``total_s`` is when
    the attempt must be over; it counts from the request's arrival, as ``deadline_s`` does, so that an attempt that
    starts late still leaves those after it their time. ``hedge_s`` is when the next attempt starts beside this
    one, if it has brought no token by then. ``until``: an attempt that leads gives the
    first sentence, and those after it the rest. ``on_late_death`` says what happens when the engine dies after
    the client has part of its answer; a death before that always moves on to the next attempt. ``despite_pause``: the
    engine is tried although its circuit breaker is open, because nobody else is left. ``sightless``: it is put the
    request without its pictures, and says so.
    """

    engine: str
    locality: Locality
    why: str
    start: Start = "after_failure"
    first_token_s: float = math.inf
    inter_token_s: float = math.inf
    total_s: float = math.inf
    hedge_s: float = math.inf
    until: Until = "end"
    gate: Gate | None = None
    on_late_death: Failover = "resume"
    despite_pause: bool = False
    sightless: bool = False


class AttemptPlan(msgspec.Struct, frozen=True):
    """Attempts in order, under one deadline and one budget.

    ``deadline_s`` counts from the request's arrival. ``budget_usd`` of ``inf`` means unbounded. ``link`` is the
    link's state as seen when the plan was made. Raises :class:`PlanError` for a plan that must not exist.
    """

    attempts: tuple[Attempt, ...]
    deadline_s: float = math.inf
    budget_usd: float = math.inf
    privacy: Privacy = "any"
    policy: str = "auto"
    link: str = "up"

    def __post_init__(self) -> None:
        if not self.attempts:
            raise PlanError("a plan needs at least one attempt")
        names = [attempt.engine for attempt in self.attempts]
        if len(set(names)) != len(names):
            raise PlanError(f"a plan names an engine twice: {names}")
        if self.attempts[0].start != "at_once" or any(a.start == "at_once" for a in self.attempts[1:]):
            raise PlanError("a plan's first attempt, and no other, starts at once")
        bounds = [self.deadline_s, self.budget_usd]
        for attempt in self.attempts:
            bounds += [attempt.first_token_s, attempt.inter_token_s, attempt.total_s, attempt.hedge_s]
        if not all(bound >= 0 for bound in bounds):
            raise PlanError("a plan's times and budget are numbers from zero up")
        if self.privacy == "local_only":
            leaks = [attempt.engine for attempt in self.attempts if attempt.locality != "vehicle"]
            if leaks:
                raise PlanError(f"a local_only request must not reach {leaks}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a log line or the console; infinite bounds become ``None``."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(member) for key, member in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(member) for member in value]
            return None if isinstance(value, float) and math.isinf(value) else value

        result: dict[str, Any] = plain(msgspec.to_builtins(self))
        return result

    def explain(self) -> str:
        """The plan in one sentence."""
        turns = "; then ".join(f"{a.engine} ({a.why})" for a in self.attempts)
        return f"link {self.link}, policy {self.policy}: {turns}"
