"""``POST /v1/responses``: the OpenAI Responses API, without a store.

Limits: nothing is kept, so ``previous_response_id``, ``conversation`` and item references are refused by name and every
response says ``"store": false``; tools that run on OpenAI's servers, background work and stored prompts are refused
too. Hints (``reasoning``, ``service_tier``, cache keys, truncation) and bookkeeping are taken and not acted upon.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from codriver.core.errors import MalformedBody, UnsupportedParameter
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
from .responses_events import ResponseWriter
from .shapes import Asked, content_of, encoded, question, read, refuse_members

_KINDS = "message (input_text, input_image, output_text, refusal), function_call, function_call_output, reasoning"
_NAMES = {"max_tokens": "max_output_tokens", "messages": "input"}
_LOGPROBS = "message.output_text.logprobs"


class _InputText(Wire, tag_field="type", tag="input_text"):
    text: str


class _OutputText(Wire, tag_field="type", tag="output_text"):
    text: str


class _PlainText(Wire, tag_field="type", tag="text"):
    text: str


class _Refusal(Wire, tag_field="type", tag="refusal"):
    refusal: str


class _InputImage(Wire, tag_field="type", tag="input_image"):
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


_Part = _InputText | _OutputText | _PlainText | _Refusal | _InputImage


class _Message(Wire, tag_field="type", tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[_Part]


class _Call(Wire, tag_field="type", tag="function_call"):
    call_id: str
    name: str
    arguments: str


class _Output(Wire, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str | list[_Part]


class _Reasoning(Wire, tag_field="type", tag="reasoning"):
    """What was thought in earlier turns is not shown to the model again."""


_Item = _Message | _Call | _Output | _Reasoning


class _Format(Wire):
    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"
    schema: dict[str, Any] = msgspec.field(default_factory=dict)
    strict: bool | None = None
    description: str | None = None


class _Text(Wire):
    """``verbosity`` is a hint, and not read."""

    format: _Format | None = None


class ResponsesRequest(Wire):
    """The body. ``input``'s items are read in a second step, because a message may leave its ``type`` out."""

    input: str | list[dict[str, Any]]
    model: str = ""
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    text: _Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None
    moderation: Any = None
    codriver: RequestOptions | None = None


class InputItems(Wire):
    input: list[_Item]


class _FunctionTool(Wire):
    """Flat, where chat has a ``function`` member."""

    name: str
    type: Literal["function"]
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class FunctionTools(Wire):
    tools: list[_FunctionTool]


_decoder = msgspec.json.Decoder(ResponsesRequest)
_items_decoder = msgspec.json.Decoder(InputItems)
_tools_decoder = msgspec.json.Decoder(FunctionTools)


def parse(exchange: Exchange, body: bytes) -> tuple[Asked, RequestOptions | None]:
    """Errors: :class:`MalformedBody`, :class:`UnsupportedParameter`."""
    asked: ResponsesRequest = read(_decoder, body)
    _refuse_stored(asked)
    wants_logprobs = bool(asked.top_logprobs) or _LOGPROBS in (asked.include or ())
    request = ChatRequest(
        model=asked.model,
        messages=[*_instructions(asked.instructions), *_messages(asked.input)],
        stream=bool(asked.stream),
        max_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        logprobs=wants_logprobs or None,
        top_logprobs=asked.top_logprobs if wants_logprobs else None,
        tools=_tools(asked.tools),
        response_format=_format(asked.text),
        user=asked.user,
        codriver=asked.codriver,
    )
    if request.tools:
        request.tool_choice = _choice(asked.tool_choice)
        request.parallel_tool_calls = asked.parallel_tool_calls
    request = question(exchange, request, None, _NAMES)
    return Asked(request, ResponseWriter(_told_back(asked))), request.codriver


def _refuse_stored(asked: ResponsesRequest) -> None:
    if asked.previous_response_id:
        raise UnsupportedParameter(
            "'previous_response_id' is not supported, because responses are not stored here: send the earlier items in "
            "'input', or name a conversation in 'codriver.session', whose history the vehicle keeps.",
            param="previous_response_id",
        )
    refuse_members(asked, ("conversation", "prompt"), "is not supported, because nothing is stored here")
    refuse_members(asked, ("background", "moderation"))


def _told_back(asked: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request."""
    text = {"format": {"type": "text"}}
    if asked.text is not None and asked.text.format is not None:
        text = {"format": msgspec.to_builtins(asked.text.format)}
    return {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "temperature": asked.temperature,
        "text": text,
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "top_p": asked.top_p,
        "user": asked.user,
    }


def _instructions(text: str | None) -> list[Message]:
    return [Message(role="system", content=text)] if text else []


# ---------------------------------------------------------------- items


def _messages(given: str | list[dict[str, Any]]) -> list[Message]:
    if isinstance(given, str):
        given = [{"role": "user", "content": given}] if given else []
    if not given:
        raise MalformedBody("The request body is not valid in 'input': at least one item is needed.", param="input")
    for plain in given:
        if "type" not in plain and "role" in plain:
            plain["type"] = "message"
    items: InputItems = read(_items_decoder, encoded({"input": given}), _KINDS)
    messages: list[Message] = []
    for item in items.input:
        if isinstance(item, _Message):
            messages.append(Message(role=item.role, content=_content(item.content)))
        elif isinstance(item, _Call):
            _add_call(messages, item)
        elif isinstance(item, _Output):
            messages.extend(_results(item))
    return messages


def _add_call(messages: list[Message], item: _Call) -> None:
    """Chat has a turn's calls in the message that said them."""
    if not messages or messages[-1].role != "assistant":
        messages.append(Message(role="assistant"))
    call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))
    last = messages[-1]
    last.tool_calls = last.tool_calls or []
    last.tool_calls.append(call)


def _results(item: _Output) -> Iterable[Message]:
    """A tool's result as text; images in it are shown beside it, because chat's tool messages hold text only."""
    content = _content(item.output)
    if isinstance(content, str):
        return [Message(role="tool", tool_call_id=item.call_id, content=content)]
    text = "\n".join(part.text for part in content if isinstance(part, TextPart))
    images: list[ContentPart] = [part for part in content if isinstance(part, ImagePart)]
    return [Message(role="tool", tool_call_id=item.call_id, content=text), Message(role="user", content=images)]


def _content(given: str | list[_Part]) -> str | list[ContentPart]:
    if isinstance(given, str):
        return given
    return content_of([_part(part) for part in given])


def _part(part: _Part) -> ContentPart:
    if isinstance(part, _InputImage):
        if part.file_id or not part.image_url:
            raise UnsupportedParameter(
                "Give an image by 'image_url', as a data URL: files are not stored here.", param="input"
            )
        return ImagePart(image_url=ImageUrl(url=part.image_url, detail=part.detail))
    return TextPart(text=part.refusal if isinstance(part, _Refusal) else part.text)


# ---------------------------------------------------------------- tools and formats


def _tools(given: list[dict[str, Any]] | None) -> list[Tool] | None:
    for tool in given or ():
        kind = tool.get("type")
        if isinstance(kind, str) and kind != "function":
            raise UnsupportedParameter(
                f"Tools of the type '{kind}' are not supported. Supported: function.", param="tools"
            )
    tools: FunctionTools = read(_tools_decoder, encoded({"tools": given or []}))
    made = [Tool(function=FunctionSpec(t.name, t.description, t.parameters, t.strict)) for t in tools.tools]
    return made or None


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
        raise UnsupportedParameter(
            "'tool_choice' must be 'auto', 'none', 'required' or {'type': 'function', 'name': …}.", param="tool_choice"
        )
    return {"type": "function", "function": {"name": choice["name"]}}


def _format(text: _Text | None) -> ResponseFormat | None:
    if text is None or text.format is None or text.format.type == "text":
        return None
    form = text.format
    if form.type == "json_object":
        return ResponseFormat(type="json_object")
    schema = JsonSchema(name=form.name, schema=form.schema, strict=form.strict, description=form.description)
    return ResponseFormat(type="json_schema", json_schema=schema)
