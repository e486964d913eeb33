"""Declared documents on their way up: condensed or whole, never kept, never beyond what their privacy class allows."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import msgspec
import pytest

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard
from codriver.core.errors import PromptTooLong, UnsupportedParameter
from codriver.core.messages import ChatRequest, Embeddings, EmbedRequest, Message, RequestOptions, parse_chat
from codriver.engines.null import Null, NullConfig
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.route.condense import Condenser, condenser
from codriver.route.config import RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.meanings import Meanings
from codriver.route.passages import tokens_of
from tests.unit.route.leaks import DETECTOR, Cloud

FILLER = [f"## Chapter {n}\n\n" + f"Part {n} tells how seat {n} is moved with lever {n}. " * 9 for n in range(40)]
TYRES = "## Tyres\n\nThe cold tyre pressure is 2.4 bar on all four wheels. Check the pressure every month."
SECRET = "zaphira.quux@example.org"
MANUAL = "\n\n".join([*FILLER[:20], TYRES, *FILLER[20:]])
QUESTION = "What is the right tyre pressure?"


class Words:
    """An embedder whose vector of a text is which of these words stand in it; ``slow_s`` for each."""

    words = ("pressure", "air", "seat", "lever")

    def __init__(self, slow_s: float = 0.0, most_chars: int = 10_000) -> None:
        self.slow_s, self.most_chars, self.texts = slow_s, most_chars, list[str]()
        self.card = EngineCard("e", "vehicle", capabilities=frozenset({"embeddings"}))

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        if self.slow_s:
            await deadline.wait(asyncio.sleep(self.slow_s))
        vectors = []
        for text in request.texts():
            if len(text) > self.most_chars:
                raise PromptTooLong("too long")
            self.texts.append(text)
            hits = [float(word in text.lower()) for word in self.words]
            hits[:2] = [max(hits[:2])] * 2
            norm = sum(hit * hit for hit in hits) ** 0.5 or 1.0
            vectors.append([hit / norm for hit in hits])
        return Embeddings(vectors, 0, "e")


def request_of(*documents: str, question: str = QUESTION, **options: Any) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": question}], "codriver": {"context": [*documents], **options}}
    return parse_chat(json.dumps(body).encode())


async def applied(request: ChatRequest, meanings: Meanings | None = None, room: int = 0, **config: Any) -> Any:
    config.setdefault("condense_within_s", 5.0)
    return await Condenser(RouteConfig(**config), meanings, room).apply(request, Deadline.after(30.0))


async def test_the_right_passage_goes_up_before_the_question_and_the_documents_are_gone() -> None:
    got = await applied(request_of("An empty log.", MANUAL))
    told, question = got.request.messages
    assert question.content == QUESTION
    assert "2.4 bar" in told.text() and "Document 2:" in told.text() and "[...]" in told.text()
    assert got.request.codriver.context is None
    assert (
        b"Chapter 39" not in got.request.raw and json.loads(got.request.raw)["messages"][0]["content"] == told.content
    )
    about = got.told["condensed"]
    assert about["saved_bytes"] > 10_000
    assert about["documents"] == 2 and about["by"] == "words" and about["passages"] < about["of"]
    assert about["tokens"] == tokens_of(told.text()) <= 560
    assert about["saved_bytes"] == len(MANUAL) + len("An empty log.") - len(told.text().encode())


async def test_it_stands_after_the_history_and_before_the_last_question() -> None:
    request = request_of(MANUAL)
    earlier = [Message(role="system", content="s"), Message(role="user", content="u")]
    later = [Message(role="assistant", content="a"), *request.messages, Message(role="tool", content="t")]
    request = msgspec.structs.replace(request, messages=[*earlier, *later], raw=None)
    got = await applied(request)
    assert [m.role for m in got.request.messages] == ["system", "user", "assistant", "user", "user", "tool"]
    assert "2.4 bar" in got.request.messages[3].text()


@pytest.mark.parametrize(
    ("mode", "documents", "by"),
    [
        ("auto", [TYRES], "whole"),
        ("always", [TYRES], "whole"),
        ("auto", FILLER[:8], "whole"),
        ("always", FILLER[:8], "words"),
        ("never", [MANUAL], "whole"),
        ("auto", [MANUAL], "words"),
        ("always", [MANUAL], "words"),
    ],
)
async def test_short_documents_go_whole_and_long_ones_by_the_setting(mode: str, documents: list[str], by: str) -> None:
    got = await applied(request_of(*documents), condense=mode)
    assert got.told["condensed"]["by"] == by
    if by == "whole":
        assert documents[0].strip() in got.request.messages[0].text()


async def test_no_documents_and_empty_ones_change_nothing() -> None:
    for documents in ([], [" \n"]):
        got = await applied(request_of(*documents))
        assert [m.content for m in got.request.messages] == [QUESTION]
        assert got.request.codriver.context is None and got.told == {}


async def test_the_vehicles_own_window_bounds_the_condensate_where_it_holds_any() -> None:
    question = "Which lever is for which seat?"
    small = await applied(request_of(MANUAL, question=question), room=700)
    assert small.told["condensed"]["tokens"] < 350
    none = await applied(request_of(MANUAL, question=question), room=300)
    assert none.told["condensed"]["tokens"] > 350
    # What would go whole must fit as well.
    assert (await applied(request_of(*FILLER[:8]), room=1100)).told["condensed"]["by"] == "words"


async def test_a_plain_completion_is_told_that_it_takes_none() -> None:
    request = ChatRequest(prompt="x", codriver=RequestOptions(context=["y"]))
    with pytest.raises(UnsupportedParameter, match=r"'codriver\.context' goes with messages; a plain completion takes"):
        await applied(request)


async def test_meaning_finds_what_no_word_of_the_question_says() -> None:
    question = "How much air goes in?"
    by_words = await applied(request_of(MANUAL, question=question), condense_tokens=64)
    assert "2.4 bar" not in by_words.request.messages[0].text()
    with_meaning = Meanings(Words(), most=100)
    got = await applied(request_of(MANUAL, question=question), with_meaning, condense_tokens=64)
    assert "2.4 bar" in got.request.messages[0].text()
    assert got.told["condensed"]["by"] == "meaning"


async def test_passages_are_embedded_once_and_only_the_likely_ones_of_many() -> None:
    embedder = Words()
    made = Condenser(RouteConfig(condense_within_s=5.0), Meanings(embedder, most=10))
    await made.apply(request_of(MANUAL), Deadline.after(30.0))
    assert len(embedder.texts) == 11  # the question and the ten with most of its words
    assert any("2.4 bar" in text for text in embedder.texts)
    await made.apply(request_of(MANUAL), Deadline.after(30.0))
    assert len(embedder.texts) == 11


async def test_when_time_is_up_the_words_choose() -> None:
    began_s = time.monotonic()
    off = Words()
    await Condenser(RouteConfig(), Meanings(off)).apply(request_of(MANUAL), Deadline.after(5.0))
    assert not off.texts
    got = await applied(request_of(MANUAL), Meanings(Words(slow_s=0.02)), condense_within_s=0.1)
    assert time.monotonic() - began_s < 1.0
    assert got.told["condensed"]["by"] == "words" and "2.4 bar" in got.request.messages[0].text()


async def test_of_a_passage_that_the_embedder_finds_too_long_the_beginning_is_read() -> None:
    got = await applied(request_of(MANUAL), Meanings(Words(most_chars=100)))
    assert got.told["condensed"]["by"] == "meaning"
    with pytest.raises(PromptTooLong):
        await Meanings(Words(most_chars=5)).cosines([], QUESTION, [], Deadline.after(1.0))


async def test_it_can_be_cancelled() -> None:
    task = asyncio.ensure_future(applied(request_of(MANUAL), Meanings(Words(slow_s=5.0)), condense_within_s=60.0))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_megabyte_does_not_hold_up_everybody_else() -> None:
    chapters = [MANUAL.replace("seat", f"seat{n}") for n in range(1 + 1_000_000 // len(MANUAL))]
    slices, done = list[float](), asyncio.Event()

    async def watch() -> None:
        # Processor time of this thread, so that a busy machine tells nothing of the loop.
        last_s = time.thread_time()
        while not done.is_set():
            await asyncio.sleep(0)
            now_s = time.thread_time()
            slices.append(now_s - last_s)
            last_s = now_s

    watcher = asyncio.ensure_future(watch())
    got = await applied(request_of("\n\n".join(chapters)), Meanings(Words()), condense_within_s=60.0)
    done.set()
    await watcher
    assert got.told["condensed"]["by"] == "meaning" and "2.4 bar" in got.request.messages[0].text()
    assert max(slices) < 0.06  # 20 ms are the aim; the rest is for slow machines


async def test_only_an_embedder_on_board_reads_passages() -> None:
    onboard, far = Words(), Words()
    far.card = EngineCard("far", "cloud", capabilities=frozenset({"embeddings"}))
    chats: Any = Null(NullConfig(id="v"))
    engines: Any = (chats, far, onboard)
    got = await condenser(RouteConfig(condense_within_s=5.0), engines, 0).apply(
        request_of(MANUAL), Deadline.after(30.0)
    )
    assert got.told["condensed"]["by"] == "meaning" and onboard.texts and not far.texts
    got = await condenser(RouteConfig(condense_within_s=5.0), engines[:2], 0).apply(
        request_of(MANUAL), Deadline.after(30.0)
    )
    assert got.told["condensed"]["by"] == "words" and not far.texts


# ---------------------------------------------------------------- through the router


async def _through(request: ChatRequest, **config: Any) -> tuple[Cloud, dict[str, Any], HybridEngine]:
    cloud, told = Cloud(), dict[str, Any]()
    async with cloud.serving() as port:
        server = OpenAIServer(OpenAIConfig(id="c", url=f"http://127.0.0.1:{port}/v1", model="m", locality="cloud"))
        engines: Any = {"v": Null(NullConfig(id="v")), "c": server}
        hybrid = HybridEngine(Lineup(engines), RouteConfig(**config), detector=DETECTOR)
        try:
            async for chunk in hybrid.generate(request, Deadline.after(10.0)):
                told = chunk.codriver or told
        finally:
            await server.aclose()
    return cloud, told, hybrid


async def test_what_is_left_out_reaches_no_byte_of_the_cloud() -> None:
    manual = MANUAL + f"\n\n## Owner\n\nWrite to {SECRET} for more on seats and levers."
    cloud, told, _ = await _through(request_of(manual, policy="cloud-only"))
    assert told["engine"] == "c" and told["condensed"]["saved_bytes"] > 10_000
    assert b"2.4 bar" in cloud.received
    for left_out in (SECRET.encode(), b"Chapter 39", b"context"):
        assert left_out not in cloud.received
    cloud, _, _ = await _through(request_of(manual, policy="cloud-only"), condense="never")
    assert SECRET.encode() in cloud.received  # the test would see it


async def test_what_is_chosen_is_redacted() -> None:
    manual = MANUAL.replace("2.4 bar", f"2.4 bar, says {SECRET},")
    cloud, told, _ = await _through(request_of(manual, policy="cloud-only", privacy="redact"))
    assert told["engine"] == "c" and told["redacted"] == {"EMAIL": 1}
    assert b"<EMAIL_1>" in cloud.received and SECRET.encode() not in cloud.received


async def test_what_only_a_left_out_neighbour_calls_personal_is_redacted_too() -> None:
    # A passage ends at 120 words, here between the word that tells of a birthday and the date.
    manual = f"{'seat ' * 118}born on 3.5.1980 the tyre pressure was 2.4 bar and more"
    asked = request_of(manual, *FILLER, policy="cloud-only", privacy="redact")
    cloud, told, _ = await _through(asked, condense_tokens=64)
    assert b"2.4 bar" in cloud.received and b"seat seat" not in cloud.received
    assert b"3.5.1980" not in cloud.received and told["redacted"] == {"BIRTHDATE": 1}


async def test_a_value_across_the_edge_of_a_passage_keeps_the_request_in_the_vehicle() -> None:
    manual = f"{'tyre ' * 118}+49 151 12345678 {'lever ' * 300}"
    cloud, told, _ = await _through(request_of(manual, policy="cloud-first", privacy="redact"), condense_tokens=200)
    assert told["engine"] == "v" and not cloud.requests
    assert told["not_redacted"] == "personal data stands across the edge of a passage"


async def test_local_documents_stay_in_the_vehicle_and_are_condensed_for_it() -> None:
    cloud, told, _ = await _through(request_of(MANUAL, policy="cloud-first", privacy="local_only"))
    assert told["engine"] == "v" and told["condensed"]["by"] == "words" and not cloud.requests


async def test_a_session_keeps_the_question_and_not_the_documents() -> None:
    request = request_of(MANUAL, policy="vehicle-only", session="s")
    _, _, hybrid = await _through(request)
    follow = ChatRequest(messages=[Message(role="user", content="And then?")], codriver=RequestOptions(session="s"))
    kept = hybrid._sessions.extend(follow).text()
    assert QUESTION in kept and "2.4 bar" not in kept


async def test_an_engine_that_is_asked_by_itself_refuses_documents() -> None:
    with pytest.raises(UnsupportedParameter, match=r"The model 'c' does not support 'codriver\.context'"):
        async for _ in Null(NullConfig(id="c")).generate(request_of(TYRES), Deadline.after(1.0)):
            pass
