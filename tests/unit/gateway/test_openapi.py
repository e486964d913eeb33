"""The description of the gateway's own API: whole, true to the table of routes, nothing that only the inside knows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codriver.core.errors import CodriverError, EngineError, RequestError
from codriver.engines.null import Null
from codriver.gateway import Console, Gateway, GatewayConfig, openapi
from codriver.observe.journal import Journal
from codriver.observe.metrics import Metrics

from .serving import Scripted, get, running

FILES = {"index.html": b"", "console.js": b"", "console.css": b"", "icon.svg": b""}


def gateway() -> Gateway:
    made = Gateway({"auto": Null()}, "auto", GatewayConfig(), Metrics())
    made.show(Console(Journal(), FILES, {}, dict))
    return made


def described(routes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(openapi.describe(routes))
    return document


def test_every_route_is_described_and_nothing_else() -> None:
    routes = gateway()._routes
    table = {(path, method.lower()) for path, methods in routes.items() for method in methods}
    paths = described(routes)["paths"]
    assert table == {(path, method) for path, item in paths.items() for method in item if method != "parameters"}
    files = {f"{openapi.PREFIX}{name}" for name in ("", *FILES)}
    assert set(openapi._OPERATIONS) | files == set(routes)  # no description is left over


def test_a_route_without_a_description_is_noticed() -> None:
    with pytest.raises(KeyError, match="/v1/new"):
        openapi.describe({"/v1/new": ["POST"]})


def test_every_reference_leads_somewhere() -> None:
    document = described(gateway()._routes)

    def references(part: Any) -> set[str]:
        if isinstance(part, dict):
            own = {part["$ref"]} if "$ref" in part else set()
            own |= set(part.get("discriminator", {}).get("mapping", {}).values())
            return own.union(*(references(inner) for inner in part.values()))
        return set().union(*(references(inner) for inner in part)) if isinstance(part, list) else set()

    known = {f"#/components/{kind}/{name}" for kind, part in document["components"].items() for name in part}
    assert references(document) <= known


def test_nothing_internal_is_described_and_ranges_are() -> None:
    text = openapi.describe(gateway()._routes).decode()
    assert "__raw__" not in text and "__privacy__" not in text
    schemas = json.loads(text)["components"]["schemas"]
    chat, said = schemas["ChatRequest"]["properties"], schemas["MessagesRequest"]["properties"]
    assert (chat["temperature"]["minimum"], chat["temperature"]["maximum"]) == (0, 2)
    assert said["max_tokens"]["minimum"] == 1
    assert schemas["ResponsesRequest"]["properties"]["max_output_tokens"]["minimum"] == 1
    assert schemas["EmbedRequest"]["properties"]["codriver"] == {"$ref": "#/components/schemas/RequestOptions"}


def test_every_error_that_a_request_may_end_with_is_named_with_its_status() -> None:
    responses = described(gateway()._routes)["paths"]["/v1/chat/completions"]["post"]["responses"]

    def walk(kind: type[CodriverError]) -> None:
        if kind.code != "method_not_allowed":  # of another method
            assert kind.code in responses[str(kind.status)]["description"].split(", "), kind
        for under in kind.__subclasses__():
            walk(under)

    walk(RequestError)
    walk(EngineError)


async def test_it_is_served_without_a_key_and_follows_the_table() -> None:
    async with running(Scripted(), api_keys=("secret",)) as server:
        first = await get(server.port, "/openapi.json")
        assert (first.status, first.headers["content-type"]) == (200, "application/json")
        paths = json.loads(first.body)["paths"]
        assert "/v1/chat/completions" in paths and "/console/feed" not in paths
        server._app.show(Console(Journal(), FILES, {}, dict))
        assert "/console/feed" in json.loads((await get(server.port, "/openapi.json")).body)["paths"]
