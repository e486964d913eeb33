"""``POST /api/embed``: Ollama's embeddings. The body is read as OpenAI's, whose members it shares.

Limits: ``truncate`` is not acted upon; a text that is too long is refused.
"""

from __future__ import annotations

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.messages import EmbedRequest, Usage
from codriver.core.wire import encode

from .exchange import Exchange


async def respond(exchange: Exchange, engine: Engine, request: EmbedRequest, deadline: Deadline) -> None:
    made = await engine.embed(request, deadline)
    exchange.usage = Usage(prompt_tokens=made.tokens, total_tokens=made.tokens)
    exchange.engine = engine.card.id
    taken_s = deadline.clock.monotonic_s() - exchange.arrived_s
    body = {"model": request.model, "embeddings": made.vectors, "total_duration": max(0, round(taken_s * 1e9))}
    await exchange.answer(encode({**body, "load_duration": 0, "prompt_eval_count": made.tokens}))
