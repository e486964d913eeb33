"""Replayed answers: they look live, they take their recorded time, and on a virtual clock no wall time."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard
from codriver.core.errors import DeadlineExceeded, EngineUnavailable, UnsupportedParameter
from codriver.core.messages import ChatRequest, Message, StreamOptions
from codriver.core.virtual import LoopClock, run_virtual
from codriver.engines.replay import EmpiricalTiming, FixedTiming, Recording, Replay, ReplayConfig

CARD = EngineCard(
    id="strong", locality="cloud", model="strong-1", capabilities=frozenset({"chat", "logprobs", "prefill"})
)
RECORDED = {
    "2+2?": Recording("It is four", correct=True, tokens=("It", " is", " four"), logprobs=(-0.1, -0.2, -0.3)),
    "long?": Recording(" ".join(["word"] * 100), correct=False, prompt_tokens=40),
}
FIXED = FixedTiming(ttft_ms=200, per_token_ms=50)


def engine(timing: Any = FIXED, config: ReplayConfig | None = None, card: EngineCard = CARD) -> Replay:
    return Replay(card, RECORDED, timing, config, LoopClock())


def ask(text: str, **members: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=text)], **members)


async def timed(replay: Replay, request: ChatRequest, deadline: Deadline | None = None) -> list[tuple[float, str]]:
    clock = LoopClock()
    began_s = clock.monotonic_s()
    seen = []
    async for chunk in replay.generate(request, deadline or Deadline.never(clock)):
        seen.append((round(clock.monotonic_s() - began_s, 6), chunk.text()))
    return seen


def test_the_first_token_and_every_further_one_take_their_time() -> None:
    seen = run_virtual(timed(engine(), ask("2+2?", stream=True)))
    assert seen == [(0.2, ""), (0.2, "It"), (0.25, " is"), (0.3, " four"), (0.3, "")]


def test_tokens_in_chunks_and_an_answer_in_one_take_as_long() -> None:
    grouped = run_virtual(timed(engine(config=ReplayConfig(chunk_tokens=2)), ask("2+2?", stream=True)))
    assert grouped[1:3] == [(0.25, "It is"), (0.3, " four")]
    assert run_virtual(timed(engine(), ask("2+2?"))) == [(0.3, "It is four")]


def test_it_looks_like_a_live_engine() -> None:
    async def main() -> Answer:
        answer = Answer()
        request = ask("2+2?", stream=True, logprobs=True, stream_options=StreamOptions(include_usage=True))
        async for chunk in engine().generate(request, Deadline.never()):
            assert chunk.id.startswith("chatcmpl-")
            answer.add(chunk)
        return answer

    answer = run_virtual(main())
    choice = answer.completion().choices[0]
    assert choice.finish_reason == "stop"
    assert [token.logprob for token in choice.logprobs.content] == [-0.1, -0.2, -0.3]  # type: ignore[union-attr]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 3)


def test_the_deadline_falls_at_its_own_time_and_not_after_the_token() -> None:
    async def main() -> float:
        clock = LoopClock()
        with pytest.raises(DeadlineExceeded):
            await timed(engine(), ask("long?", stream=True), Deadline.after(0.22, clock))
        return clock.monotonic_s()

    assert run_virtual(main()) == pytest.approx(0.22)


def test_full_slots_queue_and_the_health_says_so() -> None:
    async def main() -> tuple[list[str], list[tuple[float, str]]]:
        replay = engine(config=ReplayConfig(slots=1))
        states = [replay.health().state]
        first = asyncio.create_task(timed(replay, ask("2+2?")))
        second = asyncio.create_task(timed(replay, ask("2+2?")))
        await asyncio.sleep(0.1)
        states.append(f"{replay.health().state} {replay.health().queue}")
        return states, [*await first, *await second]

    states, seen = run_virtual(main())
    assert states == ["ready", "busy 2"]
    assert [at for at, _ in seen] == [0.3, 0.6]


def test_leaving_in_the_middle_frees_the_slot() -> None:
    async def main() -> list[tuple[float, str]]:
        replay = engine(config=ReplayConfig(slots=1))
        stream = replay.generate(ask("long?", stream=True), Deadline.never())
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return await timed(replay, ask("2+2?"))

    assert run_virtual(main()) == [(0.3, "It is four")]


def test_a_request_takes_the_same_time_whatever_ran_before_it() -> None:
    timing = FixedTiming(ttft_ms=100, per_token_ms=10, spread=0.5)

    async def main(order: list[str]) -> dict[str, float]:
        replay = engine(timing, ReplayConfig(seed=3))
        return {key: (await timed(replay, ask(key)))[-1][0] for key in order}

    assert run_virtual(main(["2+2?", "long?"])) == run_virtual(main(["long?", "2+2?"]))


def test_thousands_of_requests_at_once_take_no_wall_time_to_speak_of() -> None:
    async def main() -> float:
        replay = engine()
        await asyncio.gather(*(timed(replay, ask("long?")) for _ in range(3_000)))
        return LoopClock().monotonic_s()

    began = time.perf_counter()
    assert run_virtual(main()) == pytest.approx(0.2 + 99 * 0.05)
    assert time.perf_counter() - began < 10


def test_timing_from_recorded_calls_keeps_each_calls_latency() -> None:
    calls = [(400.0 + 20 * tokens + (tokens % 3) * 30, tokens) for tokens in range(5, 60)]
    timing = EmpiricalTiming.from_calls(calls)
    for (ttft_ms, per_token_ms), (latency_ms, tokens) in zip(timing.pairs, calls, strict=True):
        assert ttft_ms + per_token_ms * tokens == pytest.approx(latency_ms)
    assert timing.pairs[0][0] == pytest.approx(430, rel=0.1)
    assert timing.draw(random.Random(1), 0) in timing.pairs


def test_timing_without_a_sensible_line_still_has_both_parts() -> None:
    timing = EmpiricalTiming.from_calls([(800.0, 10), (400.0, 40)])
    assert all(ttft_ms > 0 and per_token_ms > 0 for ttft_ms, per_token_ms in timing.pairs)
    with pytest.raises(ValueError, match="at least one recorded call"):
        EmpiricalTiming.from_calls([])


def test_long_prompts_take_longer_where_the_figures_say_so() -> None:
    timing = FixedTiming(ttft_ms=10, per_token_ms=1, per_prompt_token_ms=2)
    assert timing.draw(random.Random(0), 50) == (110, 1)


def test_a_recording_that_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens do not join"):
        Recording("ab", tokens=("a", "c"))
    with pytest.raises(ValueError, match="1 logprobs for 2 tokens"):
        Recording("a b", logprobs=(-1.0,))


def test_what_was_not_recorded_is_refused_in_words() -> None:
    async def main(request: ChatRequest, card: EngineCard = CARD) -> None:
        await timed(engine(card=card), request)

    with pytest.raises(EngineUnavailable, match="'strong' has no recorded answer to this request"):
        run_virtual(main(ask("never heard")))
    with pytest.raises(UnsupportedParameter, match="does not support 'logprobs'"):
        run_virtual(main(ask("2+2?", logprobs=True), EngineCard(id="weak", locality="vehicle")))
    with pytest.raises(UnsupportedParameter, match="cannot go on from a partial answer"):
        run_virtual(main(ask("2+2?", continue_from="It"), EngineCard(id="weak", locality="vehicle")))
