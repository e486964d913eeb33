"""What a client was given, judged against the one right answer.

``whole``: exactly the right answer. ``told``: no answer, and the client cannot miss it - an HTTP error status, an
error event, a connection that broke inside the answer. ``lie``: it looks complete and is not right, or it stops without
a word. ``hang``: not over by the deadline and its grace. Where a doubt is possible it is decided for the system: a 200
with an error object and no choices counts as told, a right text without its finish reason as whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from .fault_answers import TOOL, Asks, expected

Kind = Literal["whole", "told", "lie", "hang"]
KINDS: tuple[Kind, ...] = ("whole", "told", "lie", "hang")
Ended = Literal["clean", "broken", "not"]
_TOLD_CHARS = 120


@dataclass(frozen=True)
class Heard:
    """An answer as it came. ``ended``: in order, by a connection that broke, or not by the time limit.

    ``status`` is 0 where no head came; ``body`` is without HTTP's framing.
    """

    status: int
    content_type: str
    body: bytes
    ended: Ended
    took_ms: float


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    why: str = ""


@dataclass
class _Said:
    """What an answer says, put together from its chunks or its body."""

    text: str = ""
    arguments: str = ""
    tool: str = ""
    finish: str = ""
    error: str = ""

    def take(self, part: dict[str, Any]) -> None:
        if "error" in part and not part.get("choices"):
            self.error = _words(part["error"])
            return
        for choice in part.get("choices") or []:
            said = choice.get("delta") or choice.get("message") or {}
            self.text += said.get("content") or ""
            for call in said.get("tool_calls") or []:
                function = call.get("function") or {}
                self.tool += function.get("name") or ""
                self.arguments += function.get("arguments") or ""
            self.finish = choice.get("finish_reason") or self.finish

    def answer(self, asks: Asks) -> str:
        return self.arguments if asks == "tools" else self.text


def judge(heard: Heard, asks: Asks, streamed: bool) -> Verdict:
    """The verdict on one answer; ``why`` is for people."""
    if heard.ended == "not":
        so_far = "nothing" if not heard.body else f"{len(heard.body)} bytes"
        return Verdict("hang", f"{so_far} after {heard.took_ms:.0f} ms")
    if heard.status >= 400:
        return Verdict("told", f"HTTP {heard.status}: {_error_in(heard.body)}")
    if heard.status == 0:
        return Verdict("told", "the connection broke before an answer")
    if not 200 <= heard.status < 300:
        return Verdict("told", f"HTTP {heard.status}")
    if streamed and heard.content_type == "text/event-stream":
        return _judge_stream(heard, asks)
    return _judge_whole(heard, asks)


def _judge_stream(heard: Heard, asks: Asks) -> Verdict:
    said, done = _Said(), False
    for payload in payloads(heard.body):
        if payload.strip() == b"[DONE]":
            done = True
            continue
        try:
            part = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Verdict("told", "an event that is not JSON, on which every client stops")
        if isinstance(part, dict):
            said.take(part)
    if _is_right(said, asks):
        return Verdict("whole", "" if said.finish else "without its finish reason")
    if said.finish and said.finish != "error":
        return Verdict("lie", f"finish_reason {said.finish}, and {_wrong(said, asks)}")
    if said.error or said.finish == "error":
        return Verdict("told", f"error event: {said.error}")
    if heard.ended == "broken":
        return Verdict("told", "the connection broke inside the answer")
    return Verdict("lie", f"{'[DONE]' if done else 'its end'} without a word, and {_wrong(said, asks)}")


def _judge_whole(heard: Heard, asks: Asks) -> Verdict:
    if heard.ended == "broken":
        return Verdict("told", "the connection broke inside the answer")
    try:
        body = msgspec.json.decode(heard.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Verdict("told", "a body that is not JSON, on which every client stops")
    said = _Said()
    if isinstance(body, dict):
        said.take(body)
    if _is_right(said, asks):
        return Verdict("whole", "" if said.finish else "without its finish reason")
    if said.error:
        return Verdict("told", f"error object with status {heard.status}: {said.error}")
    return Verdict("lie", f"status {heard.status}, and {_wrong(said, asks)}")


def _is_right(said: _Said, asks: Asks) -> bool:
    if said.answer(asks) != expected(asks):
        return False
    if asks == "tools":
        return said.tool == TOOL and said.finish in ("", "tool_calls", "stop")
    return said.finish in ("", "stop")


def _wrong(said: _Said, asks: Asks) -> str:
    """How the answer differs from the right one, in words."""
    got, right = said.answer(asks), expected(asks)
    if not got:
        return "it is empty"
    if got == right:
        return f"its finish reason is {said.finish}" if asks != "tools" else f"it calls '{said.tool}'"
    if right.startswith(got):
        return f"it stops after {len(got)} of {len(right)} characters"
    same = next((at for at, (a, b) in enumerate(zip(got, right, strict=False)) if a != b), min(len(got), len(right)))
    return f"it is another text from character {same} on"


def payloads(body: bytes) -> Iterator[bytes]:
    """The data of each event; of the last one too, where the stream ends inside it with a whole line."""
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def _error_in(body: bytes) -> str:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:_TOLD_CHARS].decode("utf-8", "replace")
    return _words(found.get("error", found) if isinstance(found, dict) else found)


def _words(error: Any) -> str:
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:_TOLD_CHARS]
