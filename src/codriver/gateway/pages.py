"""The routes that are read, not asked: the models, the health page, the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from codriver.core.engine import Engine, EngineCard
from codriver.core.wire import encode

from .exchange import Exchange


def model(name: str, card: EngineCard, created_s: int) -> dict[str, Any]:
    """One model as OpenAI lists it, with what the engine's card says beside it."""
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": "codriver",
        "codriver": {
            "engine": card.id,
            "locality": card.locality,
            "modalities": sorted(card.modalities),
            "capabilities": sorted(card.capabilities),
            "context_tokens": card.context_tokens,
        },
    }


async def models(exchange: Exchange, known: Mapping[str, Engine], created_s: int) -> None:
    """``GET /v1/models``."""
    data = [model(name, engine.card, created_s) for name, engine in known.items()]
    await exchange.answer(encode({"object": "list", "data": data}))


def model_name(path: str) -> str:
    """The name in ``/v1/models/{id}``; it may hold slashes."""
    return unquote(path.removeprefix("/v1/models/"))


async def health(exchange: Exchange, known: Mapping[str, Engine], draining: bool) -> None:
    """``GET /healthz``: 200 while any engine can answer, 503 otherwise and while draining."""
    states = {name: engine.health() for name, engine in known.items()}
    able = any(state.state in ("ready", "busy") for state in states.values())
    status = "draining" if draining else "ok" if able else "down"
    page = {"status": status, "engines": states}
    await exchange.answer(encode(page), 200 if status == "ok" else 503)
