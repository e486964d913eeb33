"""Which beginnings are openings, how many are kept, and when one is saved."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from codriver.core.errors import EngineUnavailable
from codriver.core.messages import ChatRequest, ImagePart, ImageUrl, Message
from codriver.engines.llama_cpp_keep import LEAST_TOKENS, Keeper
from codriver.engines.llama_cpp_openings import Branches, Opening, Openings
from codriver.engines.llama_cpp_slots import History, Slot, Slots, history_of
from codriver.engines.llama_cpp_state import State


def path(words: str) -> History:
    """As ``history_of``: an entry tells the whole beginning."""
    parts = words.split()
    return tuple(" ".join(parts[: n + 1]).encode() for n in range(len(parts)))


def noted(*requests: str) -> list[int]:
    branches = Branches()
    return [branches.note(path(words)) for words in requests]


def test_requests_that_part_share_an_opening() -> None:
    assert noted("rules example q1", "rules example q2", "rules example q3") == [0, 2, 2]


def test_a_request_that_comes_again_still_has_its_opening() -> None:
    assert noted("rules q1", "rules q2", "rules q1", "rules") == [0, 1, 1, 0]


def test_the_longest_beginning_counts() -> None:
    assert noted("rules a q1", "rules b q1", "rules a q2", "rules b q2", "rules c") == [0, 1, 2, 2, 1]


def test_a_conversation_that_grows_makes_none() -> None:
    assert noted("rules q1", "rules q1 a1 q2", "rules q1 a1 q2 a2 q3") == [0, 0, 0]
    # A turn that is asked once more, whole, is none either; asked in other words it is.
    assert noted("rules q1 a1 q2", "rules q1 a1 q2", "rules q1", "rules q1 a1 q2", "rules q1 a1 other") == [
        0,
        0,
        0,
        0,
        3,
    ]


def test_strangers_and_single_messages_make_none() -> None:
    assert noted("a", "b", "a", "c d", "a x") == [0, 0, 0, 0, 0]


def test_what_is_barred_makes_none_again() -> None:
    branches = Branches()
    branches.note(path("hi q1"))
    assert branches.note(path("hi q2")) == 1
    branches.bar(b"hi")
    assert [branches.note(path(f"hi q{n}")) for n in range(3, 6)] == [0, 0, 0]
    branches.bar(b"never seen")
    assert branches.note(path("never")) == 0


def test_the_memory_of_beginnings_is_bounded() -> None:
    branches = Branches()
    branches.note(path("rules q1"))
    for number in range(3000):
        branches.note((b"%d" % number,))
    assert branches.note(path("rules q2")) == 0
    assert branches.note(path("rules q3")) == 1
    long = " ".join(f"m{n}" for n in range(200))
    assert [branches.note(path(long)), branches.note(path(f"{long} on")), branches.note(path(f"{long} off"))] == [0] * 3
    assert len(branches._seen) <= 2048


def kept(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def add(openings: Openings, folder: Path, name: str, tokens: int = 10, pinned: bool = False) -> Opening:
    opening = Opening(name.encode(), 1, State(f"{name}.kv", tokens, (0, 0, 0)), pinned)
    (folder / opening.state.file).touch()
    openings.add(opening, folder)
    return opening


def test_the_one_used_longest_ago_goes_with_its_file(tmp_path: Path) -> None:
    openings = Openings(2, 1000)
    add(openings, tmp_path, "fixed", pinned=True)
    one = add(openings, tmp_path, "one")
    add(openings, tmp_path, "two")
    assert openings.find((b"one", b"one more")) == one
    add(openings, tmp_path, "three")
    assert kept(tmp_path) == {"fixed.kv", "one.kv", "three.kv"}
    assert openings.find((b"two",)) is None and openings.find((b"fixed",)) is not None


def test_all_together_are_bounded_in_tokens(tmp_path: Path) -> None:
    openings = Openings(8, 25)
    for name in "abcd":
        add(openings, tmp_path, name)
    assert kept(tmp_path) == {"c.kv", "d.kv"}
    add(openings, tmp_path, "large", tokens=25)
    assert kept(tmp_path) == {"large.kv"}


def test_the_longest_one_is_found_and_a_dropped_one_is_not(tmp_path: Path) -> None:
    openings = Openings(8, 1000)
    short, long = add(openings, tmp_path, "a"), add(openings, tmp_path, "ab")
    assert openings.find((b"a", b"ab", b"abc")) == long
    openings.drop(long, tmp_path)
    openings.drop(long, tmp_path)
    assert openings.find((b"a", b"ab", b"abc")) == short
    assert kept(tmp_path) == {"a.kv"}


# ---------------------------------------------------------------- when one is saved


class Server:
    """Saves and restores as llama.cpp does; a token is a character. ``refuses``: an action it will not do."""

    def __init__(self, folder: Path, refuses: str = "") -> None:
        self.slot_folder = folder
        self._refuses = refuses
        self._held: list[str] = []
        self.done: list[str] = []
        self.saved = asyncio.Event()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        action = path.rpartition("=")[2].strip("/")
        await asyncio.sleep(0)
        if action == self._refuses:
            raise EngineUnavailable("refused")
        self.done.append(action)
        if action == "apply-template":
            return {"prompt": "".join(message["content"] for message in body["messages"])}
        if action == "tokenize":
            return {"tokens": [ord(letter) for letter in body["content"]]}
        if action == "completion":
            self._held = body["prompt"]
        if action == "save":
            (self.slot_folder / body["filename"]).write_text("x" * len(self._held))
            self.saved.set()
            return {"n_saved": len(self._held)}
        return {"n_restored": len((self.slot_folder / body["filename"]).read_text()) if action == "restore" else 0}


class Rig:
    """A keeper over one slot and a scripted server."""

    def __init__(self, folder: Path, refuses: str = "") -> None:
        self.server: Any = Server(folder, refuses)
        self.slots = Slots(1)
        self.openings = Openings(8, 1000)
        self.waits = False
        self.keeper = Keeper(self.openings, self.slots, self._encode, lambda: self.waits, learns=True)

    def _encode(self, request: ChatRequest) -> bytes:
        return msgspec.json.encode({"messages": request.messages, "lora": []})

    async def answer(self, *texts: str | list[Any]) -> Slot:
        request = ChatRequest(messages=[Message(role="user", content=text) for text in texts])
        plan = self.keeper.plan(request, history_of(request))
        slot = self.slots.take(plan.history, saved=plan.saved)
        slot.history = plan.history
        self.slots.give(slot)
        self.keeper.offer(self.server, slot, request, plan)
        if self.keeper._saving is not None:
            await self.keeper._saving
        return slot


RULES = "r" * LEAST_TOKENS


async def test_an_opening_is_saved_behind_the_second_answer(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await rig.answer(RULES, "one")
    assert rig.server.done == []
    slot = await rig.answer(RULES, "two")
    assert rig.server.done[-4:] == ["save", "completion", "save", "restore"]
    assert len(slot.history) == 2 and not rig.slots.permits.locked()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == LEAST_TOKENS
    await rig.answer(RULES, "three")
    assert rig.server.done[-4:] == ["save", "completion", "save", "restore"]
    assert len(rig.server.done) == 8  # once was enough


async def test_a_short_opening_and_a_refused_save_are_not_tried_again(tmp_path: Path) -> None:
    short = Rig(tmp_path)
    for number in range(4):
        await short.answer(RULES[1:], f"{number}")
    assert short.server.done == ["apply-template", "tokenize"] * 2
    for action in ("save", "completion", "apply-template"):
        rig = Rig(tmp_path, refuses=action)
        for number in range(4):
            await rig.answer(RULES, f"{number}")
        assert not rig.slots.permits.locked() and not list(tmp_path.iterdir())
        assert rig.server.done.count("tokenize") <= 2


async def test_saving_gives_way_to_a_request_that_waits(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.waits = True
    await rig.answer(RULES, "one")
    slot = await rig.answer(RULES, "two")
    assert len(slot.history) == 2 and not list(tmp_path.iterdir()) and not rig.slots.permits.locked()
    rig.waits = False
    await rig.answer(RULES, "three")
    assert len(list(tmp_path.iterdir())) == 1


async def test_nothing_is_learned_from_a_request_with_an_image(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for number in range(3):
        await rig.answer(RULES, [ImagePart(image_url=ImageUrl(url=f"data:image/png;base64,{number}"))])
    assert rig.server.done == []


async def test_closing_ends_a_save(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await rig.keeper.aclose()
    await rig.answer(RULES, "one")
    answering = asyncio.ensure_future(rig.answer(RULES, "two"))
    await rig.server.saved.wait()
    await rig.keeper.aclose()
    assert not rig.slots.permits.locked() and not list(tmp_path.iterdir())
    await asyncio.gather(answering, return_exceptions=True)
