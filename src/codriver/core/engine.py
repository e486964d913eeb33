"""The Engine contract: something that answers. Local runtimes, remote servers, replays and the router itself all are
one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from .deadline import Deadline
from .errors import PromptTooLong, UnsupportedModality, UnsupportedParameter
from .messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, TensorRequest, Tensors

Locality = Literal["vehicle", "cloud"]
Capability = Literal[
    "chat",
    "completions",
    "embeddings",
    "tensors",
    "tools",
    "json_schema",
    "json_resume",
    "logprobs",
    "prefill",
    "verify",
    "lora",
    "redact",
    "context",
]


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input_usd: float = 0.0
    output_usd: float = 0.0

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6


def _needs(request: ChatRequest) -> list[tuple[Capability, str]]:
    """What an engine must be capable of for ``request``, and the member that asks for it."""
    needs: list[tuple[Capability, str]] = []
    if request.tools:
        needs.append(("tools", "tools"))
    if request.response_format is not None and request.response_format.type != "text":
        needs.append(("json_schema", "response_format"))
    if request.logprobs:
        needs.append(("logprobs", "logprobs"))
    if request.codriver is not None:
        if request.codriver.lora:
            needs.append(("lora", "codriver.lora"))
        if request.codriver.context:
            needs.append(("context", "codriver.context"))
    needs.append(("chat", "messages") if request.prompt is None else ("completions", "prompt"))
    return needs


@dataclass(frozen=True, slots=True)
class EngineCard:
    """What an engine is and can do. ``id`` is unique in a process; ``model`` is what it is called upstream.

    ``prefill``: the engine goes on from a partial answer (``ChatRequest.continue_from``) without repeating it.
    ``verify``: it keeps what it agrees with of a draft (``ChatRequest.draft``) and goes on from there.
    ``json_resume``: it does so where JSON was asked for too, and the whole is one valid value.
    ``redact``: it takes personal data out of what it sends on, so that such a request may be put to it.
    ``context``: it makes a message of the documents that come with a request; other engines refuse them.
    """

    id: str
    locality: Locality
    model: str = ""
    modalities: frozenset[str] = frozenset({"text"})
    capabilities: frozenset[Capability] = frozenset({"chat"})
    context_tokens: int = 0
    price: Price = field(default_factory=Price)

    def can(self, capability: Capability) -> bool:
        return capability in self.capabilities

    def refuse_unfit(self, request: ChatRequest) -> None:
        """Raise by name what in ``request`` this engine must not attempt; return when it may.

        Errors: :class:`UnsupportedModality`, :class:`UnsupportedParameter`, :class:`PromptTooLong` (by a lower bound of
        the token count: an engine that counts exactly raises it again).
        """
        missing = request.modalities() - self.modalities
        if missing:
            raise UnsupportedModality(
                f"The model '{self.id}' cannot read {', '.join(sorted(missing))} input.", param="messages"
            )
        for capability, param in _needs(request):
            if capability not in self.capabilities:
                raise UnsupportedParameter(f"The model '{self.id}' does not support '{param}'.", param=param)
        # A token is at most about 16 bytes of running text: only hopeless prompts are refused here. A body that is
        # shorter than that, as nearly all are, need not be put together.
        most = 16 * self.context_tokens
        if most and (request.raw is None or len(request.raw) > most) and len(request.text()) > most:
            raise PromptTooLong(
                f"The prompt is longer than the context of '{self.id}' ({self.context_tokens} tokens).",
                param="messages",
            )


class Health(msgspec.Struct, frozen=True):
    """``queue``: requests waiting or running; ``eta_s``: seconds until a new request would start."""

    state: Literal["ready", "loading", "busy", "down"]
    queue: int = 0
    eta_s: float = 0.0
    reason: str = ""


class Engine(Protocol):
    """See ``docs/adr/0002-engine.md``. Closing the iterator of ``generate`` stops the work within one token.

    ``generate`` raises :class:`~codriver.core.errors.CodriverError` and nothing else; a stream that ends without an
    error ended with a ``finish_reason``.
    """

    @property
    def card(self) -> EngineCard: ...

    def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]: ...

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings: ...

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors: ...

    def health(self) -> Health: ...

    async def aclose(self) -> None: ...


class TextOnly:
    """For engines that only chat: ``embed`` and ``infer`` refuse by name."""

    card: EngineCard

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        raise UnsupportedModality(f"The model '{self.card.id}' does not make embeddings.", param="model")

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        raise UnsupportedModality(f"The model '{self.card.id}' does not run tensor graphs.", param="model")


class LinkObserver(Protocol):
    """Told by remote engines what they see of the link, so that the router judges it without extra traffic."""

    def sent(self) -> None:
        """A request's bytes were handed to the network; an answer is now awaited."""

    def received(self, count_bytes: int) -> None:
        """Bytes came back."""

    def settled(self) -> None:
        """One awaited answer is complete, cancelled or failed: it is no longer outstanding."""

    def failed(self, reason: str) -> None:
        """A connection was refused, reset or cut."""


class NoLink:
    """The observer for engines whose link nobody watches."""

    def sent(self) -> None: ...

    def received(self, count_bytes: int) -> None: ...

    def settled(self) -> None: ...

    def failed(self, reason: str) -> None: ...
