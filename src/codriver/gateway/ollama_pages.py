"""What Ollama's clients read before they ask: ``/api/tags``, ``/api/show``, ``/api/version``.

Rule: what an engine's card does not say (sizes, quantization) is left empty, not made up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from codriver import __version__
from codriver.core.engine import Engine, EngineCard
from codriver.core.wire import encode

from . import pages
from .ollama_lines import utc
from .shapes import read

# The release of Ollama whose API this is: apps ask before they use tools, schemas or thoughts.
_API_VERSION = "0.12.11"
_CAPABILITIES = {"chat": "completion", "tools": "tools", "embeddings": "embedding"}


class ShowRequest(msgspec.Struct):
    """``name`` is what older clients send."""

    model: str = ""
    name: str = ""


_show_decoder = msgspec.json.Decoder(ShowRequest)


def version() -> bytes:
    return encode({"version": _API_VERSION, "codriver": {"version": __version__}})


def tags(known: Mapping[str, Engine], created_s: int) -> bytes:
    models = []
    for name, engine in known.items():
        told = pages.model(name, engine.card, created_s)["codriver"]
        identity = hashlib.sha256(encode([name, told])).hexdigest()
        entry = {"name": name, "model": name, "modified_at": utc(created_s), "size": 0, "digest": identity}
        models.append({**entry, "details": _details(engine.card), "codriver": told})
    return encode({"models": models})


def shown_model(body: bytes) -> str:
    """The model that ``/api/show`` is asked for. Errors: :class:`MalformedBody`."""
    asked: ShowRequest = read(_show_decoder, body)
    return asked.model or asked.name


def show(name: str, card: EngineCard, created_s: int) -> bytes:
    told = pages.model(name, card, created_s)["codriver"]
    capabilities = [word for capability, word in _CAPABILITIES.items() if capability in card.capabilities]
    if "image" in card.modalities:
        capabilities.append("vision")
    info: dict[str, Any] = {"general.architecture": "codriver", "general.basename": card.model or card.id}
    if card.context_tokens:
        info["codriver.context_length"] = card.context_tokens
    page = {"modelfile": "", "parameters": "", "template": "", "details": _details(card), "model_info": info}
    return encode({**page, "capabilities": capabilities, "modified_at": utc(created_s), "codriver": told})


def _details(card: EngineCard) -> dict[str, Any]:
    empty = {"parent_model": "", "format": "", "parameter_size": "", "quantization_level": ""}
    return {**empty, "family": card.model or card.id, "families": None}
