"""An answer in the OpenAI Responses shape: a ``response`` body, or its stream of numbered events.

https://platform.openai.com/docs/api-reference/responses-streaming. Rules: a stream ends with ``response.completed``,
``response.incomplete`` or ``response.failed``, and the first two follow a finish reason and nothing else.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from codriver.core.errors import CodriverError
from codriver.core.messages import ChatChunk, ChatCompletion, TokenLogprob, TopLogprob, Usage
from codriver.core.wire import encode, sse

from .blocks import SSE_HEADERS, Block, Blocks, new_id
from .refusals import OPENAI

_PREFIXES = {"call": "fc_", "reasoning": "rs_"}
_UNFINISHED = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseWriter(Blocks):
    """``request`` are the members that the response repeats. Thoughts are items of their own."""

    headers = SSE_HEADERS

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(thinks=True)
        self._request = request
        self._id = new_id("resp_")
        self._model = ""
        self._created_s = 0
        self._number = 0
        self._item_ids: list[str] = []
        self._unfinished = ""

    def take(self, chunk: ChatChunk) -> bytes:
        begin = b""
        if not self._created_s:
            self._model, self._created_s = chunk.model, chunk.created or int(time.time())
            begin = self._event("response.created", response=self._response("in_progress"))
            begin += self._event("response.in_progress", response=self._response("in_progress"))
        return begin + super().take(chunk)

    def opened(self, block: Block) -> bytes:
        self._item_ids.append(new_id(_PREFIXES.get(block.kind, "msg_")))
        item = self._item(block, "in_progress")
        if block.kind != "call":
            item["content"] = []
        added = self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "call":
            return added
        return added + self._part_event("response.content_part.added", block, part=_part(block))

    def grew(self, block: Block, piece: str, logprobs: list[TokenLogprob]) -> bytes:
        if block.kind == "call":
            return self._item_event("response.function_call_arguments.delta", block, delta=piece)
        if block.kind != "text":
            return self._part_event(f"response.{_part_kind(block)}.delta", block, delta=piece)
        return self._part_event("response.output_text.delta", block, delta=piece, logprobs=_logprobs(logprobs))

    def closed(self, block: Block) -> bytes:
        status = "incomplete" if self._unfinished else "completed"
        if block.kind == "call":
            done = self._item_event(
                "response.function_call_arguments.done", block, name=block.name, arguments=block.text
            )
        else:
            whole: dict[str, Any] = {"refusal" if block.kind == "refusal" else "text": block.text}
            if block.kind == "text":
                whole["logprobs"] = _logprobs(block.logprobs)
            done = self._part_event(f"response.{_part_kind(block)}.done", block, **whole)
            done += self._part_event("response.content_part.done", block, part=_part(block))
        return done + self._event("response.output_item.done", output_index=block.index, item=self._item(block, status))

    def end(self, answer: ChatCompletion) -> bytes:
        self._unfinished = _UNFINISHED.get(answer.choices[0].finish_reason or "", "")
        closed = self.close()
        response = self._ended(answer)
        return closed + self._event(f"response.{response['status']}", response=response)

    def body(self, answer: ChatCompletion) -> bytes:
        self._unfinished = _UNFINISHED.get(answer.choices[0].finish_reason or "", "")
        return encode(self._ended(answer))

    def last_event(self, error: CodriverError) -> bytes:
        if not self._created_s:
            return OPENAI.last_event(error)
        response = self._response("failed")
        response["output"] = [self._item(block, "incomplete") for block in self.blocks]
        response["error"] = {"code": error.code, "message": error.message}
        return self._event("response.failed", response=response)

    # ------------------------------------------------------------ parts of a response

    def _ended(self, answer: ChatCompletion) -> dict[str, Any]:
        status = "incomplete" if self._unfinished else "completed"
        response = self._response(status)
        last = len(self.blocks) - 1
        response["output"] = [
            self._item(block, status if block.index == last else "completed") for block in self.blocks
        ]
        response["usage"] = _usage(answer.usage)
        if self._unfinished:
            response["incomplete_details"] = {"reason": self._unfinished}
        if answer.codriver:
            response["codriver"] = answer.codriver
        return response

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": [],
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self._request,
        }

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_ids[block.index], "status": status}
        if block.kind == "call":
            call = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
            return {**item, "type": "function_call", **call}
        if block.kind == "reasoning":
            return {**item, "type": "reasoning", "summary": [], "content": [_part(block)]}
        return {**item, "type": "message", "role": "assistant", "content": [_part(block)]}

    def _event(self, kind: str, **members: Any) -> bytes:
        number = self._number
        self._number += 1
        return f"event: {kind}\n".encode() + sse(encode({"type": kind, "sequence_number": number, **members}))

    def _item_event(self, kind: str, block: Block, **members: Any) -> bytes:
        return self._event(kind, item_id=self._item_ids[block.index], output_index=block.index, **members)

    def _part_event(self, kind: str, block: Block, **members: Any) -> bytes:
        return self._item_event(kind, block, content_index=0, **members)


def _part_kind(block: Block) -> str:
    return {"text": "output_text", "reasoning": "reasoning_text"}.get(block.kind, block.kind)


def _part(block: Block) -> dict[str, Any]:
    if block.kind == "refusal":
        return {"type": "refusal", "refusal": block.text}
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": _logprobs(block.logprobs)}


def _logprobs(tokens: list[TokenLogprob]) -> list[dict[str, Any]]:
    return [{**_logprob(one), "top_logprobs": [_logprob(top) for top in one.top_logprobs]} for one in tokens]


def _logprob(one: TokenLogprob | TopLogprob) -> dict[str, Any]:
    return {"token": one.token, "bytes": one.bytes or [], "logprob": one.logprob}


def _usage(usage: Usage | msgspec.UnsetType | None) -> dict[str, Any] | None:
    if not usage:
        return None
    details = usage.prompt_tokens_details or None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": details.cached_tokens if details else 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
