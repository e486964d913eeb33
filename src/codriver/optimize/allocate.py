"""Which type for which tensor, under a budget of bytes: the least sum of losses, with how far from the best it may be.

Each tensor has choices of bytes and loss. On the lower convex hull of each, the step that saves most loss per byte is
taken first, over all tensors, until the budget is full (Shoham and Gersho 1988; Everett 1963). That is the best there
is but for the last step, and the linear program's optimum, a lower bound on any choice's loss, comes with it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codriver.core.errors import BadConfigValue


@dataclass(frozen=True)
class Choice:
    """A type for one tensor: what it takes, and what it is expected to cost."""

    kind: str
    size_bytes: int
    loss: float


@dataclass(frozen=True)
class Allocation:
    """``kinds`` by tensor. No choice within the budget loses less than ``bound``."""

    kinds: dict[str, str]
    size_bytes: int
    loss: float
    bound: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget_bytes: int) -> Allocation:
    """Errors: :class:`BadConfigValue` when even the smallest choices do not fit."""
    hulls = {name: hull(of) for name, of in choices.items()}
    at = dict.fromkeys(hulls, 0)
    size = sum(steps[0].size_bytes for steps in hulls.values())
    loss = sum(steps[0].loss for steps in hulls.values())
    if size > budget_bytes:
        raise BadConfigValue(
            f"The smallest types that are allowed take {size:,} bytes; the budget is {budget_bytes:,}.", param="size"
        )
    waiting = [(-_gain(steps, 0), name) for name, steps in hulls.items() if len(steps) > 1]
    heapq.heapify(waiting)
    bound: float | None = None
    while waiting:
        gain, name = heapq.heappop(waiting)
        steps, here = hulls[name], at[name]
        more = steps[here + 1].size_bytes - steps[here].size_bytes
        if size + more > budget_bytes:
            # A part of this step would fill the budget: the linear program's optimum. Smaller steps may still fit.
            bound = loss + gain * (budget_bytes - size) if bound is None else bound
            continue
        size, loss, at[name] = size + more, loss + gain * more, here + 1
        if here + 2 < len(steps):
            heapq.heappush(waiting, (-_gain(steps, here + 1), name))
    kinds = {name: hulls[name][step].kind for name, step in at.items()}
    return Allocation(kinds, size, max(0.0, loss), max(0.0, loss if bound is None else bound))


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices that are best at some price of a byte, smallest first. Errors: ``ValueError`` for none."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.size_bytes, one.loss)):
        if found and choice.loss >= found[-1].loss:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-2], choice):
            found.pop()
        found.append(choice)
    if not found:
        raise ValueError("a tensor needs a choice")
    return found


def _gain(steps: Sequence[Choice], at: int) -> float:
    return _slope(steps[at], steps[at + 1])


def _slope(small: Choice, large: Choice) -> float:
    """Loss saved per byte."""
    return (small.loss - large.loss) / (large.size_bytes - small.size_bytes)
