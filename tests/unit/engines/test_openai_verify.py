"""A draft scored by a server in vLLM's shape: what stands, what follows, and what cannot be scored."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.errors import UpstreamMalformed
from codriver.core.messages import ChatChunk, ChatRequest, parse_chat
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.engines.openai_verify import verdict
from tests.unit.engines.scripted_server import Server, http, serving, stream

DRAFT = "The charger is north."
TOKENS = ["The", " charger", " is", " north", "."]


def scored(
    tokens: list[str], ranks: list[int], p: float = 0.01, content: str = "", finish: str = "stop", **more: Any
) -> bytes:
    entries: list[Any] = [None, {"1": {"logprob": -0.1, "rank": 1, "decoded_token": "<|im_start|>assistant\n"}}]
    for number, (token, rank) in enumerate(zip(tokens, ranks, strict=True)):
        entry = {str(number): {"logprob": -0.01 if rank == 1 else math.log(p), "rank": rank, "decoded_token": token}}
        if rank != 1:
            entry["99"] = {"logprob": -0.2, "rank": 1, "decoded_token": "?"}
        entries.append(entry)
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    usage = {"prompt_tokens": 30, "completion_tokens": 1, "total_tokens": 31}
    told = {"id": "v", "model": "m", "choices": [choice], "prompt_logprobs": entries, "usage": usage, **more}
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("ranks", "p", "text", "tokens"),
    [
        ([1, 1, 1, 1, 1], 0.01, DRAFT, 5),
        ([1, 1, 1, 2, 1], 0.01, "The charger is", 3),
        ([1, 1, 1, 2, 1], 0.4, DRAFT, 5),
        ([7, 1, 1, 1, 1], 0.01, "", 0),
    ],
)
def test_what_the_server_would_have_written_stands(ranks: list[int], p: float, text: str, tokens: int) -> None:
    found = verdict(scored(TOKENS, ranks, p), DRAFT, 0.3)
    assert (found.text, found.tokens, found.whole) == (text, tokens, text == DRAFT)


def test_a_token_more_comes_along() -> None:
    found = verdict(scored(TOKENS, [1] * 5, content=" It", finish="length"), DRAFT, 0.3)
    assert (found.text, found.tokens, found.whole) == (DRAFT + " It", 6, False)


def test_white_space_around_a_draft_is_the_templates() -> None:
    assert verdict(scored(TOKENS, [1] * 5), f" {DRAFT}\n", 0.3).whole


def test_a_token_that_begins_in_the_template_counts_as_well() -> None:
    tokens = ["\nThe", *TOKENS[1:]]
    assert verdict(scored(tokens, [1, 1, 2, 1, 1]), DRAFT, 0.3).text == "The charger"
    assert verdict(scored(tokens, [3, 1, 1, 1, 1]), DRAFT, 0.3).text == ""


def test_what_cannot_be_matched_is_not_agreed() -> None:
    assert verdict(scored(["Another", " text"], [1, 1]), DRAFT, 0.3).text == ""
    assert verdict(scored(["�", "�", *TOKENS[1:]], [1] * 6), DRAFT, 0.3).text == ""


@pytest.mark.parametrize(
    "answer",
    [b"{}", b"[]", b"\xff", b'{"choices":[],"prompt_logprobs":[]}', b'{"choices":[{"message":{"content":"x"}}]}'],
)
def test_an_answer_without_scores_is_malformed(answer: bytes) -> None:
    with pytest.raises(UpstreamMalformed, match="did not score the draft"):
        verdict(answer, DRAFT, 0.3)


@given(st.lists(st.text(alphabet="ab .", min_size=1, max_size=5), min_size=1, max_size=8), st.data())
def test_the_agreed_part_is_always_the_drafts_start(tokens: list[str], data: Any) -> None:
    ranks = data.draw(st.lists(st.integers(1, 3), min_size=len(tokens), max_size=len(tokens)))
    draft = "".join(tokens)
    found = verdict(scored(tokens, ranks, finish="length"), draft, 0.3)
    assert draft.strip().startswith(found.text)
    if all(rank == 1 for rank in ranks) and draft == draft.strip():
        assert found.text == draft


# ---------------------------------------------------------------- through the engine


def ask(**members: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "where?"}], "stream": True, **members}
    request = parse_chat(json.dumps(body).encode())
    request.draft = DRAFT
    return request


async def read(server: Server, request: ChatRequest, **config: Any) -> tuple[Answer, list[dict[str, Any]]]:
    engine = OpenAIServer(OpenAIConfig(url=server.url, model="m", prefill="vllm", verify="vllm", **config))
    answer = Answer()
    try:
        async for chunk in engine.generate(request, Deadline.never()):
            assert isinstance(chunk, ChatChunk)
            answer.add(chunk)
    finally:
        await engine.aclose()
    return answer, [json.loads(body) for _, _, body in server.requests]


def event(text: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "model": "m", "choices": [choice], **more}).encode() + b"\n\n"


async def test_a_draft_that_stands_needs_no_more() -> None:
    async with serving(http("200 OK", scored(TOKENS, [1] * 5))) as server:
        answer, (only,) = await read(server, ask(max_tokens=40))
    assert (answer.text, answer.complete) == (DRAFT, True)
    assert (only["prompt_logprobs"], only["max_tokens"], only["stream"]) == (1, 1, False)
    assert (only["continue_final_message"], only["add_generation_prompt"]) == (True, False)
    assert only["messages"][-1] == {"role": "assistant", "content": DRAFT}
    assert "__draft__" not in only


async def test_the_rest_is_asked_for_from_where_it_disagrees() -> None:
    usage = {"prompt_tokens": 33, "completion_tokens": 4, "total_tokens": 37}
    rest = stream(event(" south"), event(" of here.", "stop", usage=usage), b"data: [DONE]\n\n")
    async with serving(http("200 OK", scored(TOKENS, [1, 1, 1, 2, 1])), rest) as server:
        answer, (_, second) = await read(server, ask(max_tokens=40))
    assert answer.text == "The charger is south of here."
    assert second["messages"][-1] == {"role": "assistant", "content": "The charger is"}
    assert (second["max_tokens"], second["stream"]) == (37, True)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (63, 5)


async def test_with_nothing_agreed_it_is_asked_as_ever() -> None:
    rest = stream(event("No.", "stop"), b"data: [DONE]\n\n")
    async with serving(http("200 OK", scored(TOKENS, [9] * 5)), rest) as server:
        answer, (_, second) = await read(server, ask())
    assert answer.text == "No."
    assert second["messages"][-1]["role"] == "user"


@pytest.mark.parametrize(
    "refusal", [http("400 Bad Request", b'{"error":{"message":"no prompt_logprobs"}}'), http("200 OK", b"{}")]
)
async def test_a_server_that_cannot_score_is_asked_as_ever(refusal: bytes) -> None:
    rest = stream(event("Yes.", "stop"), b"data: [DONE]\n\n")
    async with serving(refusal, rest) as server:
        answer, bodies = await read(server, ask())
    assert (answer.text, len(bodies)) == ("Yes.", 2)


async def test_a_server_that_never_scores_is_not_asked_to_any_more(caplog: pytest.LogCaptureFixture) -> None:
    rest = stream(event("Yes.", "stop"), b"data: [DONE]\n\n")
    no, yes = http("200 OK", b"{}"), http("200 OK", scored(TOKENS, [1] * 5))
    bad = http("400 Bad Request", b'{"error":{"message":"no prompt_logprobs"}}')
    told = (no, rest, bad, rest, yes, no, rest, no, rest, bad, rest, rest)
    async with serving(*told) as server:
        engine = OpenAIServer(OpenAIConfig(url=server.url, model="m", prefill="vllm", verify="vllm"))
        can = []
        for _ in range(7):
            async for _ in engine.generate(ask(), Deadline.never()):
                pass
            can.append(engine.card.can("verify"))
        await engine.aclose()
        assert len(server.requests) == len(told)
    assert can == [True] * 5 + [False] * 2
    assert [one.getMessage() for one in caplog.records] == ["the server scores no drafts and is not asked to any more"]


async def test_without_a_draft_nothing_is_scored() -> None:
    rest = stream(event("Yes.", "stop"), b"data: [DONE]\n\n")
    request = ask()
    request.draft = None
    async with serving(rest) as server:
        answer, (only,) = await read(server, request)
    assert answer.text == "Yes."
    assert "prompt_logprobs" not in only


def test_a_body_cannot_bring_a_draft() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "__draft__": "y"}
    assert parse_chat(json.dumps(body).encode()).draft is None


def test_the_card_says_so_only_with_prefill() -> None:
    def card(**config: Any) -> bool:
        return OpenAIServer(OpenAIConfig(url="http://127.0.0.1:1", **config)).card.can("verify")

    assert card(prefill="vllm", verify="vllm")
    assert not card(verify="vllm")
    assert not card(prefill="vllm", capabilities=("chat", "verify"))
