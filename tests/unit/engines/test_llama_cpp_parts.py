"""The llama.cpp engine's parts that need no model."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from codriver.core.answer import Answer
from codriver.core.errors import BadImage, EngineError, PromptTooLong, RequestError, UnsupportedParameter
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionCall,
    FunctionSpec,
    ImagePart,
    ImageUrl,
    JsonSchema,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
    parse_chat,
)
from codriver.engines.json_subset import closed, fits
from codriver.engines.llama_cpp import _Ends
from codriver.engines.llama_cpp_calls import BareCallReader
from codriver.engines.llama_cpp_request import Dialect, prepare, refusal
from codriver.engines.llama_cpp_tools import CallReader, call_grammar, describe
from tests.unit.engines.gbnf import Gbnf

PLAIN = Dialect("car", native_tools=False, thinks=False)
NATIVE = Dialect("car", native_tools=True, thinks=False)
NUMBER = {"type": "object", "properties": {"celsius": {"type": "number"}}, "required": ["celsius"]}
TOOL = Tool(function=FunctionSpec(name="heat", parameters=NUMBER))
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nxyz").decode()


def user(content: Any = "Hi", **members: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=content)], **members)


def body(request: ChatRequest, dialect: Dialect = PLAIN) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(prepare(request, dialect).on_slot(2, reuse=True))
    return found


# ---------------------------------------------------------------- requests


def test_unknown_members_pass_and_reserved_ones_do_not() -> None:
    raw = b'{"messages":[{"role":"user","content":"x"}],"top_k":3,"id_slot":7,"cache_prompt":false,"user":"u","n":1}'
    sent = body(parse_chat(raw))
    assert (sent["top_k"], sent["id_slot"], sent["cache_prompt"]) == (3, 2, True)
    assert sent["stream"] and sent["return_progress"] and sent["stream_options"] == {"include_usage": True}
    assert "user" not in sent and "n" not in sent


def test_a_partial_answer_becomes_the_last_message() -> None:
    sent = body(user(continue_from="One, "))
    assert sent["messages"][-1] == {"role": "assistant", "content": "One, "}
    request = user(continue_from=" two")
    request.messages.append(Message(role="assistant", content="One,"))
    assert [m["content"] for m in body(request)["messages"]] == ["Hi", "One, two"]
    assert body(ChatRequest(prompt="a b", continue_from=" c"))["prompt"] == "a b c"


def test_known_schemas_get_the_compact_grammar_and_others_llama_cpps_own() -> None:
    def form(schema: dict[str, Any]) -> ResponseFormat:
        return ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=schema))

    compact = body(user(response_format=form(NUMBER)))
    assert compact["grammar"].startswith("%llguidance") and "response_format" not in compact
    for schema in ({"type": "nonsense"}, {"oneOf": [NUMBER]}, {"type": "string", "pattern": "a+"}):
        assert "grammar" not in body(user(response_format=form(schema)))
    thinking = Dialect("car", native_tools=False, thinks=True)
    assert "grammar" not in body(user(response_format=form(NUMBER)), thinking)
    assert "grammar" not in body(user(response_format=form({"oneOf": [NUMBER]}), continue_from="{"))


def test_json_that_has_begun_gets_a_grammar_of_its_rest() -> None:
    form = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=NUMBER))
    whole = user(response_format=form, continue_from='{"celsius": 2')
    begun = ChatRequest(messages=[*user().messages, Message(role="assistant", content='{"cel')], response_format=form)
    both = msgspec.structs.replace(begun, continue_from='sius": 2')
    for request in (whole, both):
        sent = body(request)
        assert "response_format" not in sent
        assert Gbnf(sent["grammar"]).accepts("1.5}") and not Gbnf(sent["grammar"]).accepts('{"celsius": 21.5}')
        assert sent["messages"][-1] == {"role": "assistant", "content": '{"celsius": 2'}
    assert Gbnf(body(begun)["grammar"]).accepts('sius": 21.5}')
    for other in ("prose", '{"celsius": 2}'):  # llama.cpp refuses the one and ends the other
        sent = body(user(response_format=form, continue_from=other))
        assert "grammar" not in sent and sent["response_format"]


def test_the_schema_subset() -> None:
    assert fits(NUMBER) and fits(True) and fits({"enum": [1, "a"]})
    assert not fits({"properties": {"a": {"$ref": "#/x"}}}) and not fits([]) and not fits({"required": "a"})
    assert closed({"properties": {"a": NUMBER}})["properties"]["a"]["additionalProperties"] is False
    assert closed({"properties": {}, "additionalProperties": True})["additionalProperties"] is True


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://example.com/a.png", "Give images as data URLs"),
        ("file:///etc/passwd", "Give images as data URLs"),
        ("data:image/png;base64,@@@", "base64 data is not valid"),
        ("data:image/png;base64,AAAA", "not a PNG, JPEG, GIF or BMP"),
    ],
)
def test_bad_images_are_refused(url: str, sentence: str) -> None:
    with pytest.raises(BadImage, match=sentence):
        prepare(user([ImagePart(image_url=ImageUrl(url=url))]), PLAIN)


def test_a_good_image_passes() -> None:
    assert PNG in json.dumps(body(user([ImagePart(image_url=ImageUrl(url=PNG))])))


@pytest.mark.parametrize(
    ("problem", "kind", "sentence"),
    [
        (
            {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8},
            PromptTooLong,
            "The prompt has 9 tokens; 'car' has a context of 8 tokens",
        ),
        ({"code": 400, "message": "Failed to load image"}, BadImage, "could not be decoded"),
        ({"code": 400, "message": "roles must alternate"}, RequestError, "refused the request: roles must alternate"),
        ({"code": 500, "message": "boom"}, EngineError, "failed: boom"),
    ],
)
def test_refusals(problem: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    error = refusal("car", json.dumps({"error": problem}).encode(), has_image=True)
    assert type(error) is kind and sentence in error.message
    assert isinstance(refusal("car", b"<html>"), EngineError)


# ---------------------------------------------------------------- tools without a template


def test_tools_are_told_in_the_system_message() -> None:
    call = ToolCall(id="1", function=FunctionCall(name="heat", arguments='{"celsius": 20}'))
    told = describe(
        [
            Message(role="system", content="Be brief."),
            Message(role="user", content="Warm!"),
            Message(role="assistant", tool_calls=[call]),
            Message(role="tool", content="done", tool_call_id="1"),
        ],
        [TOOL],
    )
    assert told[0].text().startswith("Be brief.") and '"name": "heat"' in told[0].text()
    assert told[2].text() == '<tool_call>\n{"name": "heat", "arguments": {"celsius": 20}}\n</tool_call>'
    assert (told[3].role, told[3].text()) == ("user", "<tool_response>\ndone\n</tool_response>")


def test_the_tool_choice_makes_the_grammar() -> None:
    assert call_grammar(user(tools=[TOOL], tool_choice="none")) is None
    assert "TEXT" in (call_grammar(user(tools=[TOOL])) or "")
    assert "TEXT" not in (call_grammar(user(tools=[TOOL], tool_choice="required")) or "TEXT")
    with pytest.raises(UnsupportedParameter, match="names 'cool', which 'tools' does not have"):
        call_grammar(user(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "cool"}}))
    odd = Tool(function=FunctionSpec(name="odd", parameters={"$ref": "#"}))
    with pytest.raises(UnsupportedParameter, match="tool 'odd' use JSON Schema keywords"):
        call_grammar(user(tools=[odd], tool_choice="required"))


def read(*texts: str, finish: str = "stop") -> Answer:
    reader, collected = CallReader(), Answer()
    chunks = [ChatChunk(id="chatcmpl-abc", choices=[ChunkChoice(delta=Delta(content=text))]) for text in texts]
    chunks.append(ChatChunk(id="chatcmpl-abc", choices=[ChunkChoice(finish_reason=finish)]))
    for chunk in chunks:
        for part in reader.feed(chunk):
            collected.add(part)
    return collected


def test_a_call_is_read_wherever_the_pieces_are_cut() -> None:
    text = 'Sure.\n<tool_call>\n{"name": "heat", "arguments": {"celsius": 21}}\n</tool_call>'
    for at in range(1, len(text)):
        choice = read(text[:at], text[at:]).completion().choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Sure.\n"
        assert choice.message.tool_calls and choice.message.tool_calls[0].function.arguments == '{"celsius": 21}'


def test_half_a_call_is_no_call() -> None:
    cut = read('<tool_call>\n{"name": "heat", "arg', finish="length")
    assert cut.finish_reason == "length" and not cut.tool_calls_begun


# ---------------------------------------------------------------- tools with a template


@pytest.mark.parametrize("dialect", [PLAIN, NATIVE])
@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (
            {"tool_choice": {"type": "function", "function": {"name": "cool"}}},
            r"names 'cool', .* have\. It has: heat\.",
        ),
        ({"tool_choice": {"type": "function"}}, "names 'None', which 'tools' does not have"),
        ({"tool_choice": "always"}, "'tool_choice' is 'auto', 'none', 'required' or"),
        ({"tool_choice": "required", "tools": None}, "'required', and 'tools' offers none"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused_by_every_model(
    dialect: Dialect, members: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UnsupportedParameter, match=sentence) as raised:
        prepare(user(**{"tools": [TOOL], **members}), dialect)
    assert raised.value.param == "tool_choice"


def test_a_demanded_call_is_made_by_our_grammar_and_a_free_one_by_the_template() -> None:
    free = body(user(tools=[TOOL]), NATIVE)
    assert "grammar" not in free and free["tools"][0]["function"]["name"] == "heat"
    for choice in ("required", {"type": "function", "function": {"name": "heat"}}):
        prepared = prepare(user(tools=[TOOL], tool_choice=choice), NATIVE)
        sent = msgspec.json.decode(prepared.body)
        assert prepared.reads_calls and sent["grammar"].startswith("%llguidance")
        assert "tools" not in sent and "tool_choice" not in sent and "<tools>" in sent["messages"][0]["content"]
    begun = body(user(tools=[TOOL], tool_choice="required", continue_from="{"), NATIVE)
    assert "tools" in begun and "grammar" not in begun


def read_bare(*texts: str, finish: str = "stop") -> tuple[Answer, int]:
    """The answer, and after how many pieces of text its first came out."""
    reader, collected, first = BareCallReader(frozenset({"heat"})), Answer(), 0
    chunks = [ChatChunk(id="chatcmpl-abc", choices=[ChunkChoice(delta=Delta(content=text))]) for text in texts]
    chunks.append(ChatChunk(id="chatcmpl-abc", choices=[ChunkChoice(finish_reason=finish)]))
    for number, chunk in enumerate(chunks, start=1):
        for part in reader.feed(chunk):
            first = first or number
            collected.add(part)
    return collected, first


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "heat", "arguments": {"celsius": 21}}',
        '```json\n{\n  "name": "heat",\n  "arguments": {\n    "celsius": 21\n  }\n}\n```\n\n\n',
        '{{"name": "heat", "arguments": {"celsius": 21}}}}',
    ],
)
def test_a_bare_call_is_read_wherever_the_pieces_are_cut(text: str) -> None:
    for at in range(1, len(text)):
        choice = read_bare(text[:at], text[at:])[0].completion().choices[0]
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        assert choice.message.tool_calls and choice.message.tool_calls[0].function.arguments == '{"celsius": 21}'


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "fly", "arguments": {}}',
        '{"name": "heat", "arguments": 3}',
        '{"name": "heat", "arguments": {}, "why": "cold"}',
        '{"name": "heat", "arguments": {"cel',
        '{"name": "heat", "arguments": {}} is how to call it.',
        "```python\nprint(1)\n```",
        '{"colour": "red"}',
        "{",
    ],
)
def test_what_is_no_offered_call_stays_text(text: str) -> None:
    collected, _ = read_bare(*text)
    assert collected.text == text and collected.finish_reason == "stop" and not collected.tool_calls_begun


def test_prose_is_not_held_back() -> None:
    assert read_bare("Sure, ", "it is warm.")[1] == 1
    assert read_bare("```", "python", "\nx")[1] == 2
    assert read_bare('{"', "colour", '": 1}')[1] == 2
    assert read_bare('{"name": "he', "llo", '"}')[1] == 2


# ---------------------------------------------------------------- ends


def test_a_stream_is_whole_only_with_finish_reason_and_end_mark() -> None:
    piece = b'{"id":"1","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":%s}]}'
    for payloads, whole in (
        ([piece % b"null"], False),
        ([piece % b'"stop"'], False),
        ([piece % b"null", b"[DONE]"], False),
        ([piece % b'"stop"', b"[DONE]"], True),
    ):
        ends = _Ends(is_text=False)
        for payload in payloads:
            ends.chunks(payload)
        assert ends.reached is whole
