"""The semantic cache: who gets an answer again, and above all who does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codriver.core.clock import ManualClock
from codriver.core.messages import ChatRequest, Message, parse_chat
from codriver.core.virtual import run_virtual
from codriver.route.hybrid import HybridEngine
from codriver.route.semantic_cache import SemanticCache
from codriver.route.semantic_file import CacheRule
from codriver.route.semantic_words import telling_words
from tests.unit.route.drive import ask
from tests.unit.route.faulty import Fault
from tests.unit.route.test_semantic import ROUTES, TEXT, Car, say
from tests.unit.route.words import vector_of

LAMP = "explain what this lamp means"
# Close in words, so that the stand-in's vectors are close too, whatever the threshold.
LOOSE = "[cache]\nthreshold = 0.5\nttl_s = 100\nentries = 3\n"


@pytest.fixture
def car(tmp_path: Path) -> Car:
    return Car(tmp_path, ROUTES + LOOSE)


def engine_of(got: Any) -> object:
    assert got.error is None, got.error
    return got.extension.get("engine")


def again(car: Car, first: ChatRequest, second: ChatRequest) -> Any:
    """What the second request gets after the first was answered."""

    async def main() -> Any:
        hybrid = await car.start()
        assert engine_of(await car.answer(hybrid, first)) != "cache"
        return await car.answer(hybrid, second)

    return run_virtual(main())


def test_the_same_question_gets_the_same_answer_and_the_truth_about_it(car: Car) -> None:
    async def main() -> None:
        hybrid = await car.start()
        first = await car.answer(hybrid, say(LAMP))
        calls = car.v.calls + car.c.calls
        for stream in (True, False):
            got = await car.answer(hybrid, say(LAMP, stream=stream))
            assert (got.text, got.finishes, car.v.calls + car.c.calls) == (TEXT, ["stop"], calls)
            told = got.extension
            assert (told["engine"], told["locality"], told["attempts"]) == ("cache", "vehicle", [])
            assert told["semantic"]["route"] == "manual"
            assert told["cache"]["engine"] == first.extension["engine"]
            assert told["cache"]["age_s"] >= 0 and told["cache"]["cosine"] == 1.0
            assert len({chunk.id for chunk in got.chunks}) == 1
        value = car.metrics.registry.get_sample_value
        outcomes = {one: value("codriver_semantic_cache_total", {"outcome": one}) for one in ("hit", "miss", "kept")}
        assert outcomes == {"hit": 2, "miss": 1, "kept": 1}

    run_virtual(main())


def test_a_question_in_other_words_gets_it_too(car: Car) -> None:
    got = again(car, say(LAMP), say("please explain what this lamp means"))
    assert engine_of(got) == "cache"
    assert 0.5 < got.extension["cache"]["cosine"] < 1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("explain what lamp 21 means", "explain what lamp 22 means"),
        ("explain what this means when on", "explain what this means when off"),
        ("explain what this button does", "explain what this button does not"),
        ("explain what this left button means", "explain what this right button means"),
        ("explain how this button works two times", "explain how this button works three times"),
        ("explain how Anna means this button", "explain how Berta means this button"),
        ("explain how this button means more than that", "explain how this button means less than that"),
        ("explain how this yellow lamp works", "explain how this red lamp works"),
        ("explain how this 1 works before 2", "explain how this 2 works before 1"),
        ("explain why this button works", "explain how this button works"),
        ("explain what this button means if lamp beats button", "explain what this button means if button beats lamp"),
    ],
)
def test_numbers_opposites_negations_and_names_must_be_the_same(car: Car, first: str, second: str) -> None:
    assert engine_of(again(car, say(first), say(second))) != "cache"


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [Message(role="system", content="Be brief."), Message(role="user", content=LAMP)]},
        {"messages": [Message(role="user", content="what else"), Message(role="user", content=LAMP)]},
        {"model": "another"},
        {"max_tokens": 500},
        {"seed": 3},
        {"user": "berta"},
        {"codriver": {"policy": "cloud-first"}},
        {"codriver": {"engine": "v"}},
        {"codriver": {"privacy": "local_only"}},
        {"temperature": 0.7},
        {"logprobs": True},
        {"n": 2},
    ],
)
def test_another_context_caller_or_way_of_answering_is_another_question(car: Car, change: dict[str, Any]) -> None:
    whole = {"messages": [Message(role="user", content=LAMP)], **change}
    assert engine_of(again(car, say(LAMP), ask(**whole))) != "cache"
    assert engine_of(again(Car(car.file.parent, ROUTES + LOOSE), ask(**whole), say(LAMP))) != "cache"


def test_callers_do_not_share_answers_and_a_body_cannot_name_its_caller(car: Car) -> None:
    mine = say(LAMP)
    mine.caller = "a1"
    other = say(LAMP)
    other.caller = "b2"
    assert engine_of(again(car, mine, other)) != "cache"
    body = {"messages": [{"role": "user", "content": LAMP}], "__caller__": "a1"}
    assert parse_chat(json.dumps(body).encode()).caller == ""


def test_members_of_the_body_that_nobody_knows_count(car: Car) -> None:
    def body(**more: Any) -> ChatRequest:
        return parse_chat(json.dumps({"messages": [{"role": "user", "content": LAMP}], **more}).encode())

    assert engine_of(again(car, body(), body(top_k=4))) != "cache"
    assert engine_of(again(car, body(), body(stream=True, stream_options={"include_usage": True}))) == "cache"


@pytest.mark.parametrize("text", ["make it warm inside", "call my sister please", "blue elephants"])
def test_only_routes_that_say_so_are_cached(car: Car, text: str) -> None:
    assert engine_of(again(car, say(text), say(text))) != "cache"


def test_what_comes_after_something_personal_is_not_kept(car: Car) -> None:
    whole = say("call my sister please", LAMP)
    assert engine_of(again(car, whole, whole)) != "cache"


def test_cut_short_or_second_best_answers_are_not_kept(car: Car) -> None:
    short = say(LAMP, max_tokens=3)
    assert engine_of(again(car, short, short)) != "cache"
    car = Car(car.file.parent, ROUTES + LOOSE)
    car.c.fault = Fault("die", 0)
    first = say(LAMP, codriver={"policy": "cloud-first"})

    async def main() -> None:
        hybrid = await car.start()
        got = await car.answer(hybrid, first)
        assert got.outcomes() == [("c", "engine_died"), ("v", "answered")]
        car.c.fault = Fault()
        assert engine_of(await car.answer(hybrid, first)) == "c"

    run_virtual(main())


def test_tool_calls_are_not_kept(car: Car) -> None:
    car.v.tool = car.c.tool = True
    car.v.words = car.c.words = ('{"lamp": ', "true}")
    assert engine_of(again(car, say(LAMP), say(LAMP))) != "cache"


def test_answers_age_and_are_bounded(car: Car) -> None:
    async def main() -> None:
        hybrid: HybridEngine = await car.start()
        clock = ManualClock()
        cache = SemanticCache(CacheRule(threshold=0.5, ttl_s=100, entries=3), clock)
        car.routes._cache = cache
        for name in ("one", "two", "three", "four"):
            await car.answer(hybrid, say(f"explain what this button {name} means"))
        assert len(cache) == 3
        assert engine_of(await car.answer(hybrid, say("explain what this button four means"))) == "cache"
        await clock.advance(100)
        assert engine_of(await car.answer(hybrid, say("explain what this button four means"))) != "cache"
        assert len(cache) == 1

    run_virtual(main())


def test_a_conversation_goes_on_after_a_cached_answer(car: Car) -> None:
    async def main() -> None:
        hybrid = await car.start()
        await car.answer(hybrid, say(LAMP))
        got = await car.answer(hybrid, say(LAMP, codriver={"session": "s"}))
        assert engine_of(got) == "cache"
        await car.answer(hybrid, say("hm", codriver={"session": "s", "policy": "vehicle-only"}))
        assert [message.text() for message in car.v.requests[-1].messages] == [LAMP, TEXT, "hm"]

    run_virtual(main())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Turn it on, to 21.5 degrees", ("on", "to", "21.5")),
        ("I don't want Paul", ("don't", "paul")),
        ("Call Anna. Then ring BMW", ("anna", "bmw")),
        ("what's up", ("up",)),
        ("", ()),
    ],
)
def test_telling_words(text: str, words: tuple[str, ...]) -> None:
    assert telling_words(text) == words


def test_the_stand_in_puts_these_questions_close_together() -> None:
    left, right = (vector_of(f"explain what lamp {number} means") for number in (21, 22))
    assert sum(a * b for a, b in zip(left, right, strict=True)) > 0.75
