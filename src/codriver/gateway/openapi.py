"""``GET /openapi.json``: the gateway's own HTTP API, described in OpenAPI 3.1.

Made from the structs that bodies are parsed into, the ranges and headers that are checked, and the tree of errors, so
that it says what the code does. Rule: every route of the gateway's table is in it, and nothing else. Limit: what
the events of streams hold is left to the references of their APIs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from codriver import __version__
from codriver.core.errors import CodriverError, SetupError
from codriver.core.messages import RANGES, ChatCompletion, ChatRequest, EmbedRequest, RequestOptions
from codriver.core.wire import encode

from . import embeddings
from . import openapi_answers as answers
from .completions import CompletionRequest, TextCompletion
from .console import PREFIX
from .head import OPTION_HEADERS
from .messages import MessagesRequest
from .ollama import OllamaChat, OllamaGenerate
from .ollama_pages import ShowRequest
from .responses import FunctionTools, InputItems, ResponsesRequest

JSON, TEXT = "application/json", "text/plain"
EVENTS, LINES = "text/event-stream", "application/x-ndjson"
_REF = "#/components/schemas/{name}"
_PAGES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "": "text/html"}
# Before a route is known: a head that came too slowly, and one that is too large.
_HEADERS = {header.decode(): field for header, field in OPTION_HEADERS.items()}
_TIME = {"exclusiveMinimum": 0, "exclusiveMaximum": 1e9}
_BOUNDS = {"deadline_ms": _TIME, "first_token_ms": _TIME, "inter_token_ms": _TIME, "budget_usd": {"minimum": 0}}
_ANYWHERE = (408, 431)
_ASKED = (400, 401, 403, 404, 413, 429, 500, 502, 503, 504)
_READ = (400, 401, 500)
_OPEN = (400, 500)
_OWN_NAMES = {"MessagesRequest": {"stop": "stop_sequences"}, "ResponsesRequest": {"max_tokens": "max_output_tokens"}}


@dataclass(frozen=True)
class _Operation:
    """``answer`` is a struct, or the media type of a text; ``streams`` is the media type of an answer in pieces."""

    summary: str
    answer: type | str
    body: type | None = None
    streams: str = ""
    fails: tuple[int, ...] = _ASKED
    status: int = 200


_OPERATIONS = {
    "/v1/chat/completions": _Operation("Answer a chat (OpenAI)", ChatCompletion, ChatRequest, EVENTS),
    "/v1/completions": _Operation("Go on from a text (OpenAI)", TextCompletion, CompletionRequest, EVENTS),
    "/v1/embeddings": _Operation("Turn texts into vectors (OpenAI)", answers.EmbeddingList, EmbedRequest),
    "/v1/responses": _Operation("Answer (OpenAI Responses)", answers.Response, ResponsesRequest, EVENTS),
    "/v1/messages": _Operation("Answer (Anthropic Messages)", answers.AnthropicMessage, MessagesRequest, EVENTS),
    "/api/chat": _Operation("Answer a chat (Ollama)", answers.OllamaChatAnswer, OllamaChat, LINES),
    "/api/generate": _Operation("Answer a prompt (Ollama)", answers.OllamaGenerateAnswer, OllamaGenerate, LINES),
    "/api/embed": _Operation("Turn texts into vectors (Ollama)", answers.OllamaEmbeddings, EmbedRequest),
    "/api/tags": _Operation("List the models (Ollama)", answers.OllamaTags, fails=_READ),
    "/api/show": _Operation("Show a model (Ollama)", answers.OllamaModel, ShowRequest, fails=(*_READ, 404, 413)),
    "/api/version": _Operation("Name the version of Ollama's API", answers.OllamaVersion, fails=_OPEN),
    "/v1/models": _Operation("List the models", answers.ModelList, fails=_READ),
    "/v1/models/{id}": _Operation("Show a model", answers.ModelInfo, fails=(*_READ, 404)),
    "/healthz": _Operation("Say whether any engine can answer", answers.HealthPage, fails=_OPEN),
    "/metrics": _Operation("Metrics for Prometheus", TEXT, fails=_READ),
    "/openapi.json": _Operation("This description", dict, fails=_OPEN),
    "/": _Operation("Go to the console", "", fails=_OPEN, status=307),
    PREFIX.rstrip("/"): _Operation("Go to the console", "", fails=_OPEN, status=307),
    PREFIX + "state": _Operation("What the console shows besides requests", dict, fails=_READ),
    PREFIX + "feed": _Operation("What the console shows as it happens", EVENTS, fails=(*_READ, 429)),
}


def describe(routes: Mapping[str, Iterable[str]]) -> bytes:
    """The description of ``routes``: paths with their methods. Errors: ``KeyError`` for one that has none here."""
    structs = [
        one
        for operation in _OPERATIONS.values()
        for one in (operation.body, operation.answer)
        if inspect.isclass(one) and issubclass(one, msgspec.Struct)
    ]
    problems = (answers.Problem, answers.AnthropicProblem, answers.OllamaProblem)
    read_later = (InputItems, FunctionTools, RequestOptions)
    _, schemas = msgspec.json.schema_components([*structs, *problems, *read_later], ref_template=_REF)
    for schema in schemas.values():
        _tidy(schema)
    for field, bounds in _BOUNDS.items():
        schemas["RequestOptions"]["properties"][field] |= bounds
    for body in {operation.body for operation in _OPERATIONS.values() if operation.body is not None}:
        _limit(schemas[body.__name__], _OWN_NAMES.get(body.__name__, {}))
    # What is parsed in a second step.
    schemas["EmbedRequest"]["properties"]["codriver"] = _ref(RequestOptions)
    for member, later in (("input", "InputItems"), ("tools", "FunctionTools")):
        read = schemas.pop(later)["properties"][member]
        kinds = schemas["ResponsesRequest"]["properties"][member]["anyOf"]
        kinds[:] = [read if one.get("type") == "array" else one for one in kinds]
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Codriver",
            "version": __version__,
            "summary": "One gateway to the models in the vehicle and in the cloud.",
            "description": "Members of a body that are not described here are passed on to the engine. A body that "
            "says a member twice is refused. What is no HTTP at all, comes too slowly or has too large a head is "
            "refused in OpenAI's words, whatever the path.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {path: _path(path, methods) for path, methods in routes.items()},
        "components": {
            "schemas": schemas,
            "parameters": {header: _option(header, field) for header, field in _HEADERS.items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    return encode(document)


def _path(path: str, methods: Iterable[str]) -> dict[str, Any]:
    operation = _OPERATIONS.get(path)
    if operation is None:
        if not path.startswith(PREFIX):
            raise KeyError(path)
        kind = path.removeprefix(PREFIX).rpartition(".")[2]
        operation = _Operation("A file of the console's page", _PAGES[kind], fails=_OPEN)
    item: dict[str, Any] = {method.lower(): _operation(path, operation) for method in methods}
    if "{id}" in path:
        name = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        item["parameters"] = [name]
    return item


def _operation(path: str, operation: _Operation) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary, "responses": dict(_responses(path, operation))}
    if 401 in operation.fails:
        described["security"] = [{}, {"bearer": []}, {"x-api-key": []}]
    if operation.body is not None:
        schema = _ref(operation.body)
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if operation.fails is _ASKED:
        refused = embeddings.REFUSED if operation.body is EmbedRequest else ()
        headers = [header for header, field in _HEADERS.items() if field not in refused]
        described["parameters"] = [{"$ref": f"#/components/parameters/{header}"} for header in headers]
    return described


def _responses(path: str, operation: _Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    content: dict[str, Any] = {}
    if isinstance(operation.answer, str):
        if operation.answer:
            content[operation.answer] = {} if operation.answer == EVENTS else {"schema": {"type": "string"}}
    else:
        content[JSON] = {"schema": _ref(operation.answer)}
    if operation.streams:
        content[operation.streams] = {}
    yield str(operation.status), {"description": "The answer." if content else "Elsewhere.", "content": content}
    if path == "/healthz":
        yield "503", {"description": "None can.", "content": content}
    own: type = answers.OllamaProblem if path.startswith("/api/") else answers.Problem
    own = answers.AnthropicProblem if path == "/v1/messages" else own
    codes = _codes()
    for status in (*operation.fails, *_ANYWHERE):
        told = answers.Problem if status in _ANYWHERE else own
        described = {"description": codes.get(status, "invalid_request"), "content": {JSON: {"schema": _ref(told)}}}
        if status in (429, 503):
            described["headers"] = {"retry-after": {"schema": {"type": "integer", "minimum": 1}}}
        yield str(status), described


def _codes() -> dict[int, str]:
    """The codes of the errors that may come with each status."""
    found: dict[int, list[str]] = {}

    def walk(kind: type[CodriverError]) -> None:
        if not issubclass(kind, SetupError):
            found.setdefault(kind.status, []).append(kind.code)
            for under in kind.__subclasses__():
                walk(under)

    walk(CodriverError)
    return {status: ", ".join(dict.fromkeys(codes)) for status, codes in found.items()}


def _option(header: str, field: str) -> dict[str, Any]:
    """A header that says a member of ``codriver``."""
    types = {one.name: one.type for one in msgspec.structs.fields(RequestOptions)}
    schema = msgspec.json.schema(types[field])
    known = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    words = [word for one in known for word in one.get("enum", ()) if word is not None]
    return {
        "name": header,
        "in": "header",
        "description": f"As 'codriver.{field}' in the body.",
        "schema": {"enum": words} if words else known[0] | _BOUNDS.get(field, {}),
    }


def _ref(kind: type) -> dict[str, Any]:
    return {"type": "object"} if kind is dict else {"$ref": _REF.format(name=kind.__name__)}


def _tidy(schema: dict[str, Any]) -> None:
    """Without what only the inside knows."""
    if "description" in schema:
        schema["description"] = inspect.cleandoc(schema["description"])
    properties = schema.get("properties", {})
    for name in [name for name in properties if name.startswith("__")]:
        del properties[name]


def _limit(schema: dict[str, Any], own_names: Mapping[str, str]) -> None:
    """What is checked after parsing."""
    properties = schema["properties"]
    for name, least, most in RANGES:
        if (limited := properties.get(own_names.get(name, name))) is not None:
            limited |= {"minimum": least, "maximum": most}
    if schema["title"] in ("ChatRequest", "MessagesRequest"):
        properties["messages"] = {name: told for name, told in properties["messages"].items() if name != "default"}
        properties["messages"]["minItems"] = 1
        schema["required"] = sorted({*schema.get("required", ()), "messages"})
    if "encoding_format" in properties:
        properties["input"] |= {"minLength": 1, "minItems": 1}
