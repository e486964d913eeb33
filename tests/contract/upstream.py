"""A real OpenAI-compatible server on loopback, answering with any engine: what the remote engine is tested against."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from codriver.core import wire
from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError
from codriver.core.messages import ChatChunk, ChatRequest, parse_chat, parse_embed


@dataclass
class Upstream:
    """``bodies`` and ``headers`` of every request; ``left`` is set when a client goes away in mid-answer."""

    engine: Engine
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def chat(self, http: web.Request) -> web.StreamResponse:
        body = await self._take(http)
        request = parse_chat(body)
        if request.messages and request.messages[-1].role == "assistant":
            *request.messages, partial = request.messages
            request.continue_from = partial.text()
        request.raw = None
        return await self._answer(
            http, self.engine.generate(request, Deadline.never()), request.stream, wire.encode_chunk
        )

    async def completions(self, http: web.Request) -> web.StreamResponse:
        body = json.loads(await self._take(http))
        chat = {key: value for key, value in body.items() if key not in ("prompt", "logprobs")}
        chat["messages"] = [{"role": "user", "content": ""}]
        if body.get("logprobs"):
            chat |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        request = msgspec.convert(chat, type=ChatRequest)
        request.messages, request.prompt = [], body["prompt"]
        return await self._answer(http, self.engine.generate(request, Deadline.never()), request.stream, _as_text)

    async def embeddings(self, http: web.Request) -> web.StreamResponse:
        made = await self.engine.embed(parse_embed(await self._take(http)), Deadline.never())
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(made.vectors)]
        usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
        return web.json_response({"object": "list", "data": data, "model": made.model, "usage": usage})

    async def models(self, http: web.Request) -> web.StreamResponse:
        card = self.engine.card
        entry = {"id": card.model, "object": "model", "max_model_len": card.context_tokens}
        return web.json_response({"object": "list", "data": [entry]})

    async def health(self, http: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _take(self, http: web.Request) -> bytes:
        self.headers.append(dict(http.headers))
        self.bodies.append(await http.read())
        return self.bodies[-1]

    async def _answer(
        self, http: web.Request, chunks: AsyncIterator[ChatChunk], stream: bool, encode: object
    ) -> web.StreamResponse:
        try:
            first = await anext(chunks)
        except CodriverError as error:
            return web.json_response(error.body(), status=error.status)
        if not stream:
            return await self._whole(first, chunks, encode)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        try:
            await response.write(wire.sse(encode(first)))  # type: ignore[operator]
            async for chunk in chunks:
                await response.write(wire.sse(encode(chunk)))  # type: ignore[operator]
            await response.write(wire.DONE)
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()
            raise
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]
        return response

    async def _whole(self, first: ChatChunk, chunks: AsyncIterator[ChatChunk], encode: object) -> web.Response:
        if encode is _as_text:
            return web.Response(body=_as_text(first), content_type="application/json")
        answer = Answer()
        answer.add(first)
        async for chunk in chunks:
            answer.add(chunk)
        return web.Response(body=wire.encode(answer.completion()), content_type="application/json")


def _as_text(chunk: ChatChunk) -> bytes:
    """A chunk in the old text completion format, with OpenAI's parallel lists of log-probabilities."""
    choices = []
    for choice in chunk.choices:
        content = (choice.logprobs.content if choice.logprobs else None) or []
        logprobs = {
            "tokens": [token.token for token in content],
            "token_logprobs": [token.logprob for token in content],
            "top_logprobs": [{top.token: top.logprob for top in token.top_logprobs} for token in content],
        }
        choices.append(
            {
                "text": choice.delta.content or "",
                "index": choice.index,
                "logprobs": logprobs if content else None,
                "finish_reason": choice.finish_reason,
            }
        )
    body = {"id": chunk.id, "object": "text_completion", "created": chunk.created, "model": chunk.model}
    return wire.encode({**body, "choices": choices, **({"usage": chunk.usage} if chunk.usage else {})})


@asynccontextmanager
async def serve(engine: Engine, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """The server on a free port of loopback, for as long as the context lasts."""
    upstream = Upstream(engine)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", upstream.chat)
    app.router.add_post("/v1/completions", upstream.completions)
    app.router.add_post("/v1/embeddings", upstream.embeddings)
    app.router.add_get("/v1/models", upstream.models)
    app.router.add_get("/health", upstream.health)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    upstream.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield upstream
    finally:
        await runner.cleanup()
