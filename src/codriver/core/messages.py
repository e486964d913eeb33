"""The messages every engine speaks: OpenAI chat, embeddings and completions as typed structs.

Input is parsed once, at the edge (:func:`parse_chat`). Fields this file does not know are not lost: ``raw``
keeps the bytes a request or chunk arrived as, and whoever changes one works on those bytes (``core/wire.py``).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .errors import MalformedBody
from .parsing import parse_as

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
FinishReason = str  # stop | length | tool_calls | content_filter, and whatever a server invents
Policy = Literal["auto", "vehicle-only", "cloud-only", "cloud-first", "vehicle-first"]
Privacy = Literal["any", "redact", "local_only"]
Priority = Literal["driver", "background"]
Failover = Literal["resume", "restart", "declare"]


class Wire(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Base of everything that crosses the wire; defaults are left out when encoding."""


# ---------------------------------------------------------------- request parts


class FunctionCall(Wire):
    name: str = ""
    arguments: str = ""


class ToolCall(Wire, omit_defaults=False):
    id: str
    function: FunctionCall
    type: str = "function"


class TextPart(Wire, tag_field="type", tag="text"):
    text: str


class ImageUrl(Wire):
    url: str
    detail: str | None = None


class ImagePart(Wire, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class AudioPart(Wire, tag_field="type", tag="input_audio"):
    input_audio: dict[str, Any]


_TEXT = frozenset({"text"})
ContentPart = TextPart | ImagePart | AudioPart


class Message(Wire):
    role: Role
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def text(self) -> str:
        """The message's text; image and audio parts are left out."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class FunctionSpec(Wire):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire, omit_defaults=False):
    function: FunctionSpec
    type: str = "function"


class JsonSchema(Wire):
    name: str = "answer"
    schema: dict[str, Any] = {}
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Wire):
    include_usage: bool = False


class RequestOptions(Wire, forbid_unknown_fields=True):
    """Client control, from ``extra_body={"codriver": {...}}`` or ``x-codriver-*`` headers.

    ``deadline_ms`` bounds the whole answer, ``first_token_ms`` the wait for its first token, ``inter_token_ms`` each
    gap after it. ``failover`` says what to do when an engine dies in mid-answer. ``session`` names a conversation
    whose history is kept in the vehicle; each API key has its own names. ``budget_usd`` caps what the answer may cost.
    ``privacy``: the strictest word counts, of headers and body alike. A body that says a member twice is refused.
    ``priority``: a background request gives way to the driver's when there is not room for all.
    ``entities`` are names (of people, of places) that ``redact`` hides wherever they stand.
    ``context`` are documents of the vehicle that belong to the question, as a manual or logs: what matters of them is
    put before it, and they are neither sent upstream nor kept.
    """

    policy: Policy | None = None
    engine: str | None = None
    privacy: Privacy | None = None
    failover: Failover | None = None
    session: str | None = None
    deadline_ms: float | None = None
    first_token_ms: float | None = None
    inter_token_ms: float | None = None
    budget_usd: float | None = None
    priority: Priority | None = None
    lora: list[dict[str, Any]] | None = None
    entities: list[str] | None = None
    context: list[str] | None = None


class ChatRequest(Wire):
    """One chat request. ``prompt`` is set instead of ``messages`` for a plain text completion.

    ``continue_from`` is the part of the answer that the client already has: an engine whose card says ``prefill``
    goes on from its last character and does not repeat it. ``draft`` is the start of an answer that another engine
    wrote and nobody has been given: one whose card says ``verify`` keeps what it agrees with. ``raw`` is the body as it
    arrived. ``caller`` tells API keys apart and is set by the gateway, never by a body. None of these, nor ``prompt``
    and ``codriver``, is sent upstream as it stands.
    """

    messages: list[Message] = []
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    codriver: RequestOptions | None = None
    prompt: str | None = msgspec.field(default=None, name="__prompt__")
    continue_from: str | None = msgspec.field(default=None, name="__continue_from__")
    draft: str | None = msgspec.field(default=None, name="__draft__")
    raw: bytes | None = msgspec.field(default=None, name="__raw__")
    caller: str = msgspec.field(default="", name="__caller__")

    @property
    def limit_tokens(self) -> int | None:
        """The most tokens the answer may have, by either of OpenAI's two names."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def modalities(self) -> frozenset[str]:
        """What the request asks an engine to read: ``text`` and, where such parts are present, ``image`` or
        ``audio``.
        """
        found = _TEXT
        for message in self.messages:
            if isinstance(message.content, list):
                for part in message.content:
                    if isinstance(part, ImagePart):
                        found |= {"image"}
                    elif isinstance(part, AudioPart):
                        found |= {"audio"}
        return found

    def text(self) -> str:
        """All text of the request, newline-joined: for estimating length, never for logging."""
        if self.prompt is not None:
            return self.prompt
        return "\n".join(message.text() for message in self.messages)


# ---------------------------------------------------------------- answer parts


class TopLogprob(Wire, omit_defaults=False):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Wire, omit_defaults=False):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class Logprobs(Wire, omit_defaults=False):
    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class FunctionDelta(Wire):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Wire, omit_defaults=False):
    index: int
    id: str | msgspec.UnsetType | None = msgspec.UNSET
    type: str | msgspec.UnsetType | None = msgspec.UNSET
    function: FunctionDelta | msgspec.UnsetType = msgspec.UNSET


class Delta(Wire):
    role: Role | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Wire, omit_defaults=False):
    index: int = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class PromptTokenDetails(Wire, omit_defaults=False):
    cached_tokens: int = 0


class Usage(Wire, omit_defaults=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokenDetails | msgspec.UnsetType | None = msgspec.UNSET


class ChatChunk(Wire, omit_defaults=False):
    """One ``chat.completion.chunk``. ``raw`` is its JSON as it arrived: set ``raw=None`` on any change.

    ``whole`` marks a chunk whose ``raw`` is a complete ``chat.completion`` body, passed through from a server that
    was not asked to stream; its choices then hold the whole message as one delta.
    """

    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = []
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    codriver: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    whole: bool | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="__whole__")
    raw: bytes | msgspec.UnsetType | None = msgspec.field(default=msgspec.UNSET, name="__raw__")

    def text(self) -> str:
        """Content text of the first choice in this chunk."""
        return (self.choices[0].delta.content or "") if self.choices else ""

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.choices[0].finish_reason if self.choices else None


class AnswerMessage(Wire, omit_defaults=False):
    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | msgspec.UnsetType | None = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType | None = msgspec.UNSET


class CompletionChoice(Wire, omit_defaults=False):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletion(Wire, omit_defaults=False):
    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = "chat.completion"
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    codriver: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


# ---------------------------------------------------------------- embeddings and tensors


class EmbedRequest(Wire):
    """``input`` is one text or many; ``dimensions`` cuts the vector where the model allows it. ``privacy`` is set here,
    never by a body: of anything but ``any`` the vehicle's engines make the vectors.
    """

    input: str | list[str]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    privacy: Privacy = msgspec.field(default="any", name="__privacy__")

    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embeddings(msgspec.Struct, frozen=True):
    """``vectors``: one list of floats per input text, all of one length, unit norm. ``tokens``: input tokens read."""

    vectors: list[list[float]]
    tokens: int
    model: str


class Tensor(msgspec.Struct, frozen=True):
    """``data``: little-endian, C order; ``dtype`` by NumPy's names (``float32``, ``uint8``, ``int64``, …)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class TensorRequest(msgspec.Struct, frozen=True):
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()


class Tensors(msgspec.Struct, frozen=True):
    outputs: tuple[Tensor, ...]


_chat_decoder = msgspec.json.Decoder(ChatRequest)
_embed_decoder = msgspec.json.Decoder(EmbedRequest)
# OpenAI's ranges, both ends allowed. It takes four texts in ``stop``; servers of open models take more.
RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 1, (1 << 31) - 1),
    ("max_completion_tokens", 1, (1 << 31) - 1),
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("n", 1, 128),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("top_logprobs", 0, 20),
)
_MOST_STOPS = 16


def refuse_out_of_range(request: ChatRequest) -> None:
    """Raise :class:`MalformedBody` for a number that no server takes, by name and with what is allowed.

    Every request comes through here: well under a microsecond.
    """
    for name, least, most in RANGES:
        value = getattr(request, name)
        if value is not None and not least <= value <= most:
            raise MalformedBody(f"'{name}' is {value}, and must be from {least} to {most}.", param=name)
    if request.top_logprobs is not None and not request.logprobs:
        raise MalformedBody("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    stop = request.stop
    if stop is not None and (stop == "" or (isinstance(stop, list) and (len(stop) > _MOST_STOPS or "" in stop))):
        raise MalformedBody(f"'stop' must be text, or at most {_MOST_STOPS} texts, none of them empty.", param="stop")


def parse_chat(body: bytes) -> ChatRequest:
    """A ``/v1/chat/completions`` body as a request. Raises :class:`MalformedBody` naming the field at fault."""
    request: ChatRequest = parse_as(_chat_decoder, body)
    if not request.messages:
        raise MalformedBody(
            "The request body is not valid in 'messages': at least one message is needed.", param="messages"
        )
    refuse_out_of_range(request)
    request.raw = body
    request.prompt = request.continue_from = request.draft = None
    request.caller = ""
    return request


def parse_embed(body: bytes) -> EmbedRequest:
    """A ``/v1/embeddings`` body as a request. Raises :class:`MalformedBody` naming the field at fault."""
    request: EmbedRequest = parse_as(_embed_decoder, body)
    if not request.texts() or any(not text for text in request.texts()):
        raise MalformedBody("The request body is not valid in 'input': it holds no text.", param="input")
    request.privacy = "any"
    return request
