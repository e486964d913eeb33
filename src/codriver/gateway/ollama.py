"""``POST /api/chat`` and ``/api/generate``: Ollama's API, so that an app made for Ollama runs unchanged.

Limits: what would change the prompt behind the engine's back (``template``, ``suffix``, ``context``) is refused by
name; options for loading a model (``num_ctx``, ``num_gpu``, ``keep_alive``, …) are the operator's here and not acted
upon. Control goes in a ``codriver`` member or in headers, which every Ollama client can set.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, Literal

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import BadImage, MalformedBody, UnsupportedParameter
from codriver.core.messages import (
    ChatRequest,
    ContentPart,
    FunctionCall,
    FunctionSpec,
    ImagePart,
    ImageUrl,
    JsonSchema,
    Message,
    RequestOptions,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    Wire,
)

from .exchange import Exchange
from .ollama_lines import LineWriter, Member
from .shapes import Asked, encoded, question, read, refuse_members
from .shapes import respond as respond_in_shape

# Sampling that llama.cpp knows and OpenAI does not; a server that does not know one says so or ignores it.
_SAMPLING = (
    "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
_IMAGES = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "Qk": "bmp", "UklGR": "webp"}
_NAMES = {"max_tokens": "options.num_predict"} | {
    name: f"options.{name}" for name in ("temperature", "top_p", "stop", "presence_penalty", "frequency_penalty")
}


class _Function(Wire):
    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)


class _Call(Wire):
    function: _Function
    id: str = ""


class _Message(Wire):
    """``thinking`` of earlier turns is not shown to the model again."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _ToolSpec(Wire):
    function: FunctionSpec
    type: str = "function"


class _Options(Wire):
    num_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None


class _Body(Wire):
    """What both routes have."""

    model: str = ""
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: _Options | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    template: str | None = None
    codriver: RequestOptions | None = None


class OllamaChat(_Body):
    messages: list[_Message] | None = None
    tools: list[_ToolSpec] | None = None


class OllamaGenerate(_Body):
    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    suffix: str | None = None
    context: list[int] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None


_chat_decoder = msgspec.json.Decoder(OllamaChat)
_generate_decoder = msgspec.json.Decoder(OllamaGenerate)


def parse_chat(exchange: Exchange, body: bytes) -> tuple[Asked, RequestOptions | None]:
    """Errors: :class:`MalformedBody`, :class:`UnsupportedParameter`, :class:`BadImage`."""
    asked: OllamaChat = read(_chat_decoder, body)
    refuse_members(asked, ("template",))
    tools = [Tool(function=tool.function) for tool in asked.tools or ()]
    request = _request(asked, _messages(asked.messages or []))
    request.tools = tools or None
    return _asked(exchange, asked, request, "message")


def parse_generate(exchange: Exchange, body: bytes) -> tuple[Asked, RequestOptions | None]:
    """Errors: as :func:`parse_chat`."""
    asked: OllamaGenerate = read(_generate_decoder, body)
    refuse_members(asked, ("template", "suffix", "width", "height", "steps"))
    refuse_members(asked, ("context",), "is not supported: send the conversation to /api/chat")
    messages = []
    if asked.raw:
        refuse_members(asked, ("images", "system"), "cannot go with 'raw'")
    elif asked.prompt or asked.images:
        if asked.system:
            messages.append(Message(role="system", content=asked.system))
        messages.append(Message(role="user", content=_content(asked.prompt or "", asked.images)))
    request = _request(asked, messages)
    request.prompt = asked.prompt if asked.raw and asked.prompt else None
    return _asked(exchange, asked, request, "response")


async def respond(exchange: Exchange, engine: Engine, asked: Asked, deadline: Deadline) -> None:
    """As every shape; a request without a prompt only wants the model loaded, and it is."""
    assert isinstance(asked.writer, LineWriter)
    asked.writer.start(exchange.arrived_s, deadline.clock)
    if asked.chat.messages or asked.chat.prompt is not None:
        await respond_in_shape(exchange, engine, asked, deadline)
        return
    await exchange.answer(asked.writer.loaded())


def _asked(
    exchange: Exchange, asked: _Body, request: ChatRequest, member: Member
) -> tuple[Asked, RequestOptions | None]:
    options = asked.options or _Options()
    extras = {name: getattr(options, name) for name in _SAMPLING}
    request = question(exchange, request, extras, _NAMES)
    return Asked(request, LineWriter(member, asked.model, asked.think is not False)), request.codriver


def _request(asked: _Body, messages: list[Message]) -> ChatRequest:
    options = asked.options or _Options()
    limit = options.num_predict
    if limit is not None and limit < -2:
        raise MalformedBody(
            f"'options.num_predict' is {limit}, and must be at least 1, or -1 or -2 for no limit.",
            param="options.num_predict",
        )
    return ChatRequest(
        model=asked.model,
        messages=messages,
        stream=asked.stream is not False,
        max_tokens=None if limit is not None and limit < 0 else limit,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        stop=options.stop or None,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logprobs=asked.logprobs or None,
        top_logprobs=asked.top_logprobs if asked.logprobs else None,
        response_format=_format(asked.format),
        codriver=asked.codriver,
    )


def _format(given: str | dict[str, Any] | None) -> ResponseFormat | None:
    if not given:
        return None
    if isinstance(given, dict):
        return ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=given))
    if given != "json":
        raise UnsupportedParameter(f"'format' is '{given[:40]}'; it must be 'json' or a JSON schema.", param="format")
    return ResponseFormat(type="json_object")


# ---------------------------------------------------------------- messages


def _messages(given: list[_Message]) -> list[Message]:
    """Chat's messages. Ollama's calls have no ids: results are matched with calls by name, else in order."""
    messages: list[Message] = []
    waiting = _Waiting([])
    for message in given:
        content = _content(message.content or "", message.images)
        if message.role == "tool":
            answered = message.tool_call_id or waiting.take(message.tool_name)
            messages.append(Message(role="tool", tool_call_id=answered, content=content))
        elif message.tool_calls:
            calls = [_call(call, len(messages), index) for index, call in enumerate(message.tool_calls)]
            waiting = _Waiting(calls)
            messages.append(Message(role=message.role, content=content or None, tool_calls=calls))
        else:
            messages.append(Message(role=message.role, content=content))
    return messages


def _call(call: _Call, message: int, index: int) -> ToolCall:
    function = FunctionCall(name=call.function.name, arguments=encoded(call.function.arguments).decode())
    return ToolCall(id=call.id or f"call_{message}_{index}", function=function)


class _Waiting:
    """Calls without results, in order and by name, so that a body of nothing else takes no longer than its bytes."""

    def __init__(self, calls: list[ToolCall]) -> None:
        self._ids = OrderedDict((at, call.id) for at, call in enumerate(calls))
        self._named: dict[str, deque[int]] = {}
        for at, call in enumerate(calls):
            self._named.setdefault(call.function.name, deque()).append(at)

    def take(self, name: str | None) -> str:
        """The id of the first call of the name, else of the first. Errors: :class:`MalformedBody` for none left."""
        named = self._named.get(name or "", deque())
        while named and named[0] not in self._ids:
            named.popleft()
        at = named[0] if named else next(iter(self._ids), None)
        if at is None:
            raise MalformedBody("A message of the role 'tool' does not follow a tool call.", param="messages")
        return self._ids.pop(at)


def _content(text: str, images: list[str] | None) -> str | list[ContentPart]:
    if not images:
        return text
    parts: list[ContentPart] = [TextPart(text=text)] if text else []
    return [*parts, *(_image(image) for image in images)]


def _image(data: str) -> ImagePart:
    kind = next((kind for start, kind in _IMAGES.items() if data.startswith(start)), None)
    if kind is None:
        raise BadImage("An image is not base64 of a PNG, JPEG, GIF, BMP or WebP file.", param="images")
    return ImagePart(image_url=ImageUrl(url=f"data:image/{kind};base64,{data}"))
