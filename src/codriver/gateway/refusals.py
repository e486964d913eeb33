"""An error as each API says it: OpenAI's object, Anthropic's, Ollama's. The path tells which one a client reads.

Rule: the sentence, the code and the status are the same everywhere (``docs/errors.md``); only the frame differs.
"""

from __future__ import annotations

from typing import Protocol

from codriver.core.errors import CodriverError
from codriver.core.wire import encode, sse

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Refusal(Protocol):
    """``body`` answers a request; ``last_event`` ends a stream that had begun, which must not look complete."""

    def body(self, error: CodriverError) -> bytes: ...

    def last_event(self, error: CodriverError) -> bytes: ...


class OpenAIRefusal:
    def body(self, error: CodriverError) -> bytes:
        return encode(error.body())

    def last_event(self, error: CodriverError) -> bytes:
        return sse(encode(error.body()))


class AnthropicRefusal:
    def body(self, error: CodriverError) -> bytes:
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
        told = {"type": kind, "message": error.message, "code": error.code, "param": error.param}
        return encode({"type": "error", "error": told})

    def last_event(self, error: CodriverError) -> bytes:
        return b"event: error\n" + sse(self.body(error))


class OllamaRefusal:
    def body(self, error: CodriverError) -> bytes:
        return encode({"error": error.message, "code": error.code})

    def last_event(self, error: CodriverError) -> bytes:
        return self.body(error) + b"\n"


OPENAI, ANTHROPIC, OLLAMA = OpenAIRefusal(), AnthropicRefusal(), OllamaRefusal()


def refusal_for(path: str) -> Refusal:
    """How the API that ``path`` belongs to says no."""
    if path.startswith("/api/"):
        return OLLAMA
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return ANTHROPIC
    return OPENAI
