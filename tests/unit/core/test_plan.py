"""A plan that must not exist cannot be built; one that may can be read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from codriver.core.plan import Attempt, AttemptPlan, Gate, PlanError


def attempt(engine: str = "v", locality: Any = "vehicle", start: Any = "at_once", **more: Any) -> Attempt:
    return Attempt(engine, locality, "because", start, **more)


@pytest.mark.parametrize(
    ("attempts", "more", "sentence"),
    [
        ((), {}, "at least one attempt"),
        ((attempt(), attempt(start="after_failure")), {}, "names an engine twice"),
        ((attempt(start="after_failure"),), {}, "starts at once"),
        ((attempt(), attempt("c")), {}, "and no other, starts at once"),
        ((attempt("c", "cloud"),), {"privacy": "local_only"}, r"must not reach \['c'\]"),
        ((attempt(), attempt("c", "cloud", "after_failure")), {"privacy": "local_only"}, "must not reach"),
        ((attempt(total_s=-1.0),), {}, "from zero up"),
        ((attempt(first_token_s=math.nan),), {}, "from zero up"),
        ((attempt(),), {"deadline_s": -0.1}, "from zero up"),
        ((attempt(),), {"budget_usd": math.nan}, "from zero up"),
    ],
)
def test_what_must_not_exist(attempts: Any, more: Any, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        AttemptPlan(attempts, **more)


def test_a_plan_is_plain_data() -> None:
    plan = AttemptPlan((attempt(gate=Gate(schema=True)), attempt("c", "cloud", "after_rejection", total_s=2.0)), 5.0)
    told = json.loads(json.dumps(plan.as_dict(), allow_nan=False))
    assert (told["deadline_s"], told["budget_usd"]) == (5.0, None)
    assert told["attempts"][0]["gate"] == {"min_confidence": 0.5, "probe_tokens": 8, "schema": True}
    assert (told["attempts"][0]["total_s"], told["attempts"][1]["total_s"]) == (None, 2.0)
    assert plan.explain() == "link up, policy auto: v (because); then c (because)"
    assert plan == AttemptPlan(plan.attempts, 5.0)
