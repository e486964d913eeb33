"""The gateway against its own description: what it says of itself is valid, and holds for good and for bad input.

Schemathesis makes requests from ``/openapi.json``, such as fit it and such as do not, and each answer is looked at:
never a 5xx, but for a deadline that the request set itself, and always a status, a type and a body that are described.
What is made does not change from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings

from codriver.engines.null import Null

from .served import KEY, served

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, of the extra 'dev'")
from schemathesis import GenerationMode, checks  # noqa: E402

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
ASKED = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/show",
]
READ = ["/api/tags", "/api/version", "/v1/models", "/v1/models/{id}", "/healthz", "/metrics", "/openapi.json"]
MODES = list(GenerationMode)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served({"auto": Null()}) as found:
        yield found


@pytest.fixture(scope="module")
def description(url: str) -> Any:
    return schemathesis.openapi.from_dict(requests.get(url + "/openapi.json", timeout=10).json())


def test_the_description_is_valid_openapi(description: Any) -> None:
    assert description.raw_schema["openapi"] == "3.1.0"
    description.validate()


def test_no_route_is_left_out(description: Any) -> None:
    assert sorted(description.raw_schema["paths"]) == sorted(ASKED + READ)


def served_likely(body: Any) -> Any:
    """The body with a model that there is, and without ``1.0`` for ``1``: JSON Schema calls that an integer too."""
    if isinstance(body, dict):
        told = {name: served_likely(inner) for name, inner in body.items() if name != "mcp_servers"}
        return told | {"model": ""} if isinstance(body.get("model"), str) else told
    if isinstance(body, list):
        return [served_likely(inner) for inner in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def hold(url: str, description: Any, path: str, mode: GenerationMode, examples: int) -> int:
    """Make ``examples`` requests to ``path`` and check the answers; how many were served."""
    operation = description[path]["POST" if path in ASKED else "GET"]
    cases = operation.as_strategy(generation_mode=mode)
    quiet = settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    served_well = 0

    with requests.Session() as session:

        @quiet
        @given(cases)
        def ask(case: Any) -> None:
            nonlocal served_well
            if mode is GenerationMode.POSITIVE:
                case.body = served_likely(case.body)
            answer = case.call(base_url=url, session=session, headers={"Authorization": f"Bearer {KEY}"}, timeout=20)
            if answer.status_code >= 500:
                assert b'"deadline_exceeded"' in answer.content, (answer.content, case.as_curl_command())
            case.validate_response(answer, checks=CHECKS)
            served_well += answer.status_code == 200

        ask()
    return served_well


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_asked_is_answered_as_described(url: str, description: Any, path: str, mode: GenerationMode) -> None:
    served_well = hold(url, description, path, mode, 25)
    assert served_well or mode is GenerationMode.NEGATIVE  # else nothing but refusals was tried


@pytest.mark.parametrize("path", READ)
def test_what_is_read_is_answered_as_described(url: str, description: Any, path: str) -> None:
    hold(url, description, path, GenerationMode.POSITIVE, 5)


@pytest.mark.slow
@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("mode", MODES)
def test_the_same_with_many_more_requests(url: str, description: Any, path: str, mode: GenerationMode) -> None:
    hold(url, description, path, mode, 300)
