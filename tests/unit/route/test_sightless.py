"""A picture goes to whoever can see; who cannot, and is all there is, says so first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from codriver.core.engine import EngineCard
from codriver.core.errors import CodriverError
from codriver.core.messages import ImagePart, ImageUrl, Message, ResponseFormat, TextPart
from codriver.route.config import RouteConfig
from tests.unit.route.drive import Got, ask, through_router
from tests.unit.route.faulty import EVERY, Fault, Faulty, Weather

SENTENCE = "I cannot see the picture right now. "


@dataclass
class Sighted(Faulty):
    @property
    def card(self) -> EngineCard:  # type: ignore[override]
        card = super().card
        return EngineCard(card.id, card.locality, card.model, frozenset({"text", "image"}), card.capabilities)


def picture(**members: Any) -> Any:
    parts = [TextPart(text="What is that sign?"), ImagePart(image_url=ImageUrl(url="data:image/png;base64,AAAA"))]
    return ask(messages=[Message(role="user", content=parts)], **members)


def seen(link: str = "up", fault: Fault | None = None, capabilities: Any = EVERY - {"prefill"}, **members: Any) -> Got:
    vehicle = Faulty("vehicle", words=("It", " depends."), capabilities=capabilities)
    cloud = Sighted("cloud", "cloud", words=("A", " stop", " sign."), fault=fault or Fault())
    got = through_router(picture(**members), vehicle, cloud, link=Weather(link), config=RouteConfig())  # type: ignore[arg-type]
    got.asked = [*vehicle.requests, *cloud.requests]  # type: ignore[attr-defined]
    return got


def test_who_can_see_answers() -> None:
    got = seen()
    assert got.text == "A stop sign."
    assert got.outcomes() == [("cloud", "answered")]


@pytest.mark.parametrize("stream", [True, False])
def test_in_a_tunnel_the_vehicle_says_that_it_cannot_see(stream: bool) -> None:
    got = seen("down", stream=stream)
    assert got.text == SENTENCE + "It depends."
    assert got.outcomes() == [("vehicle", "answered")]
    assert got.finishes == ["stop"]
    (request,) = got.asked  # type: ignore[attr-defined]
    assert request.modalities() == {"text"}
    assert "(a picture that you cannot see)" in request.text()
    assert "AAAA" not in str(request)


def test_an_engine_that_prefills_goes_on_from_the_sentence() -> None:
    vehicle = Faulty("vehicle", words=(SENTENCE, "It", " depends."))
    got = through_router(picture(), vehicle, link=Weather("down"))
    assert got.text == SENTENCE + "It depends."
    assert vehicle.requests[0].continue_from == SENTENCE


@pytest.mark.parametrize("kind", ["refuse", "die", "stall"])
def test_when_the_cloud_fails_the_vehicle_steps_in_and_says_so(kind: Any) -> None:
    got = seen(fault=Fault(kind))
    assert got.text == SENTENCE + "It depends."
    assert [engine for engine, _ in got.outcomes()] == ["cloud", "vehicle"]


def test_a_local_only_picture_stays_in_the_vehicle() -> None:
    got = seen(codriver={"privacy": "local_only"})
    assert got.text.startswith(SENTENCE)
    assert got.outcomes() == [("vehicle", "answered")]


def test_an_answer_that_another_began_is_gone_on_with() -> None:
    vehicle = Faulty("vehicle", words=("A", " stop", " sign."))
    cloud = Sighted("cloud", "cloud", words=("A", " stop", " sign."), fault=Fault("die", after=2))
    got = through_router(picture(), vehicle, cloud)
    assert got.text == "A stop sign."
    assert SENTENCE not in got.text


def test_a_picture_earlier_in_the_conversation_counts() -> None:
    vehicle = Faulty("vehicle", words=("It", " depends."), capabilities=EVERY - {"prefill"})
    request = picture()
    request.messages += [Message(role="assistant", content="A sign."), Message(role="user", content="What colour?")]
    assert through_router(request, vehicle).text == SENTENCE + "It depends."


@pytest.mark.parametrize(
    "members",
    [
        {"response_format": ResponseFormat(type="json_object")},
        {"n": 2},
        {"codriver": {"policy": "cloud-only"}},
        {"codriver": {"engine": "vehicle"}},
    ],
    ids=str,
)
def test_where_the_sentence_would_not_fit_the_request_is_refused(members: dict[str, Any]) -> None:
    if members.get("codriver", {}).get("policy") == "cloud-only":
        got = seen(fault=Fault("refuse"), **members)
    else:
        got = seen("down", **members)
    assert isinstance(got.error, CodriverError)
    assert got.text == ""


def test_with_no_sentence_it_refuses() -> None:
    vehicle = Faulty("vehicle")
    got = through_router(picture(), vehicle, config=RouteConfig(cannot_see=""))
    assert got.error is not None
    assert "cannot read image input" in got.error.message
