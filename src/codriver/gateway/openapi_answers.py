"""What the gateway answers, as structs, where the answer is otherwise written member by member.

They are there to be described (``openapi.py``), never to be filled: a test compares them with real answers. Limit: what
an answer holds in depth is its own API's to say, and stays an object here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from codriver.core.engine import Health

Told = dict[str, Any] | msgspec.UnsetType


class ModelInfo(msgspec.Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    codriver: dict[str, Any]


class ModelList(msgspec.Struct):
    object: Literal["list"]
    data: list[ModelInfo]


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """``embedding`` is base64 of little-endian 32-bit floats where ``encoding_format`` asked for it."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(msgspec.Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Response(msgspec.Struct):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    store: Literal[False]
    error: None
    incomplete_details: dict[str, Any] | None
    codriver: Told = msgspec.UNSET


class AnthropicMessage(msgspec.Struct):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: None
    usage: dict[str, Any]
    codriver: Told = msgspec.UNSET


class OllamaMessage(msgspec.Struct):
    role: Literal["assistant"]
    content: str
    thinking: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET


class OllamaEnd(msgspec.Struct, kw_only=True):
    model: str
    created_at: str
    done: Literal[True]
    done_reason: str
    codriver: Told = msgspec.UNSET


class OllamaChatAnswer(OllamaEnd, kw_only=True):
    message: OllamaMessage


class OllamaGenerateAnswer(OllamaEnd, kw_only=True):
    response: str


class OllamaEmbeddings(msgspec.Struct):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaTags(msgspec.Struct):
    models: list[dict[str, Any]]


class OllamaModel(msgspec.Struct):
    details: dict[str, Any]
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    codriver: dict[str, Any]


class OllamaVersion(msgspec.Struct):
    version: str
    codriver: dict[str, Any]


class HealthPage(msgspec.Struct):
    status: Literal["ok", "down", "draining"]
    engines: dict[str, Health]


class ProblemDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class Problem(msgspec.Struct):
    """An error as OpenAI says it. ``code`` never changes its meaning."""

    error: ProblemDetail


class AnthropicProblem(msgspec.Struct):
    """An error as Anthropic says it, with the code beside it."""

    type: Literal["error"]
    error: ProblemDetail


class OllamaProblem(msgspec.Struct):
    """An error as Ollama says it, with the code beside it."""

    error: str
    code: str
