"""The OpenAI formats other than chat: text completions as chat chunks, and embeddings.

A text completion's log-probabilities come as parallel lists (OpenAI's old format) or as chat-style objects (llama.cpp);
both become chat-style.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Any

import msgspec

from codriver.core import wire
from codriver.core.errors import UpstreamMalformed
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    Embeddings,
    EmbedRequest,
    Logprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)

CHAT_ONLY = ("messages", "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls")


class _TextLogprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[TokenLogprob] | None = None

    def as_chat(self) -> Logprobs:
        if self.content is not None:
            return Logprobs(content=self.content)
        tops = self.top_logprobs or [None] * len(self.tokens)
        content = []
        for token, logprob, top in zip(self.tokens, self.token_logprobs, tops, strict=False):
            others = [TopLogprob(other, value, list(other.encode())) for other, value in (top or {}).items()]
            # The first token of an echoed prompt has no probability.
            content.append(TokenLogprob(token, logprob or 0.0, list(token.encode()), others))
        return Logprobs(content=content)


class _TextChoice(msgspec.Struct):
    text: str = ""
    index: int = 0
    logprobs: _TextLogprobs | None = None
    finish_reason: str | None = None


class _TextCompletion(msgspec.Struct):
    choices: list[_TextChoice]
    id: str = ""
    created: int = 0
    model: str = ""
    usage: Usage | None = None


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int = 0


class _VectorUsage(msgspec.Struct):
    prompt_tokens: int = 0


class _VectorList(msgspec.Struct):
    data: list[_Vector]
    model: str = ""
    usage: _VectorUsage | None = None


_text_decoder = msgspec.json.Decoder(_TextCompletion)
_vector_decoder = msgspec.json.Decoder(_VectorList)


def text_changes(request: ChatRequest) -> dict[str, Any]:
    """The members that make a chat request's body one for ``/v1/completions``; continuing is a longer prompt there."""
    changes: dict[str, Any] = {"prompt": (request.prompt or "") + (request.continue_from or "")}
    if request.logprobs:
        # 0 would be legal and mean "the chosen token only", but some servers read it as "off".
        changes["logprobs"] = max(1, request.top_logprobs or 0)
    if request.max_completion_tokens is not None:
        changes["max_tokens"] = request.max_completion_tokens
    return changes


def decode_text(payload: bytes) -> ChatChunk:
    """A ``text_completion`` (a stream event or a whole body) as a chat chunk. Errors: :class:`UpstreamMalformed`."""
    try:
        found = _text_decoder.decode(payload)
    except wire.UNREADABLE as error:
        raise UpstreamMalformed(f"The answer is not a text completion: {error}.") from error
    choices = [
        ChunkChoice(
            index=choice.index,
            delta=Delta(content=choice.text),
            logprobs=choice.logprobs.as_chat() if choice.logprobs else None,
            finish_reason=choice.finish_reason,
        )
        for choice in found.choices
    ]
    chunk = ChatChunk(id=found.id, created=found.created, model=found.model, choices=choices)
    if found.usage is not None:
        chunk.usage = found.usage
    return chunk


def decode_chat(body: bytes) -> ChatChunk:
    """A ``chat.completion`` body as one whole chunk, also where members are missing that OpenAI always sends.

    llama.cpp's server, for one, leaves ``logprobs`` out. Errors: :class:`UpstreamMalformed`.
    """
    try:
        return wire.decode_whole(body)
    except UpstreamMalformed as error:
        try:
            loose = msgspec.json.decode(body)
            choices = [{"index": 0, "logprobs": None, "finish_reason": None, **choice} for choice in loose["choices"]]
            full = {"id": "", "created": 0, "model": "", **loose, "choices": choices}
        except (*wire.UNREADABLE, KeyError, TypeError):
            raise error from None
        chunk = wire.decode_whole(msgspec.json.encode(full))
    chunk.raw = body
    return chunk


def without_echo(chunk: ChatChunk, given: str) -> ChatChunk:
    """The chunk without the partial answer that llama.cpp's server repeats when it does not stream."""
    for choice in chunk.choices:
        content = choice.delta.content
        if content is not None and content.startswith(given):
            choice.delta.content = content[len(given) :]
            chunk.raw = chunk.whole = msgspec.UNSET
    return chunk


def embed_body(request: EmbedRequest, model: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "input": request.texts(), "encoding_format": "float"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return body


def decode_embeddings(body: bytes, count: int, model: str) -> Embeddings:
    """An embeddings body as unit vectors in the order of the ``count`` inputs. Errors: :class:`UpstreamMalformed`."""
    try:
        found = _vector_decoder.decode(body)
        ordered = sorted(found.data, key=lambda item: item.index)
        vectors = [_unit(_floats(item.embedding)) for item in ordered]
    except (*wire.UNREADABLE, binascii.Error, struct.error) as error:
        raise UpstreamMalformed(f"The answer is not a list of embeddings: {error}.") from error
    if len(vectors) != count or len({len(vector) for vector in vectors}) > 1:
        raise UpstreamMalformed(f"The answer holds {len(vectors)} embeddings of unequal use for {count} texts.")
    return Embeddings(vectors, found.usage.prompt_tokens if found.usage else 0, found.model or model)


def _floats(embedding: list[float] | str) -> list[float]:
    """A vector as numbers; servers may answer in base64 of little-endian float32 unasked."""
    if isinstance(embedding, list):
        return embedding
    packed = base64.b64decode(embedding, validate=True)
    return list(struct.unpack(f"<{len(packed) // 4}f", packed))


def _unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(math.fsum(value * value for value in vector))
    if norm == 0.0 or not math.isfinite(norm):
        raise UpstreamMalformed("The answer holds an embedding without a direction (zero or not finite).")
    return vector if abs(norm - 1.0) < 1e-6 else [value / norm for value in vector]
