"""Makes one client-facing stream out of the chunks of several engines: one id, one role, one end, one usage, and the
truth about it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from codriver.core.answer import Answer
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, Usage
from codriver.core.wire import with_extension

from .resume import OverlapRemover, without_overlap

Extension = Callable[[], dict[str, object]]


class Shaper:
    """``begin`` at each attempt, ``take`` each chunk, ``deliver`` what goes out. ``delivered`` is what the client
    has; ``ended`` tells that the attempt's answer is whole, ``failovers`` who went on for whom.
    """

    def __init__(self, request: ChatRequest) -> None:
        self._choices = request.n or 1
        self._streams = request.stream
        self._wants_logprobs = bool(request.logprobs)
        self.delivered = Answer()
        self.restarting = False
        self.ended = False
        self._ends = 0
        self._head: ChatChunk | None = None
        self.failovers: list[dict[str, object]] = []
        self._overlap: OverlapRemover | None = None
        self._earlier_tokens = 0

    @property
    def begun(self) -> bool:
        """True when the client has been given anything."""
        return self._head is not None

    def begin(self, repeats: bool) -> None:
        """A new engine's chunks come. ``repeats``: it was told what the client has, and may say it again."""
        self.ended = False
        self._ends = 0
        self._earlier_tokens = 0 if self.restarting else self.delivered.text_pieces
        self._overlap = OverlapRemover(self.delivered.text) if repeats and self._earlier_tokens else None

    def fail_over(self, from_engine: str, to_engine: str, policy: str, error: str) -> None:
        """The client has part of an answer and another engine goes on."""
        self.restarting = policy == "restart"
        self.failovers.append(
            {
                "from": from_engine,
                "to": to_engine,
                "policy": policy,
                "error": error,
                "at_chars": len(self.delivered.text),
            }
        )

    def take(self, chunk: ChatChunk, extension: Extension) -> list[ChatChunk]:
        """The chunks to give out for one that came in: none that is empty, two at a restart."""
        ends = False
        for choice in chunk.choices:
            if choice.logprobs is not None and not self._wants_logprobs:
                chunk = _without_logprobs(chunk)
            if choice.finish_reason:
                self._ends += 1
                ends = self.ended = self._ends >= self._choices
        ready: list[ChatChunk] = []
        if self.failovers:
            chunk = self._as_one_stream(chunk)
            if self.restarting:
                self.restarting = False
                ready.append(self._restart_mark())
        if self._overlap is not None:
            chunk = without_overlap(chunk, self._overlap)
        if ends:
            if self._streams and chunk.whole is True:
                # A server that answered whole although asked to stream: its body is not an event.
                chunk = msgspec.structs.replace(chunk, whole=msgspec.UNSET, raw=msgspec.UNSET)
            told = extension()
            if self.failovers:
                told["failovers"] = self.failovers
            chunk = with_extension(chunk, told)
        elif not chunk.choices and not chunk.usage:
            return ready
        ready.append(chunk)
        return ready

    def deliver(self, chunk: ChatChunk) -> ChatChunk:
        """Note that the client gets ``chunk``."""
        if self._head is None:
            self._head = chunk
        self.delivered.add(chunk)
        return chunk

    def close(self, finish_reason: str, told: dict[str, object]) -> ChatChunk:
        """The last chunk of an answer whose engine could not send it any more."""
        assert self._head is not None
        head, choice = self._head, ChunkChoice(finish_reason=finish_reason)
        if self.failovers:
            told["failovers"] = self.failovers
        last = ChatChunk(id=head.id, created=head.created, model=head.model, choices=[choice], codriver=told)
        return self.deliver(last)

    def _as_one_stream(self, chunk: ChatChunk) -> ChatChunk:
        """A later engine's chunk under the first one's id and name, without a second role, with the whole's usage."""
        assert self._head is not None
        choices = [
            msgspec.structs.replace(choice, delta=msgspec.structs.replace(choice.delta, role=None))
            for choice in chunk.choices
        ]
        head, usage = self._head, chunk.usage
        if usage:
            written = self._earlier_tokens + usage.completion_tokens
            usage = Usage(usage.prompt_tokens, written, usage.prompt_tokens + written, usage.prompt_tokens_details)
        return msgspec.structs.replace(
            chunk,
            id=head.id,
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
            whole=msgspec.UNSET,
            raw=msgspec.UNSET,
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


def _without_logprobs(chunk: ChatChunk) -> ChatChunk:
    choices = [msgspec.structs.replace(choice, logprobs=None) for choice in chunk.choices]
    return msgspec.structs.replace(chunk, choices=choices, raw=msgspec.UNSET)
