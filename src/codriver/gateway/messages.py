"""``POST /v1/messages``: the Anthropic Messages API.

Limits: what needs Anthropic's servers (their tools, files, documents, batches) is refused by name, and so is
``thinking`` that must happen; thoughts are shown where ``thinking`` is ``adaptive`` and the model has some. Which stop
sequence ended an answer is not known here: the reason is then ``end_turn``. Tokens are not counted without an answer.
Rule: nothing that would change the answer's meaning is dropped in silence.
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
from .messages_events import MessageWriter
from .shapes import Asked, content_of, encoded, question, read, refuse_members

_KINDS = "text, image, tool_use, tool_result, thinking"
_NAMES = {"stop": "stop_sequences"}


class _Text(Wire, tag_field="type", tag="text"):
    text: str


class _Source(Wire):
    type: Literal["base64", "url"]
    media_type: str = ""
    data: str = ""
    url: str = ""


class _Image(Wire, tag_field="type", tag="image"):
    source: _Source


class _ToolUse(Wire, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class _ToolResult(Wire, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[_Text | _Image] = ""
    is_error: bool = False


class _Thinking(Wire, tag_field="type", tag="thinking"):
    """What was thought in earlier turns is not shown to the model again; Anthropic drops it too."""


class _Redacted(Wire, tag_field="type", tag="redacted_thinking"):
    """As :class:`_Thinking`."""


_Content = _Text | _Image | _ToolUse | _ToolResult | _Thinking | _Redacted


class _Turn(Wire):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Content]


class _Tool(Wire):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class _ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class _Format(Wire):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(Wire):
    """``effort`` is not read: it is a hint to models that have it."""

    format: _Format | None = None


class _Thought(Wire):
    type: Literal["enabled", "disabled", "adaptive"]


class MessagesRequest(Wire):
    """The body. ``metadata``, ``service_tier`` and ``cache_control`` do not change an answer and are not read;
    ``context_management`` is not either: what it would clear stays, and a prompt that is too long is refused.
    """

    messages: list[_Turn]
    max_tokens: int
    model: str = ""
    system: str | list[_Text] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thought | None = None
    output_config: _OutputConfig | None = None
    mcp_servers: list[Any] | None = None
    container: Any = None
    codriver: RequestOptions | None = None


_decoder = msgspec.json.Decoder(MessagesRequest)


def parse(exchange: Exchange, body: bytes) -> tuple[Asked, RequestOptions | None]:
    """Errors: :class:`MalformedBody`, :class:`UnsupportedParameter`."""
    asked: MessagesRequest = read(_decoder, body, _KINDS)
    refuse_members(asked, ("mcp_servers", "container"))
    if asked.thinking is not None and asked.thinking.type == "enabled":
        raise UnsupportedParameter(
            "'thinking' cannot be 'enabled' here: no model is made to think. Leave it out, or send 'adaptive'.",
            param="thinking",
        )
    messages = _messages(asked)
    begun = _begun(messages)
    request = ChatRequest(
        model=asked.model,
        messages=messages,
        stream=bool(asked.stream),
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        stop=asked.stop_sequences or None,
        tools=_tools(asked.tools),
        response_format=_format(asked.output_config),
        codriver=asked.codriver,
    )
    if asked.tool_choice is not None and request.tools:
        request.tool_choice = _choice(asked.tool_choice)
        if asked.tool_choice.disable_parallel_tool_use:
            request.parallel_tool_calls = False
    request = question(exchange, request, {"top_k": asked.top_k}, _NAMES)
    request.continue_from = begun
    thinks = asked.thinking is not None and asked.thinking.type == "adaptive"
    return Asked(request, MessageWriter(asked.model, thinks)), request.codriver


def _messages(asked: MessagesRequest) -> list[Message]:
    system = asked.system
    if isinstance(system, list):
        system = "\n".join(block.text for block in system)
    messages = [Message(role="system", content=system)] if system else []
    for turn in asked.messages:
        if isinstance(turn.content, str):
            messages.append(Message(role=turn.role, content=turn.content))
        elif turn.role == "assistant":
            messages.append(_said(turn.content))
        else:
            messages.extend(_told(turn.role, turn.content))
    if not any(message.role != "system" for message in messages):
        raise MalformedBody(
            "The request body is not valid in 'messages': at least one message is needed.", param="messages"
        )
    return messages


def _said(content: list[_Content]) -> Message:
    """An assistant's turn."""
    texts = [block.text for block in content if isinstance(block, _Text)]
    calls = [
        ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=encoded(block.input).decode()))
        for block in content
        if isinstance(block, _ToolUse)
    ]
    if any(isinstance(block, _Image | _ToolResult) for block in content):
        raise MalformedBody(
            "An assistant's message can hold text and tool_use, no images or results.", param="messages"
        )
    return Message(role="assistant", content="\n".join(texts) or None, tool_calls=calls or None)


def _told(role: Literal["user", "system", "assistant"], content: list[_Content]) -> Iterable[Message]:
    """A user's turn: each tool result is a message of its own, and comes first."""
    results: list[Message] = []
    parts: list[ContentPart] = []
    for block in content:
        if isinstance(block, _ToolResult):
            inner: list[_Text | _Image] = (
                [_Text(text=block.content)] if isinstance(block.content, str) else block.content
            )
            text = "\n".join(one.text for one in inner if isinstance(one, _Text))
            if block.is_error:
                text = f"Error: {text}"
            results.append(Message(role="tool", tool_call_id=block.tool_use_id, content=text))
            # Chat's tool messages hold text only: what was seen goes beside it.
            parts.extend(_image(one) for one in inner if isinstance(one, _Image))
        elif isinstance(block, _Text):
            parts.append(TextPart(text=block.text))
        elif isinstance(block, _Image):
            parts.append(_image(block))
        elif isinstance(block, _ToolUse):
            raise MalformedBody("A tool_use block belongs into an assistant's message.", param="messages")
    return [*results, Message(role=role, content=content_of(parts))] if parts else results


def _image(block: _Image) -> ImagePart:
    source = block.source
    url = source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"
    return ImagePart(image_url=ImageUrl(url=url))


def _begun(messages: list[Message]) -> str | None:
    """A last message of the assistant is the answer's beginning: the model goes on from its last character."""
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls or not last.text() or len(messages) < 2:
        return None
    return messages.pop().text()


def _tools(given: list[_Tool] | None) -> list[Tool] | None:
    tools = []
    for tool in given or ():
        if tool.type not in (None, "custom"):
            raise UnsupportedParameter(
                f"The tool '{tool.type}' runs on Anthropic's servers and is not supported; define it with an "
                "'input_schema' and run it yourself.",
                param="tools",
            )
        if tool.input_schema is None:
            raise MalformedBody(f"The tool '{tool.name}' has no 'input_schema'.", param="tools")
        tools.append(Tool(function=FunctionSpec(tool.name, tool.description, tool.input_schema)))
    return tools or None


def _choice(choice: _ToolChoice) -> str | dict[str, Any]:
    if choice.type == "tool":
        if not choice.name:
            raise MalformedBody("'tool_choice' of type 'tool' needs a 'name'.", param="tool_choice")
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _format(config: _OutputConfig | None) -> ResponseFormat | None:
    if config is None or config.format is None:
        return None
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=config.format.schema, strict=True))
