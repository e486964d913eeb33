"""A server that scores drafts as vLLM does, over any engine that can prefill and tell log-probabilities.

vLLM needs a GPU, or a build of its own; llama.cpp's server does not tell the probabilities of a prompt. This one asks
its engine for one token after each part of the draft: exact, and as many steps as tokens agree, so that its own time
says nothing of vLLM's. It scores up to the first token that is not among the likeliest; the rest counts as one token.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

from aiohttp import web
from msgspec.structs import replace

from codriver.core import wire
from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError
from codriver.core.messages import ChatChunk, ChatRequest, TokenLogprob, Usage, parse_chat

_TOP = 10
_NEVER = -100.0
_SCORING = ("prompt_logprobs", "continue_final_message", "add_generation_prompt")


class ScoringServer:
    """``bytes_up`` and ``bytes_down`` count bodies since :meth:`count`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runner: web.AppRunner | None = None
        self.bytes_up = self.bytes_down = 0

    async def start(self) -> str:
        """Listen on a free port of loopback; the address for an ``openai`` engine."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/{any:.*}", self._healthy)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/v1"

    def count(self) -> None:
        self.bytes_up = self.bytes_down = 0

    async def aclose(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthy(self, http: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        body = await http.read()
        self.bytes_up += len(body)
        members: dict[str, Any] = json.loads(body)
        asked = {name: members.pop(name, None) for name in _SCORING}
        request = replace(parse_chat(json.dumps(members).encode()), raw=None)
        if request.messages[-1].role == "assistant":
            part = request.messages[-1].text()
            request = replace(request, messages=request.messages[:-1], continue_from=part)
            if asked["prompt_logprobs"]:
                try:
                    answer = json.dumps(await self._scored(request, part)).encode()
                except CodriverError as error:
                    return web.json_response(error.body(), status=error.status)
                self.bytes_down += len(answer)
                return web.Response(body=answer, content_type="application/json")
        return await self._streamed(http, request)

    async def _streamed(self, http: web.Request, request: ChatRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(http)
        answer = cast("AsyncGenerator[ChatChunk, None]", self._engine.generate(request, Deadline.never()))
        # Who asked may be gone: then the engine is told to stop.
        with contextlib.suppress(ConnectionError):
            try:
                async with contextlib.aclosing(answer) as chunks:
                    async for chunk in chunks:
                        event = wire.sse(wire.encode_chunk(chunk))
                        self.bytes_down += len(event)
                        await response.write(event)
            except CodriverError as error:
                await response.write(wire.sse(json.dumps(error.body()).encode()))
            await response.write(wire.DONE)
        return response

    async def _scored(self, request: ChatRequest, draft: str) -> dict[str, Any]:
        """vLLM's answer to a request with ``prompt_logprobs`` and one token to write."""
        entries: list[dict[str, Any] | None] = [None]
        at, prompt_tokens = 0, 0
        while at < len(draft):
            step = await self._step(replace(request, continue_from=draft[:at] or None))
            prompt_tokens = prompt_tokens or step.usage.prompt_tokens
            rank, found = _found(step.first, draft[at:])
            entries.append({"0": {"logprob": found.logprob, "rank": rank, "decoded_token": found.token}})
            if rank > _TOP:
                break
            at += len(found.token)
        last = await self._step(request)
        usage = Usage(prompt_tokens + len(entries) - 1, 1, prompt_tokens + len(entries))
        return {
            "id": "scored",
            "created": 1,
            "model": request.model,
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": last.text}, "finish_reason": last.end}
            ],
            "prompt_logprobs": entries,
            "usage": {name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
        }

    async def _step(self, request: ChatRequest) -> _Step:
        answer, usage = Answer(), None
        one = replace(request, stream=True, max_tokens=1, max_completion_tokens=None, logprobs=True, top_logprobs=_TOP)
        first: TokenLogprob | None = None
        async for chunk in self._engine.generate(one, Deadline.never()):
            answer.add(chunk)
            usage = chunk.usage or usage
            for choice in chunk.choices:
                if first is None and choice.logprobs is not None and choice.logprobs.content:
                    first = choice.logprobs.content[0]
        choice_end = answer.completion().choices[0].finish_reason or "length"
        return _Step(answer.text, choice_end, first, usage or Usage(0, 0, 0))


class _Step:
    def __init__(self, text: str, end: str, first: TokenLogprob | None, usage: Usage) -> None:
        self.text, self.end, self.first, self.usage = text, end, first, usage


def _found(told: TokenLogprob | None, left: str) -> tuple[int, TokenLogprob]:
    """The longest of the likeliest tokens that ``left`` begins with, and its rank; else all of it, far behind."""
    if told is not None:
        likeliest = [(top.token, top.logprob) for top in told.top_logprobs] or [(told.token, told.logprob)]
        fitting = [(len(text), rank) for rank, (text, _) in enumerate(likeliest, 1) if text and left.startswith(text)]
        if likeliest and fitting:
            # The likeliest itself counts before a longer one that is less likely.
            rank = 1 if (len(likeliest[0][0]), 1) in fitting else max(fitting)[1]
            return rank, TokenLogprob(*likeliest[rank - 1])
    return _TOP + 1, TokenLogprob(left, _NEVER)
