"""Nothing private leaves the vehicle: random plans, faults and requests with marked secrets, all ways out watched."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard
from codriver.core.messages import ChatChunk, ChatRequest
from codriver.core.plan import Attempt, AttemptPlan, Gate
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.route.config import RouteConfig
from codriver.route.lineup import Lineup
from tests.unit.route.leaks import Car, Cloud, Outside, leaked

MAIL, PHONE, IBAN, VIN = "zork@marker.example", "+49 151 98765432", "DE89370400440532013000", "1HGCM82633A004352"
NAME, GPS, STREET = "Zaphira Quux", "48.137154, 11.576124", "Markerstraße 17, 80331 München"
SECRETS = (MAIL, PHONE, IBAN, VIN, NAME, "Quux", GPS, "Markerstraße")
MARK = "blubberlutsch"  # no personal data: only local_only keeps it in

sentences = st.lists(
    st.sampled_from(
        [
            f"mail {MAIL}", f"call {PHONE} now", f"pay {IBAN}", f"my car {VIN}", f"ask {NAME} or quux", f"go to {GPS}",
            f"home is {STREET}", json.dumps({"to": MAIL, "who": [NAME], "at": {"lat": 48.137154, "lon": 11.576124}}),
            "set 21.5 degrees", "what does <EMAIL_1> mean", "Ünïcode 😀 <",
        ]
    ),
    min_size=1,
    max_size=4,
).map(lambda parts: parts[0] if len(parts) == 1 else f"{MARK} " + ", ".join(parts))  # fmt: skip
cloud_faults = st.tuples(
    st.sampled_from(["none", "cut", "400", "500", "garbage", "error", "stall"]), st.integers(0, 12)
)
car_faults = st.tuples(st.sampled_from(["none", "die", "refuse", "bug"]), st.integers(0, 12))
LOCALITY = {"v": "vehicle", "c": "cloud", "d": "cloud"}


@st.composite
def plans(draw: Any) -> AttemptPlan:
    attempts = [
        Attempt(
            name,
            LOCALITY[name],  # type: ignore[arg-type]
            "drawn",
            "at_once" if index == 0 else draw(st.sampled_from(["after_failure", "after_rejection"])),
            first_token_s=draw(st.sampled_from([0.05, 1.0])),
            inter_token_s=0.05,
            gate=draw(st.none() | st.builds(Gate, st.sampled_from([0.0, 0.9]), st.integers(1, 6))),
            on_late_death=draw(st.sampled_from(["resume", "restart", "declare"])),
        )
        for index, name in enumerate(draw(st.permutations(list(LOCALITY)))[: draw(st.integers(1, 3))])
    ]
    return AttemptPlan(tuple(attempts), 2.0)


@st.composite
def bodies(draw: Any) -> dict[str, Any]:
    last = draw(sentences)
    messages = draw(
        st.lists(
            st.one_of(
                sentences.map(lambda text: {"role": "system", "content": text}),
                sentences.map(lambda text: {"role": "user", "content": [{"type": "text", "text": text}]}),
                sentences.map(
                    lambda text: {"role": "tool", "tool_call_id": "c", "content": text, "seen": {text: [text]}}
                ),
                sentences.map(
                    lambda text: {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "c",
                                "type": "function",
                                "function": {"name": "f", "arguments": json.dumps({"x": text})},
                            }
                        ],
                    }
                ),
            ),
            max_size=2,
        )
    )
    body: dict[str, Any] = {"messages": [*messages, {"role": "user", "content": last}], "stream": draw(st.booleans())}
    body |= draw(st.sampled_from([{}, {"user": MAIL}, {"metadata": {"vin": VIN, NAME: MAIL}}, {"logprobs": True}]))
    body["model"] = draw(st.sampled_from(["codriver", "codriver", "", "c", "v"]))
    options = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "policy": st.sampled_from(["auto", "cloud-first", "cloud-only", "vehicle-first"]),
                "failover": st.sampled_from(["resume", "restart", "declare"]),
                "session": st.sampled_from(["s", "t"]),
            },
        )
    )
    return body | {"codriver": {"first_token_ms": 200, "inter_token_ms": 100, **options}}


def private(body: dict[str, Any], word: str, how: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body and headers that ask for a class in one of the ways there are."""
    headers = [(b"authorization", b"Bearer key-any")]
    if how == "body":
        body = body | {"codriver": body["codriver"] | {"privacy": word}}
    elif how == "header":
        headers.append((b"x-codriver-privacy", word.encode()))
    elif how == "key":
        headers = [(b"authorization", b"Bearer key-" + word.encode())]
    told = json.dumps(body).encode()
    if how == "duplicate":
        told = told.replace(b'"codriver": {', b'"codriver": {"privacy": "%s", "privacy": "any", ' % word.encode())
    return told, headers


async def run(word: str, how: str, asked: list[dict[str, Any]], plan: AttemptPlan | None, faults: Any) -> Any:
    """Ask one after another; what got out, and what the client was told."""
    cloud = Cloud()
    keys = ("key-any", "key-redact", "key-local_only")
    classes = ("redact=key-redact", "local_only=key-local_only")
    config = RouteConfig(privacy=word if how == "vehicle" else "any")  # type: ignore[arg-type]
    answers = []
    with Outside(cloud) as outside:
        async with cloud.serving() as port:
            car = Car(port, config, keys, classes)
            if plan is not None:
                car.follow(plan)
            try:
                for body in asked:
                    cloud.fault, car.v.fault, car.v.logprob = faults
                    told, headers = private(body, word, how)
                    answers.append(await car.ask("/v1/chat/completions", told, *headers))
                    text = json.dumps(
                        {"prompt": body["messages"][-1]["content"], "codriver": body["codriver"]}
                    ).encode()
                    how_text = [h for h in headers if how in ("header", "key") or h[0] == b"authorization"]
                    if how in ("header", "key", "vehicle"):
                        answers.append(await car.ask("/v1/completions", text, *how_text))
            finally:
                await car.aclose()
        await asyncio.sleep(0)
        gc.collect()
        return outside.ways(car.metrics), answers, cloud


SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
hows = st.sampled_from(["body", "header", "key", "duplicate", "vehicle"])
all_faults = st.tuples(cloud_faults, car_faults, st.sampled_from([-0.01, -9.0]))


@SETTINGS
@given(hows, st.lists(bodies(), min_size=1, max_size=3), st.none() | plans(), all_faults)
def test_what_is_to_be_redacted_never_leaves_in_clear(how: str, asked: Any, plan: Any, faults: Any) -> None:
    ways, answers, _ = asyncio.run(run("redact", how, asked, plan, faults))
    assert leaked(SECRETS, ways) == []
    for _, answer in answers:
        assert not leaked(SECRETS, {"extension": extension(answer)})


@SETTINGS
@given(hows, st.lists(bodies(), min_size=1, max_size=3), st.none() | plans(), all_faults)
def test_what_is_local_never_leaves_at_all(how: str, asked: Any, plan: Any, faults: Any) -> None:
    ways, _, cloud = asyncio.run(run("local_only", how, asked, plan, faults))
    assert leaked((*SECRETS, MARK), ways) == []
    assert cloud.requests == 0


def extension(answer: bytes) -> str:
    """The ``codriver`` members of an answer."""
    events = [line[6:] for line in answer.split(b"\n") if line.startswith(b"data: {")] or [answer]
    return "".join(json.dumps(json.loads(event).get("codriver")) for event in events)


# ---------------------------------------------------------------- the detector of leaks sees one

ASKED: list[dict[str, Any]] = [
    {
        "messages": [{"role": "user", "content": f"{MARK} mail {MAIL} and {NAME}"}],
        "stream": True,
        "codriver": {"policy": "cloud-first"},
    }
]
CALM = (("none", 0), ("none", 0), -0.01)


def test_without_a_class_the_same_request_does_leave() -> None:
    ways, answers, cloud = asyncio.run(run("any", "body", ASKED, None, CALM))
    assert {secret for secret, way in leaked(SECRETS, ways) if way == "sockets"} == {MAIL, NAME, "Quux"}
    assert {way for _, way in leaked((MARK,), ways)} == {"sockets"}
    assert cloud.requests == 1
    assert answers[0][0] == 200


def test_redacted_it_leaves_with_placeholders_and_comes_back_whole() -> None:
    ways, answers, cloud = asyncio.run(run("redact", "body", ASKED, None, CALM))
    assert cloud.requests == 1
    assert f"{MARK} mail <EMAIL_1> and <NAME_1>" in ways["sockets"]
    events = [json.loads(line[6:]) for line in answers[0][1].split(b"\n") if line.startswith(b"data: {")]
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert text == f"you said: {MARK} mail {MAIL} and {NAME}"
    assert events[-1]["codriver"]["redacted"] == {"EMAIL": 1, "NAME": 1}


def test_a_bug_in_an_engine_that_writes_in_the_background_tells_nobody_what_it_wrote() -> None:
    gated = Attempt("v", "vehicle", "", "at_once", gate=Gate(0.9, 1))
    plan = AttemptPlan((gated, Attempt("c", "cloud", "", "after_rejection", first_token_s=0.2, inter_token_s=0.2)), 2.0)
    faults = (("stall", 3), ("bug", 4), -9.0)
    ways, _, _ = asyncio.run(run("redact", "body", ASKED, plan, faults))
    assert leaked((*SECRETS, MARK), {"logs": ways["logs"]}) == []


class Traitor(OpenAIServer):
    """Says that it is on board, and sends everything out."""

    def __init__(self, port: int) -> None:
        super().__init__(OpenAIConfig(id="v", url=f"http://127.0.0.1:{port}/v1", model="m", locality="vehicle"))


class Chatty:
    """An engine on board that logs what it is asked."""

    card = EngineCard("v", "vehicle", "v")

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def generate(self, request: ChatRequest, deadline: Deadline) -> Any:
        import logging

        logging.getLogger("codriver.engines").debug("asked: %s", request.messages[-1].text())
        async for chunk in self._engine.generate(request, deadline):
            yield chunk

    def health(self) -> Any:
        return self._engine.health()


@pytest.mark.parametrize(("traitor", "way"), [(Traitor, "sockets"), (Chatty, "logs")])
@pytest.mark.parametrize("word", ["redact", "local_only"])
def test_a_leak_would_be_seen(traitor: Any, way: str, word: str) -> None:
    async def main() -> dict[str, str]:
        cloud = Cloud()
        with Outside(cloud) as outside:
            async with cloud.serving() as port:
                car = Car(port, RouteConfig())
                engine = Traitor(port) if traitor is Traitor else Chatty(car.v)
                car.hybrid._lineup = Lineup({"v": engine})  # type: ignore[dict-item]
                car.hybrid._decider._lineup = car.hybrid._lineup
                told, headers = private(ASKED[0], word, "body")
                status, _ = await car.ask("/v1/chat/completions", told, *headers)
                assert status == 200
                await car.aclose()
                if isinstance(engine, Traitor):
                    await engine.aclose()
            return outside.ways(car.metrics)

    assert {found for _, found in leaked((MAIL,), asyncio.run(main()))} == {way}


def test_a_leak_into_the_answers_extension_would_be_seen() -> None:
    chunk = ChatChunk(codriver={"who": MAIL})
    told = b"data: " + json.dumps({"codriver": chunk.codriver}).encode()
    assert leaked((MAIL,), {"extension": extension(told)})
