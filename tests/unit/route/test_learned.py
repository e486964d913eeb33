"""Reading requests: what the router is told, and that reading never stands in a request's way."""

from __future__ import annotations

import asyncio

import pytest

from codriver.core.deadline import Deadline
from codriver.core.errors import EngineUnavailable, PromptTooLong
from codriver.core.messages import Embeddings, EmbedRequest
from codriver.core.virtual import LoopClock, run_virtual
from codriver.route.fit import fit_model
from codriver.route.learned import LearnedQuality
from codriver.route.outcome_model import OutcomeModel
from codriver.route.quality import Calibration, Fit, Logistic
from tests.unit.route.drive import ask
from tests.unit.route.judging import FakeEmbedder, prompt_of, world

HEADS = {"v": "small", "c": "large"}


@pytest.fixture(scope="module")
def model() -> OutcomeModel:
    return fit_model(world(), "fake")


def about(topic: str, number: int = 8000, **options: object):  # type: ignore[no-untyped-def]
    from codriver.core.messages import Message

    return ask(messages=[Message(role="user", content=prompt_of(topic, number))], codriver=dict(options) or None)


async def test_expected_follows_the_request(model: OutcomeModel) -> None:
    quality = LearnedQuality(model, FakeEmbedder(), HEADS)
    climate, trivia = about("climate"), about("trivia")
    assert quality.expected("v", climate) is None
    for request in (climate, trivia):
        await quality.read(request, Deadline.after(1.0))
    small, large = quality.expected("v", climate), quality.expected("c", climate)
    assert small is not None and large is not None and small > large
    other = quality.expected("v", trivia)
    assert other is not None and other < small
    assert quality.expected("someone", climate) is None


@pytest.mark.parametrize("error", [EngineUnavailable("closed"), PromptTooLong("long")])
async def test_a_failing_embedder_leaves_the_request_unread(model: OutcomeModel, error: Exception) -> None:
    quality = LearnedQuality(model, FakeEmbedder(error), HEADS)
    await quality.read(about("climate"), Deadline.after(1.0))
    assert quality.expected("v", about("climate")) is None


def test_a_slow_embedder_is_not_waited_for(model: OutcomeModel) -> None:
    class Slow(FakeEmbedder):
        async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
            await deadline.wait(asyncio.sleep(30.0))
            raise AssertionError

    async def main() -> float:
        quality = LearnedQuality(model, Slow(), HEADS, read_within_s=0.05)
        await quality.read(about("climate"), Deadline.after(10.0, LoopClock()))
        assert quality.expected("v", about("climate")) is None
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("options", [{"engine": "v"}, {"policy": "vehicle-only"}, {"policy": "cloud-first"}])
async def test_what_is_settled_already_is_not_read(model: OutcomeModel, options: dict[str, object]) -> None:
    embedder = FakeEmbedder()
    await LearnedQuality(model, embedder, HEADS).read(about("climate", **options), Deadline.after(1.0))
    assert embedder.calls == 0


async def test_a_request_is_read_once_and_the_oldest_are_forgotten(model: OutcomeModel) -> None:
    embedder = FakeEmbedder()
    quality = LearnedQuality(model, embedder, HEADS)
    for _ in range(3):
        await quality.read(about("climate"), Deadline.after(1.0))
    assert embedder.calls == 1
    for number in range(300):
        await quality.read(about("trivia", number), Deadline.after(1.0))
    assert quality.expected("v", about("climate")) is None
    assert quality.expected("v", about("trivia", 299)) is not None


async def test_a_vector_of_another_model_is_not_believed(model: OutcomeModel) -> None:
    class Other(FakeEmbedder):
        async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
            return Embeddings([[1.0, 0.0]], 1, "other")

    quality = LearnedQuality(model, Other(), HEADS)
    await quality.read(about("climate"), Deadline.after(1.0))
    assert quality.expected("v", about("climate")) is None


async def test_corrections_move_one_engine_only(model: OutcomeModel) -> None:
    quality = LearnedQuality(model, FakeEmbedder(), HEADS)
    request = about("climate")
    quality.corrected("v", request, good=False)  # not read: nothing to learn from
    await quality.read(request, Deadline.after(1.0))
    before, other = quality.expected("v", request), quality.expected("c", request)
    for _ in range(5):
        quality.corrected("v", request, good=False)
    after = quality.expected("v", request)
    assert before is not None and after is not None and after < before - 0.1
    assert quality.expected("c", request) == other


async def test_a_gate_teaches_only_with_a_calibration(model: OutcomeModel) -> None:
    quality = LearnedQuality(model, FakeEmbedder(), HEADS)
    request = about("climate")
    await quality.read(request, Deadline.after(1.0))
    before = quality.expected("v", request)
    quality.judged("v", request, 0.0)
    assert quality.expected("v", request) == before
    quality.learn("v", Calibration("m", Logistic({0: 1.0}), Logistic(), Fit(20, 0.5, 0.2, 0.25)))
    quality.judged("v", request, 0.0)
    after = quality.expected("v", request)
    assert before is not None and after is not None and after < before


async def test_an_engine_without_a_head_is_judged_by_its_calibration(model: OutcomeModel) -> None:
    quality = LearnedQuality(model, FakeEmbedder(), {"c": "large", "v": "no such head"})
    quality.learn("v", Calibration("m", Logistic({0: -1.0}), Logistic(), Fit(20, 0.5, 0.2, 0.25)))
    request = about("climate")
    await quality.read(request, Deadline.after(1.0))
    assert quality.expected("v", request) == pytest.approx(0.2689, abs=1e-3)
