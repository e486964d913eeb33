"""A rejected draft goes along to a cloud that can verify it, and only then and there."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from codriver.core.deadline import Deadline
from codriver.core.messages import ResponseFormat
from codriver.core.plan import Attempt, AttemptPlan, Gate
from codriver.core.virtual import LoopClock
from codriver.privacy import NameFinder
from codriver.route.conceal import Concealer
from codriver.route.redact import Veiled
from codriver.route.vault import Vault
from tests.unit.route.drive import ask, through_plan
from tests.unit.route.faulty import EVERY, WORDS, Faulty


def drafted(words: tuple[str, ...] = WORDS, capabilities: Any = EVERY | {"verify"}, **members: Any) -> str | None:
    vehicle = Faulty("vehicle", words=words, logprob=-3.0)
    cloud = Faulty("cloud", "cloud", words=words, capabilities=capabilities)
    draft = Attempt("vehicle", "vehicle", "drafts", start="at_once", gate=Gate(min_confidence=0.9, probe_tokens=4))
    plan = AttemptPlan((draft, Attempt("cloud", "cloud", "takes over", start="after_rejection")))
    got = through_plan(plan, ask(**members), vehicle, cloud)
    assert got.outcomes() == [("vehicle", "rejected"), ("cloud", "answered")]
    return cloud.requests[0].draft


def test_the_draft_goes_along() -> None:
    draft = drafted()
    assert draft is not None
    assert draft.startswith("w0 w1 w2 w3")


def test_not_to_one_that_cannot_verify() -> None:
    assert drafted(capabilities=EVERY) is None


def test_not_where_the_answer_must_be_whole() -> None:
    json_words = ('{"a"', ":", " 1", " }")
    assert drafted(words=json_words, response_format=ResponseFormat(type="json_object")) is None


async def test_a_veil_lets_no_draft_through() -> None:
    class Nobody:
        def find(self, text: str) -> list[Any]:
            return []

    seen: list[str | None] = []
    cloud = Faulty("cloud", "cloud", capabilities=EVERY | {"verify"})
    vault = Vault()
    veiled = Veiled(cloud, Concealer(Nobody(), NameFinder(()), vault), vault)  # type: ignore[arg-type]
    async for _ in veiled.generate(replace(ask(), draft="Anna lives at 5 Elm Street"), Deadline.never(LoopClock())):
        seen.append(cloud.requests[0].draft)
    assert set(seen) == {None}
