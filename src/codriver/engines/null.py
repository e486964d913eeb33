"""The null engine: answers at once with a fixed text. For tests, and for measuring what everything else costs.

It supports every request feature that its contract can be checked on: a required tool is called, a JSON schema gets its
smallest valid instance, embeddings are unit vectors that depend on nothing but the text. It thinks about nothing.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.config import setting
from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, EngineCard, Health
from codriver.core.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    PromptTooLong,
    UnsupportedModality,
    UnsupportedParameter,
)
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, TensorRequest, Tensors

from . import scripted
from .scripted import Script, cut

CAPABILITIES: frozenset[Capability] = frozenset(
    {"chat", "completions", "embeddings", "tools", "json_schema", "logprobs", "prefill"}
)
# A schema may ask for a list of any length.
_INSTANCE_CHARS = 100_000


@dataclass(frozen=True)
class NullConfig:
    """How the null engine answers."""

    id: str = setting("null", "The engine's name.")
    locality: Literal["vehicle", "cloud"] = setting("vehicle", "Where the engine counts as being.")
    text: str = setting("The quick brown fox jumps over the lazy dog.", "What it always answers.")
    per_token_ms: float = setting(0.0, "Time that each word of the answer takes, in milliseconds.", least=0)
    logprob: float = setting(-0.1, "Logarithm of the probability it claims for each word.", most=0)
    context_tokens: int = setting(100_000, "The longest prompt it takes, in words.", least=1)
    dimensions: int = setting(64, "Length of its embedding vectors.", least=1)


class Null:
    """See the module's text. ``clock`` is what ``per_token_ms`` passes on."""

    def __init__(self, config: NullConfig | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config or NullConfig()
        self._clock = clock
        self._running = 0
        self._closed = False
        self.card = EngineCard(
            id=self._config.id,
            locality=self._config.locality,
            model=self._config.id,
            capabilities=CAPABILITIES,
            context_tokens=self._config.context_tokens,
        )

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self._refuse_closed()
        self.card.refuse_unfit(request)
        if deadline.expired():
            raise DeadlineExceeded("The deadline passed before the answer was begun.")
        script = scripted.fit(self._script(request), request)
        head = scripted.new_head(self.card.model, self._clock.wall_s())
        self._running += 1
        try:
            for pieces, chunk in scripted.chunks(script, request, head):
                wait_s = pieces * self._config.per_token_ms / 1000
                if wait_s:
                    await deadline.wait(self._clock.sleep(wait_s))
                yield chunk
        finally:
            self._running -= 1

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        self._refuse_closed()
        if deadline.expired():
            raise DeadlineExceeded("The deadline passed before the embeddings were made.")
        length = min(request.dimensions or self._config.dimensions, self._config.dimensions)
        texts = request.texts()
        tokens = sum(len(cut(text)) for text in texts)
        return Embeddings([_unit_vector(text, length) for text in texts], tokens, self.card.model)

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        raise UnsupportedModality(f"The model '{self.card.id}' does not run tensor graphs.", param="model")

    def health(self) -> Health:
        if self._closed:
            return Health("down", reason="closed")
        return Health("ready", queue=self._running)

    async def aclose(self) -> None:
        self._closed = True

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EngineUnavailable(f"The engine '{self.card.id}' is closed.", engine=self.card.id)

    def _script(self, request: ChatRequest) -> Script:
        prompt_tokens = len(cut(request.text()))
        if prompt_tokens > self._config.context_tokens:
            raise PromptTooLong(
                f"The prompt has {prompt_tokens} tokens; '{self.card.id}' takes {self._config.context_tokens}.",
                param="messages",
            )
        tool = _required_tool(request)
        if tool is not None:
            return Script((), prompt_tokens, tool=tool)
        text = self._config.text
        if request.response_format is not None and request.response_format.type != "text":
            wanted = request.response_format.json_schema
            text = _instance(wanted.schema if wanted else {"type": "object"}, "response_format")
        pieces = cut(text)
        return Script(pieces, prompt_tokens, logprobs=(self._config.logprob,) * len(pieces))


def _required_tool(request: ChatRequest) -> tuple[str, str] | None:
    """The tool that ``tool_choice`` demands, with the smallest arguments its schema allows."""
    choice = request.tool_choice
    if not request.tools or not (choice == "required" or isinstance(choice, dict)):
        return None
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    spec = next((tool.function for tool in request.tools if tool.function.name == named), request.tools[0].function)
    return spec.name, _instance(spec.parameters or {"type": "object"}, "tools")


def _instance(schema: dict[str, Any], param: str) -> str:
    """JSON of the smallest instance. Errors: :class:`UnsupportedParameter` where the schema is broken or asks much."""
    try:
        return json.dumps(smallest(schema))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError):
        raise UnsupportedParameter("The null engine cannot make an instance of this schema.", param=param) from None


def smallest(schema: dict[str, Any]) -> Any:
    """A small instance of a JSON schema: types, enum, const, required members, least lengths; no references."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return smallest(schema[key][0])
    kind = schema.get("type", "object" if "properties" in schema else "null")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: smallest(properties.get(name, {})) for name in schema.get("required", [])}
        case "array":
            count = int(schema.get("minItems", 0))
            return _few([smallest(schema.get("items", {}))] if count else [], count)
        case "string":
            return _few("x", int(schema.get("minLength", 0)))
        case "integer" | "number":
            return schema.get("minimum", min(0, schema.get("maximum", 0)))
        case "boolean":
            return False
    return None


def _few(piece: Any, count: int) -> Any:
    """``piece`` so many times. Errors: :class:`ValueError` where that is a lot."""
    if count * len(json.dumps(piece)) > _INSTANCE_CHARS:
        raise ValueError
    return piece * count


def _unit_vector(text: str, length: int) -> list[float]:
    """A direction that only the text decides: normal deviates from a generator seeded with it."""
    draw = random.Random(text)
    vector = [draw.gauss(0.0, 1.0) for _ in range(length)]
    norm = math.sqrt(math.fsum(value * value for value in vector))
    return [value / norm for value in vector]
