"""Whatever the quality model says, a plan keeps the router's promises; and the router reads before it plans."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.core.deadline import Deadline
from codriver.core.engine import Price
from codriver.core.messages import ChatRequest, Message
from codriver.core.plan import AttemptPlan
from codriver.core.virtual import LoopClock, run_virtual
from codriver.route.config import RouteConfig
from codriver.route.decide import Decider
from codriver.route.fit import fit_model
from codriver.route.hybrid import HybridEngine
from codriver.route.learned import LearnedQuality
from codriver.route.quality import Quality
from tests.unit.route.drive import Got, ask, lineup_of, watch
from tests.unit.route.faulty import EVERY, Faulty, Weather
from tests.unit.route.judging import FakeEmbedder, prompt_of, world


class Says(Quality):
    def __init__(self, good: dict[str, float | None]) -> None:
        super().__init__()
        self._good = good

    def expected(self, engine: str, request: ChatRequest) -> float | None:
        return self._good[engine]


chances = st.none() | st.floats(0.0, 1.0)


@settings(max_examples=150, deadline=None)
@given(
    good=st.fixed_dictionaries({name: chances for name in ("v", "w", "c", "d")}),
    state=st.sampled_from(["up", "degraded", "down"]),
    local=st.booleans(),
    blind=st.booleans(),
    deadline_ms=st.sampled_from([50.0, 1000.0, 30000.0]),
    price=st.sampled_from([0.0, 1.0, 1e5]),
)
def test_no_prediction_breaks_a_promise(
    good: dict[str, float | None], state: Any, local: bool, blind: bool, deadline_ms: float, price: float
) -> None:
    async def main() -> AttemptPlan:
        able = EVERY - {"logprobs"} if blind else EVERY
        engines = (
            Faulty("v", capabilities=able), Faulty("w"),
            Faulty("c", "cloud", price=Price(price, price)), Faulty("d", "cloud"),
        )  # fmt: skip
        lineup = lineup_of(*engines, link=Weather(state), quality=Says(good))
        options: dict[str, Any] = {"deadline_ms": deadline_ms, **({"privacy": "local_only"} if local else {})}
        return Decider(lineup).plan(ask(codriver=options))

    made = run_virtual(main())
    places = [attempt.locality for attempt in made.attempts]
    assert "vehicle" in places
    if local or state == "down":
        assert "cloud" not in places
    if places[0] == "cloud":
        assert places[-1] == "vehicle"
    assert made.attempts[0].start == "at_once"


def test_the_router_reads_before_it_plans_and_explains_itself() -> None:
    model = fit_model(world(), "fake")

    async def through(topic: str) -> Got:
        quality = LearnedQuality(model, FakeEmbedder(), {"v": "small", "c": "large"})
        lineup = lineup_of(Faulty("v", capabilities=EVERY - {"logprobs"}), Faulty("c", "cloud"), quality=quality)
        request = ask(messages=[Message(role="user", content=prompt_of(topic, 7000))])
        hybrid = HybridEngine(lineup, RouteConfig())
        return await watch(hybrid.generate(request, Deadline.never(LoopClock())), lineup)

    climate, trivia = run_virtual(through("climate")), run_virtual(through("trivia"))
    assert climate.outcomes() == [("v", "answered")]
    assert trivia.outcomes() == [("c", "answered")]
    assert "right with p=" in trivia.extension["attempts"][0]["why"]
