"""Makes one client-facing stream out of the chunks of several engines: one id, one role, one end, and the truth about
it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from codriver.core.answer import Answer
from codriver.core.engine import EngineCard
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta
from codriver.core.wire import with_extension

from .resume import OverlapRemover, with_text

Extension = Callable[[], dict[str, object]]


class Shaper:
    """``begin`` at each attempt, ``take`` each chunk, ``deliver`` what goes out. ``delivered`` is what the client
    has.
    """

    def __init__(self, request: ChatRequest) -> None:
        self._wants_logprobs = bool(request.logprobs)
        self.delivered = Answer()
        self.delivered_tokens = 0
        self.restarting = False
        self.finished = False
        self._head: ChatChunk | None = None
        self._takeover = False
        self._failovers: list[dict[str, object]] = []
        self._overlap: OverlapRemover | None = None

    def begin(self, card: EngineCard) -> None:
        resumes = self._takeover and not self.restarting and not card.can("prefill")
        self._overlap = OverlapRemover(self.delivered.text) if resumes else None
        self._takeover = False

    def fail_over(self, from_engine: str, to_engine: str, policy: str, error: str) -> None:
        """The client has part of an answer and another engine goes on."""
        self._takeover = True
        self.restarting = policy == "restart"
        self._failovers.append(
            {
                "from": from_engine,
                "to": to_engine,
                "policy": policy,
                "error": error,
                "at_chars": len(self.delivered.text),
            }
        )

    def take(self, chunk: ChatChunk, extension: Extension) -> list[ChatChunk]:
        """The chunks to give out for one that came in: none while a repetition is being cut, two at a restart."""
        if not self._wants_logprobs and any(choice.logprobs for choice in chunk.choices):
            choices = [msgspec.structs.replace(choice, logprobs=None) for choice in chunk.choices]
            chunk = msgspec.structs.replace(chunk, choices=choices, raw=None)
        ready: list[ChatChunk] = []
        if self._head is None:
            self._head = chunk
        elif self._failovers:
            chunk = self._as_one_stream(chunk)
            if self.restarting:
                self.restarting = False
                ready.append(self._restart_mark())
        if self._overlap is not None:
            chunk = self._without_overlap(chunk, self._overlap)
        if chunk.finish_reason is not None:
            self.finished = True
            told = extension()
            if self._failovers:
                told["failovers"] = self._failovers
            chunk = with_extension(chunk, told)
        elif not chunk.choices and not chunk.usage:
            return ready
        return [*ready, chunk]

    def deliver(self, chunk: ChatChunk) -> ChatChunk:
        """Note that the client gets ``chunk``."""
        self.delivered.add(chunk)
        if chunk.text():
            self.delivered_tokens += 1
        return chunk

    def _as_one_stream(self, chunk: ChatChunk) -> ChatChunk:
        """A later engine's chunk under the first one's id and name, without a second role."""
        assert self._head is not None
        choices = [
            msgspec.structs.replace(choice, delta=msgspec.structs.replace(choice.delta, role=None))
            for choice in chunk.choices
        ]
        head = self._head
        return msgspec.structs.replace(
            chunk, id=head.id, created=head.created, model=head.model, choices=choices, raw=None
        )

    def _restart_mark(self) -> ChatChunk:
        assert self._head is not None
        head = self._head
        mark = {"restart": True, "discard_chars": len(self.delivered.text)}
        return ChatChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=[ChunkChoice(delta=Delta(role="assistant", content=""))],
            codriver=mark,
        )

    @staticmethod
    def _without_overlap(chunk: ChatChunk, overlap: OverlapRemover) -> ChatChunk:
        text = overlap.take(chunk.text())
        if chunk.finish_reason is not None:
            text += overlap.flush()
        return with_text(chunk, text) if chunk.choices else chunk
