"""An answer in the Anthropic Messages shape: a ``message`` body, or its stream of events.

https://docs.anthropic.com/en/api/messages-streaming. Rule: ``message_stop`` follows a finish reason and nothing else.
"""

from __future__ import annotations

from typing import Any

import msgspec

from codriver.core.errors import CodriverError, UpstreamMalformed
from codriver.core.messages import ChatChunk, ChatCompletion, TokenLogprob, Usage
from codriver.core.wire import encode, sse

from .blocks import SSE_HEADERS, Block, Blocks, new_id
from .refusals import ANTHROPIC

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_DELTAS = {"text": "text_delta", "refusal": "text_delta", "reasoning": "thinking_delta", "call": "input_json_delta"}
_MEMBERS = {"text": "text", "refusal": "text", "reasoning": "thinking", "call": "partial_json"}


class MessageWriter(Blocks):
    """``model`` is what the client asked for; what answered is told where the engine says it."""

    headers = SSE_HEADERS

    def __init__(self, model: str, thinks: bool) -> None:
        super().__init__(thinks)
        self._id = new_id("msg_")
        self._model = model
        self._begun = False

    def take(self, chunk: ChatChunk) -> bytes:
        begin = b""
        if not self._begun:
            self._begun = True
            self._model = chunk.model or self._model
            message = self._message([], None, {"input_tokens": 0, "output_tokens": 0})
            begin = _event("message_start", message=message) + _event("ping")
        return begin + super().take(chunk)

    def opened(self, block: Block) -> bytes:
        return _event("content_block_start", index=block.index, content_block=_block(block, {}))

    def grew(self, block: Block, piece: str, logprobs: list[TokenLogprob]) -> bytes:
        delta = {"type": _DELTAS[block.kind], _MEMBERS[block.kind]: piece}
        return _event("content_block_delta", index=block.index, delta=delta)

    def closed(self, block: Block) -> bytes:
        return _event("content_block_stop", index=block.index)

    def end(self, answer: ChatCompletion) -> bytes:
        closed = self.close()
        self._content(answer)
        told = {"codriver": answer.codriver} if answer.codriver else {}
        delta = {"stop_reason": self._reason(answer), "stop_sequence": None}
        return (
            closed
            + _event("message_delta", delta=delta, usage=_usage(answer.usage), **told)
            + _event("message_stop", **told)
        )

    def body(self, answer: ChatCompletion) -> bytes:
        message = self._message(self._content(answer), self._reason(answer), _usage(answer.usage))
        if answer.codriver:
            message["codriver"] = answer.codriver
        return encode(message)

    def last_event(self, error: CodriverError) -> bytes:
        return ANTHROPIC.last_event(error)

    def _message(self, content: list[Any], reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage,
        }

    def _content(self, answer: ChatCompletion) -> list[dict[str, Any]]:
        """The whole content. A call that the token limit cut is no call, and is left out of it."""
        content: list[dict[str, Any]] = []
        for block in self.blocks:
            try:
                content.append(_block(block, _arguments(block) if block.kind == "call" else {}))
            except UpstreamMalformed:
                if block is not self.blocks[-1] or answer.choices[0].finish_reason != "length":
                    raise
        return content

    def _reason(self, answer: ChatCompletion) -> str:
        finish = answer.choices[0].finish_reason or ""
        if finish == "stop" and any(block.kind == "call" for block in self.blocks):
            return "tool_use"
        return _REASONS.get(finish, "end_turn")


def _event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\n".encode() + sse(encode({"type": kind, **members}))


def _block(block: Block, arguments: dict[str, Any]) -> dict[str, Any]:
    """A content block as far as it goes; ``arguments`` are a call's, whole."""
    if block.kind == "call":
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _arguments(block: Block) -> dict[str, Any]:
    """A tool call's arguments. Errors: :class:`UpstreamMalformed` where they are no JSON object."""
    try:
        return msgspec.json.decode(block.text or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UpstreamMalformed("The engine called a tool with arguments that are no JSON object.") from error


def _usage(usage: Usage | msgspec.UnsetType | None) -> dict[str, Any]:
    """Anthropic counts what was read from a cache apart."""
    if not usage:
        return {"input_tokens": 0, "output_tokens": 0}
    details = usage.prompt_tokens_details or None
    cached = details.cached_tokens if details else 0
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
