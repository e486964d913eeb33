"""What a vehicle does as its computer gets hot, or may take less power: a table, from the mildest row to the hardest.

The hardest row that holds counts. The rule kept: what is not known, of the state or of the target, makes no row hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from codriver.core.config import build
from codriver.core.errors import BadConfigValue

from .target import Step, Target

# The mildest first. A vehicle that can read neither temperature nor power stays in the first.
_USUAL = (
    Step("normal", margin_c=-1.0, power_share=0.0),
    Step("warm", margin_c=10.0, power_share=0.75, threads_share=0.75, cadence=2.0),
    Step("hot", margin_c=5.0, power_share=0.5, artifact="smaller", threads_share=0.5, cadence=4.0),
    Step("critical", margin_c=1.0, power_share=0.2, artifact="none", threads_share=0.0, cadence=0.0),
)


@dataclass(frozen=True)
class State:
    """What a vehicle knows of its computer now; ``None`` for what it cannot read. ``power_w``: what it may take."""

    temperature_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Slack:
    """By how much a row that holds must stop holding before it is left: else a computer at its edge would change all
    the time.
    """

    celsius: float = 0.0
    power_share: float = 0.0


@dataclass(frozen=True)
class Action:
    """What is done: which artifact answers, on how many threads, and every how many periods periodic work is done."""

    name: str
    artifact: Literal["full", "smaller", "none"]
    threads: int
    cadence: float


def steps_of(target: Target) -> tuple[Step, ...]:
    """The profile's table of actions, or the usual one. Errors: those of ``core.config.build``, naming the key."""
    if not target.actions.steps:
        return _USUAL
    found: list[Step] = []
    for number, row in enumerate(target.actions.steps):
        called = f"actions.steps[{number}]"
        if not isinstance(row, dict):
            raise BadConfigValue(f"'{called}' is {row!r}; allowed: a table.", param=called)
        step: Step = build(Step, row, called)
        if step.artifact not in ("full", "smaller", "none"):
            raise BadConfigValue(
                f"'{called}.artifact' is {step.artifact!r}; allowed: full | smaller | none.", param=f"{called}.artifact"
            )
        if step.artifact != "none" and not step.threads_share:
            raise BadConfigValue(
                f"'{called}.threads_share' is 0: an artifact that answers needs threads; artifact = \"none\" has none.",
                param=f"{called}.threads_share",
            )
        if not step.name or step.name in (one.name for one in found):
            raise BadConfigValue(
                f"'{called}.name' is '{step.name}'; allowed: a name of its own.", param=f"{called}.name"
            )
        for key in ("margin_c", "power_share"):
            if number > 1 and getattr(step, key) > getattr(found[-1], key):
                raise BadConfigValue(
                    f"'{called}.{key}' is {getattr(step, key):g}, more than the {getattr(found[-1], key):g} of the row "
                    "above it: rows go from the mildest to the hardest.",
                    param=f"{called}.{key}",
                )
        found.append(step)
    return tuple(found)


def row_for(target: Target, state: State, at: int = 0, slack: Slack = Slack()) -> int:
    """The hardest row that holds; where a milder one than ``at`` does, ``at`` is left by no less than ``slack``."""
    steps = steps_of(target)
    strict, loose = _hardest(target, state, steps, Slack()), _hardest(target, state, steps, slack)
    return max(strict, min(at, loose))


def action_of(step: Step, threads: int) -> Action:
    left = max(1, int(threads * step.threads_share)) if step.threads_share else 0
    artifact = cast(Literal["full", "smaller", "none"], step.artifact)
    return Action(step.name, artifact, left, step.cadence)


def action_for(target: Target, state: State, threads: int) -> Action:
    """What is done in a state that was just come into."""
    return action_of(steps_of(target)[row_for(target, state)], threads)


def _hardest(target: Target, state: State, steps: tuple[Step, ...], slack: Slack) -> int:
    throttle, budget = target.power.throttle_c, target.power.budget_w
    margin = throttle - state.temperature_c if throttle and state.temperature_c is not None else math.inf
    share = state.power_w / budget if budget and state.power_w is not None else math.inf
    holding = (
        number
        for number, step in enumerate(steps)
        if (step.margin_c >= 0 and margin <= step.margin_c + slack.celsius)
        or (step.power_share and share <= step.power_share + slack.power_share)
    )
    return max((number for number in holding if number), default=0)
