"""A chat stream as blocks of one kind each that follow each other, for the APIs that number the parts of an answer.

Rule: only one block is open at a time; an engine that writes two tool calls crosswise is an error.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal

from codriver.core.errors import UpstreamMalformed
from codriver.core.messages import ChatChunk, TokenLogprob, ToolCallDelta

from .exchange import Headers

SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
Kind = Literal["text", "reasoning", "refusal", "call"]


def new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex[:24]


@dataclass(slots=True)
class Block:
    """A part of an answer that is of one kind: a text, a thought, a refusal or a tool call. ``pieces`` joined are its
    text, for a call its arguments.
    """

    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Blocks:
    """A chat stream as blocks that follow each other, for the APIs that number them. Only one is open at a time.

    A subclass gives the bytes for a block's beginning, growth and end. ``thinks`` is whether thoughts are shown.
    """

    def __init__(self, thinks: bool) -> None:
        self.blocks: list[Block] = []
        self._thinks = thinks
        self._open: Block | None = None
        self._calls: dict[int, Block] = {}

    def hear(self, chunk: ChatChunk) -> None:
        """When it came is of no interest in these APIs."""

    def opened(self, block: Block) -> bytes:
        raise NotImplementedError

    def grew(self, block: Block, piece: str, logprobs: list[TokenLogprob]) -> bytes:
        raise NotImplementedError

    def closed(self, block: Block) -> bytes:
        raise NotImplementedError

    def take(self, chunk: ChatChunk) -> bytes:
        """Errors: :class:`UpstreamMalformed` for tool calls that are written at once, crosswise."""
        out: list[bytes] = []
        for choice in chunk.choices[:1]:
            delta = choice.delta
            if delta.reasoning_content and self._thinks:
                self._grow(out, "reasoning", delta.reasoning_content)
            if delta.content:
                told = choice.logprobs.content if choice.logprobs else None
                self._grow(out, "text", delta.content, told or [])
            if delta.refusal:
                self._grow(out, "refusal", delta.refusal)
            for call in delta.tool_calls or ():
                self._grow_call(out, call)
        return b"".join(out)

    def close(self) -> bytes:
        """The end of the block that is open."""
        if self._open is None:
            return b""
        block, self._open = self._open, None
        return self.closed(block)

    def _grow(self, out: list[bytes], kind: Kind, piece: str, logprobs: list[TokenLogprob] | None = None) -> None:
        block = self._open
        if block is None or block.kind != kind:
            block = self._begin(out, Block(kind, len(self.blocks)))
        block.pieces.append(piece)
        block.logprobs.extend(logprobs or [])
        out.append(self.grew(block, piece, logprobs or []))

    def _grow_call(self, out: list[bytes], call: ToolCallDelta) -> None:
        function = call.function or None
        block = self._calls.get(call.index)
        if block is None:
            block = Block("call", len(self.blocks), call.id or new_id("call_"), (function and function.name) or "")
            self._calls[call.index] = self._begin(out, block)
        elif block is not self._open:
            raise UpstreamMalformed("The engine went on with a tool call after it had begun another one.")
        if function and function.arguments:
            block.pieces.append(function.arguments)
            out.append(self.grew(block, function.arguments, []))

    def _begin(self, out: list[bytes], block: Block) -> Block:
        out.append(self.close())
        self.blocks.append(block)
        self._open = block
        out.append(self.opened(block))
        return block
