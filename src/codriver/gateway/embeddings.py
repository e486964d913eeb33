"""``POST /v1/embeddings``: vectors as numbers, or as base64 of little-endian 32-bit floats."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Any

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import UnsupportedParameter
from codriver.core.messages import EmbedRequest, RequestOptions, Usage, parse_embed
from codriver.core.parsing import parse_as
from codriver.core.wire import encode

from .exchange import Exchange


class _Options(msgspec.Struct):
    codriver: RequestOptions | None = None


# Control that chooses or watches an engine: a vector is of use beside those of its own model only.
REFUSED = ("policy", "engine", "privacy", "failover", "budget_usd")
_decoder = msgspec.json.Decoder(_Options)


def parse(exchange: Exchange, body: bytes) -> tuple[EmbedRequest, RequestOptions | None]:
    """Errors: :class:`MalformedBody`; :class:`UnsupportedParameter` for control that an embedding cannot honour."""
    request = parse_embed(body)
    given: _Options = parse_as(_decoder, body)
    options = exchange.head.request_options(given.codriver)
    for field in REFUSED:
        if options is not None and getattr(options, field) is not None:
            raise UnsupportedParameter(
                f"'codriver.{field}' is not supported for embeddings: name the model that should make them.",
                param=f"codriver.{field}",
            )
    return request, options


async def respond(exchange: Exchange, engine: Engine, request: EmbedRequest, deadline: Deadline) -> None:
    made = await engine.embed(request, deadline)
    exchange.usage = Usage(prompt_tokens=made.tokens, total_tokens=made.tokens)
    exchange.engine = engine.card.id
    as_text = request.encoding_format == "base64"
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else vector}
        for index, vector in enumerate(made.vectors)
    ]
    usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
    await exchange.answer(encode({"object": "list", "data": data, "model": made.model, "usage": usage}))


def _base64(vector: list[float]) -> str:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()
