"""Which slot a request gets."""

from __future__ import annotations

import asyncio
from typing import Any

from codriver.core.messages import ChatRequest, FunctionSpec, Message, RequestOptions, Tool
from codriver.engines.llama_cpp_slots import History, Slot, Slots, adapters_of, common, history_of


def talk(*texts: str) -> ChatRequest:
    return ChatRequest(
        messages=[Message(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(texts)]
    )


def answered(slots: Slots, *texts: str, saved: int = 0) -> Slot:
    """A request that is answered whole; its slot."""
    history = history_of(talk(*texts))
    slot = slots.take(history, saved=saved)
    slot.history = history
    slots.give(slot)
    return slot


def test_a_conversation_comes_back_to_its_slot() -> None:
    slots = Slots(3)
    one = answered(slots, "a")
    assert answered(slots, "b") is not one
    assert answered(slots, "a", "yes", "and?") is one


def test_streams_at_once_sit_side_by_side() -> None:
    slots = Slots(4)
    for text in "abcd":  # used in the order 0, 1, 2, 3
        answered(slots, text)
    assert slots.take(history_of(talk("c"))).id == 2
    assert slots.take(history_of(talk("new"))).id == 1  # not 0, though that was used longest ago


def test_a_long_prompt_is_read_behind_the_others() -> None:
    slots = Slots(4)
    for text in "abcd":
        answered(slots, text)
    long = slots.take(history_of(talk("manual")), long=True)
    assert long.id == 3
    assert {slots.take(history_of(talk(text))).id for text in "xy"} == {1, 2}  # beside it and beside each other
    slots.give(long)
    assert slots.take(history_of(talk("z"))).id == 0  # the last one is kept free
    assert slots.take(history_of(talk("zz"))).id == 3  # but nobody waits for it


def test_while_a_long_prompt_is_read_a_short_one_goes_where_its_opening_is() -> None:
    """Putting it into another slot would wait for a step of the long one."""
    slots = Slots(4)
    there = answered(slots, "rules", "ok", "a", saved=2)
    answered(slots, "b")
    short = history_of(talk("rules", "ok", "c"))
    slot = slots.take(short, saved=2)
    assert slot is not there  # what was said there may be gone on with
    slots.give(slot)
    long = slots.take(history_of(talk("manual")), long=True)
    slot = slots.take(short, saved=2)
    assert slot is there
    slots.give(slot)
    slots.give(long)
    assert slots.take(short, saved=2) is not there


def test_a_long_conversation_comes_back_to_its_slot_all_the_same() -> None:
    slots = Slots(4)
    one = answered(slots, "a")
    assert one.id != 3
    assert slots.take(history_of(talk("a", "yes", "manual")), long=True) is one


def test_of_two_slots_none_is_kept_free() -> None:
    slots = Slots(2)
    assert {answered(slots, text).id for text in "ab"} == {0, 1}
    assert slots.take(history_of(talk("manual")), long=True).id == 1


def test_a_request_that_is_not_read_leaves_what_the_slot_held() -> None:
    slots = Slots(1)
    slot = answered(slots, "a", "yes", "and?")
    assert slots.take(history_of(talk("a", "yes", "else"))) is slot
    assert slot.in_place == 2 and len(slot.history) == 3


def test_a_saved_opening_goes_where_no_conversation_is_lost() -> None:
    slots = Slots(2)
    talking = answered(slots, "rules", "ok", "hello")
    # Not saved: the slot that holds the beginning is the best one.
    assert slots.take(history_of(talk("rules", "ok", "x"))) is talking
    slots.give(talking)
    # Saved: the other one, for it is as good, and was used longer ago.
    other = answered(slots, "rules", "ok", "x", saved=2)
    assert other is not talking
    # The conversation itself goes on in its slot all the same.
    assert answered(slots, "rules", "ok", "hello", "hi", "and?", saved=2) is talking


def test_a_conversation_that_went_on_is_spared_but_not_for_ever() -> None:
    slots = Slots(2)
    talking = answered(slots, "a")
    assert answered(slots, "a", "yes", "and?") is talking and talking.went_on
    strangers = [answered(slots, f"stranger {n}") for n in range(17)]
    assert talking not in strangers[:15]
    assert talking in strangers


def test_a_saved_opening_counts_only_where_the_adapters_are_the_same() -> None:
    slots = Slots(2)
    one = slots.take((b"x",), b"lora")
    one.history, one.adapters = (b"x",), b"lora"
    other = answered(slots, "b")
    slots.give(one)
    assert slots.take(history_of(talk("rules", "x")), b"lora", saved=1) is one
    slots.give(one)
    assert slots.take(history_of(talk("rules", "x")), b"", saved=1) is other


def test_histories_tell_beginnings_apart() -> None:
    one, other = history_of(talk("a", "b", "c")), history_of(talk("x", "b", "c"))
    assert common(one, other) == 0 and not set(one) & set(other)
    tools = [Tool(function=FunctionSpec(name="f"))]
    lora = RequestOptions(lora=[{"name": "x"}])

    def first(**members: Any) -> History:
        return history_of(ChatRequest(messages=talk("a").messages, **members))

    assert len({first(), first(tools=tools), first(codriver=lora)}) == 3
    assert first() == first(tools=[])
    assert adapters_of(ChatRequest(codriver=lora)) != adapters_of(ChatRequest()) == b""


async def test_a_slot_is_claimed_only_while_nobody_needs_it() -> None:
    slots = Slots(1)
    slot = answered(slots, "a")
    assert not await slots.claim(slot, history_of(talk("b")))  # overwritten meanwhile
    assert await slots.claim(slot, history_of(talk("a")))
    assert slots.permits.locked()
    waiting = asyncio.ensure_future(slots.permits.acquire())
    await asyncio.sleep(0)
    slots.unclaim(slot)
    assert not await slots.claim(slot, history_of(talk("a")))  # whoever waits goes first
    assert await waiting
