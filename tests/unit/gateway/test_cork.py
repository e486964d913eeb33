"""Writes leave once a turn, in order, and nothing is lost at the end."""

from __future__ import annotations

import asyncio
from typing import Any

from codriver.gateway.cork import LIMIT_BYTES, Cork


class Recorder(asyncio.Transport):
    """A transport that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def write(self, data: Any) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    def write_eof(self) -> None:
        self.told.append("eof")

    def is_closing(self) -> bool:
        return "close" in self.told

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def test_one_write_a_turn() -> None:
    inner = Recorder()
    cork = Cork(inner, asyncio.get_running_loop())
    cork.write(b"head")
    cork.write(b"body")
    assert inner.told == []
    await asyncio.sleep(0)
    cork.write(b"next")
    await asyncio.sleep(0)
    assert inner.told == [b"headbody", b"next"]


async def test_a_flush_does_not_wait_and_leaves_nothing_behind() -> None:
    inner = Recorder()
    cork = Cork(inner, asyncio.get_running_loop())
    cork.write(b"a")
    cork.flush()
    await asyncio.sleep(0)
    assert inner.told == [b"a"]


async def test_much_is_written_at_once() -> None:
    inner = Recorder()
    cork = Cork(inner, asyncio.get_running_loop())
    cork.write(b"x" * (LIMIT_BYTES + 1))
    assert len(inner.told) == 1


async def test_closing_writes_first_and_aborting_does_not() -> None:
    loop = asyncio.get_running_loop()
    closed, ended, aborted = Recorder(), Recorder(), Recorder()
    for inner in (closed, ended, aborted):
        cork = Cork(inner, loop)
        cork.write(b"a")
        {id(closed): cork.close, id(ended): cork.write_eof, id(aborted): cork.abort}[id(inner)]()
        await asyncio.sleep(0)
    assert (closed.told, ended.told, aborted.told) == ([b"a", "close"], [b"a", "eof"], ["abort"])
    assert Cork(closed, loop).is_closing()
