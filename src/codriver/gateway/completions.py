"""``POST /v1/completions``: one prompt, as text. The engine sees a :class:`ChatRequest` whose ``prompt`` is set.

Limits: one prompt a request; ``echo``, ``suffix`` and ``best_of`` are refused by name. The engine's chunks are always
written anew, because their own bytes are in the chat shape.
"""

from __future__ import annotations

from typing import Any

import msgspec

from codriver.core.answer import Answer
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import MalformedBody, UnsupportedParameter
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    Logprobs,
    RequestOptions,
    StreamOptions,
    Usage,
    Wire,
    refuse_out_of_range,
)
from codriver.core.parsing import parse_as
from codriver.core.wire import encode

from . import chat
from .exchange import Exchange

_DEFAULT_TOKENS = 16  # OpenAI's own default for this route


class CompletionRequest(Wire):
    """The body. ``prompt`` as token numbers is not taken."""

    prompt: str | list[str]
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    user: str | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    codriver: RequestOptions | None = None


class TextLogprobs(msgspec.Struct):
    """Token by token; ``text_offset`` counts characters from the answer's start."""

    tokens: list[str] = []
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float]] = []
    text_offset: list[int] = []


class TextChoice(msgspec.Struct):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: str | None


class TextCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: str = "text_completion"
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    codriver: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


_decoder = msgspec.json.Decoder(CompletionRequest)
_COPIED = [
    field.name
    for field in msgspec.structs.fields(CompletionRequest)
    if field.name not in ("prompt", "max_tokens", "logprobs", "echo", "suffix", "best_of", "codriver")
]


def parse(exchange: Exchange, body: bytes) -> tuple[ChatRequest, RequestOptions | None]:
    """Errors: :class:`MalformedBody`, :class:`UnsupportedParameter`."""
    asked: CompletionRequest = parse_as(_decoder, body)
    _refuse_unsupported(asked)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if len(prompts) != 1:
        raise UnsupportedParameter("Send one prompt a request: 'prompt' is text, or a list of one.", param="prompt")
    request = ChatRequest(prompt=prompts[0], raw=body, **{name: getattr(asked, name) for name in _COPIED})
    request.max_tokens = asked.max_tokens if asked.max_tokens is not None else _DEFAULT_TOKENS
    if asked.logprobs is not None:
        request.logprobs, request.top_logprobs = True, asked.logprobs
    refuse_out_of_range(request)
    request.codriver = exchange.head.request_options(asked.codriver)
    return request, request.codriver


def _refuse_unsupported(asked: CompletionRequest) -> None:
    for name, wanted in (("echo", asked.echo), ("suffix", asked.suffix), ("best_of", (asked.best_of or 1) > 1)):
        if wanted:
            raise UnsupportedParameter(f"'{name}' is not supported.", param=name)
    if asked.logprobs is not None and not 0 <= asked.logprobs <= 5:
        raise MalformedBody("'logprobs' must be from 0 to 5.", param="logprobs")


async def respond(exchange: Exchange, engine: Engine, request: ChatRequest, deadline: Deadline) -> None:
    async with chat.open_chunks(engine, request, deadline) as chunks:
        if request.stream:
            await chat.stream(exchange, chunks, chat.wants_usage(request), _Shape().chunk)
            return
        answer = Answer()
        async for chunk in chunks:
            chat.note(exchange, chunk)
            answer.add(chunk)
    chat.refuse_cut(answer.complete, exchange.engine)
    exchange.usage = answer.usage
    shown = _whole(answer)
    exchange.span.answered_by(shown.model, tuple(choice.finish_reason or "" for choice in shown.choices))
    await exchange.answer(encode(shown))


def _whole(answer: Answer) -> TextCompletion:
    done = answer.completion()
    choices = [
        TextChoice(c.message.content or "", c.index, _logprobs(c.logprobs, 0)[0], c.finish_reason) for c in done.choices
    ]
    return TextCompletion(_id(done.id), done.created, done.model, choices, usage=done.usage, codriver=done.codriver)


def _id(chat_id: str) -> str:
    """OpenAI's prefix on this route."""
    return "cmpl-" + chat_id.removeprefix("chatcmpl-")


class _Shape:
    """Chat chunks as text completion chunks, counting each choice's characters for ``text_offset``."""

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}

    def chunk(self, chunk: ChatChunk) -> bytes:
        choices = []
        for choice in chunk.choices:
            logprobs, offset = _logprobs(choice.logprobs, self._offsets.get(choice.index, 0))
            self._offsets[choice.index] = offset
            choices.append(TextChoice(choice.delta.content or "", choice.index, logprobs, choice.finish_reason))
        shown = TextCompletion(
            _id(chunk.id), chunk.created, chunk.model, choices, usage=chunk.usage, codriver=chunk.codriver
        )
        return encode(shown)


def _logprobs(given: Logprobs | None, offset: int) -> tuple[TextLogprobs | None, int]:
    """The older shape of logprobs, and the offset after them."""
    if given is None or given.content is None:
        return None, offset
    shape = TextLogprobs()
    for token in given.content:
        shape.tokens.append(token.token)
        shape.token_logprobs.append(token.logprob)
        shape.top_logprobs.append({top.token: top.logprob for top in token.top_logprobs})
        shape.text_offset.append(offset)
        offset += len(token.token)
    return shape, offset
