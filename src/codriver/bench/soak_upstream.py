"""The soak's cloud: the fault server in a process of its own, told by each request's tag what to do with it.

It also looks at what it is sent: no private text, and of a session only whole exchanges, in order, each with the right
answer. What it finds is appended to a file, a JSON object a line, so that it outlives a kill. ``GET /health`` tells how
many calls are being answered. Run as ``python -m codriver.bench.soak_upstream PORT FILE PARENT_PID``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from .fault_answers import TEXT, RightAnswer
from .fault_call import Call, Scene, Tempo
from .fault_cases import BEHAVIOURS, HEALTHY, Behaviour, Fault, Scenario
from .fault_server import FaultServer
from .soak_tags import Tag, tag_in, tells

SYSTEM = "soak"
_SCENARIO = Scenario(Fault(HEALTHY), True)
_PARENT_POLL_S = 0.5
_BURST = "500 burst"


class Finding(msgspec.Struct, omit_defaults=True):
    """Something that the upstream saw: what is wrong, or, of a session, which turns came before ``turn``."""

    wrong: str = ""
    session: str = ""
    turn: int = 0
    seen: list[int] = []


class SoakServer(FaultServer):
    """Chooses a fault by the tag in the request's text. ``findings`` gets what is wrong with the requests."""

    def __init__(self, tempo: Tempo, findings: Path, port: int = 0) -> None:
        super().__init__(tempo, port=port)
        self._findings = findings
        self._bursts = 0
        self._soaked = self.scene(SYSTEM, _SCENARIO)

    @property
    def address(self) -> str:
        return self.url(SYSTEM, _SCENARIO, "first")

    def _behaviour(self, body: dict[str, Any], call: Call) -> Behaviour:
        prompt = body.get("prompt")
        if prompt is not None:
            call.right = RightText(**{name: getattr(call.right, name) for name in call.right.__dataclass_fields__})
        for found in looked_at(body):
            with self._findings.open("ab") as file:
                file.write(msgspec.json.encode(found) + b"\n")
        tag = tag_in(prompt if isinstance(prompt, str) else _last_text(body))
        if tag is not None and tag.fault == _BURST:
            self._bursts += 1
            call.number = self._bursts % 4
        return BEHAVIOURS.get(tag.fault if tag else HEALTHY, BEHAVIOURS[HEALTHY])

    async def _probe(
        self, scene: Scene | None, target: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        state = {"status": "ok", "working": self._soaked.working, "calls": self._soaked.first}
        await Call({}, 0, Scene(), self._tempo, (reader, writer)).whole(state)
        return True


class RightText(RightAnswer):
    """The right answer in the shape of ``/v1/completions``."""

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "text": delta.get("content") or "", "finish_reason": finish_reason, "logprobs": None}
        return self._encode({"object": "text_completion", "choices": [choice]})

    def whole(self, text: str | None = None, finish_reason: str | None = "") -> dict[str, Any]:
        body = super().whole(text, finish_reason)
        choice = {"index": 0, "text": body["choices"][0]["message"]["content"], "logprobs": None}
        choice["finish_reason"] = body["choices"][0].get("finish_reason")
        return {**body, "object": "text_completion", "choices": [choice]}


def looked_at(body: dict[str, Any]) -> list[Finding]:
    """What there is to say of one request: of a session always its turns, of others only what is wrong."""
    found: list[Finding] = []
    shown = tells(msgspec.json.encode(body).decode())
    messages = [one for one in body.get("messages") or [] if isinstance(one, dict)]
    tag = tag_in(_last_text(body))
    session, turn = (tag.session, tag.turn) if tag else ("", 0)
    if shown:
        found.append(Finding(f"the cloud was shown {shown}", session, turn))
    if tag is None or not session:
        return found
    turns, wrong = _history(messages, tag)
    return [*found, Finding(wrong, session, turn, turns)]


def _history(messages: list[dict[str, Any]], tag: Tag) -> tuple[list[int], str]:
    """The turns before the last user's, and what is wrong with them."""
    *before, last = messages
    if last.get("role") == "assistant":
        *before, _ = before
    turns: list[int] = []
    for question, answer in zip(before[::2], before[1::2], strict=False):
        asked = tag_in(_text(question))
        if question.get("role") != "user" or answer.get("role") != "assistant" or asked is None:
            return turns, "a session's messages do not alternate"
        if asked.session != tag.session:
            return turns, f"a turn of the session '{asked.session}' is in that of '{tag.session}'"
        if _text(answer) != TEXT:
            return turns, f"turn {asked.turn} of a session has another answer than the client got"
        turns.append(asked.turn)
    if len(before) % 2:
        return turns, "a session holds a question without its answer"
    if [*turns, tag.turn] != sorted({*turns, tag.turn}):
        return turns, f"the turns of a session are out of order: {[*turns, tag.turn]}"
    return turns, ""


def _last_text(body: dict[str, Any]) -> str:
    """The text of the last message of the user."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    asked = [one for one in body.get("messages") or [] if isinstance(one, dict) and one.get("role") == "user"]
    return _text(asked[-1]) if asked else ""


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def read_findings(file: Path) -> list[Finding]:
    """All findings so far; a line that a kill cut is left out."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(line, type=Finding))
    return found


async def _run(port: int, findings: Path, parent_pid: int) -> None:
    tempo = replace(Tempo(), drip_limit_s=6.0)
    async with SoakServer(tempo, findings, port):
        while os.getppid() == parent_pid:  # noqa: ASYNC110 - a parent's end is no event that a child can await
            await asyncio.sleep(_PARENT_POLL_S)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_run(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
