"""Spans follow the conventions, nest, and cost nothing while nobody traces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from codriver.core.engine import EngineCard
from codriver.core.errors import BadConfigValue
from codriver.observe import spans
from codriver.observe.config import ObserveConfig
from codriver.observe.setup import configure_spans

CARD = EngineCard(id="cloud", locality="cloud", model="qwen")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

TRACED = f"""
import sys
from pathlib import Path
from codriver.core.engine import EngineCard
from codriver.core.errors import LinkDown
from codriver.core.messages import Usage
from codriver.observe import spans
from codriver.observe.config import ObserveConfig
from codriver.observe.setup import configure_spans

stop = configure_spans(ObserveConfig(spans="file", spans_file=Path(sys.argv[1])), "codriver-test")
request = spans.start_request("auto", "/v1/chat/completions", {{"traceparent": "{PARENT}"}})
usage = Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10)
with request.activate():
    failed = spans.start_attempt(EngineCard(id="cloud", locality="cloud", model="qwen"), 0, "best", "10.0.0.1")
    with failed.activate():
        assert spans.outgoing_headers()["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    failed.end("link_down", error=LinkDown("The link is down."))
    second = spans.start_attempt(EngineCard(id="vehicle", locality="vehicle"), 1, "fallback")
    second.first_token()
    second.first_token()
    second.end("ok", usage)
    second.end("again")
request.answered_by("smollm2", ("stop",))
request.end(200, usage=usage)
stop()
"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """A process of its own, because a tracer provider can be set only once."""
    pytest.importorskip("opentelemetry.sdk", reason="needs codriver[otel]")
    file = tmp_path_factory.mktemp("spans") / "deep" / "spans.jsonl"
    subprocess.run([sys.executable, "-c", TRACED, str(file)], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return {span["attributes"].get("codriver.engine.id", "request"): span for span in found}


def test_attempts_are_children_of_the_request(traced: dict[str, dict[str, object]]) -> None:
    request = traced["request"]
    assert request["parent_id"] == "0xb7ad6b7169203331"
    for name in ("cloud", "vehicle"):
        assert traced[name]["parent_id"] == request["context"]["span_id"]  # type: ignore[index]


def test_attributes_follow_the_conventions(traced: dict[str, dict[str, object]]) -> None:
    assert traced["request"]["name"] == "chat auto"
    assert traced["cloud"]["name"] == "chat qwen"
    attributes: dict[str, object] = traced["request"]["attributes"]  # type: ignore[assignment]
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.response.model"] == "smollm2"
    assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert attributes["gen_ai.usage.input_tokens"] == 7
    failed: dict[str, object] = traced["cloud"]["attributes"]  # type: ignore[assignment]
    assert failed["error.type"] == "link_down"
    assert failed["server.address"] == "10.0.0.1"
    assert traced["cloud"]["status"]["status_code"] == "ERROR"  # type: ignore[index]
    second: dict[str, object] = traced["vehicle"]["attributes"]  # type: ignore[assignment]
    assert second["codriver.attempt.outcome"] == "ok"
    assert second["codriver.attempt.index"] == 1
    assert float(second["gen_ai.response.time_to_first_chunk"]) >= 0  # type: ignore[arg-type]


def test_without_an_sdk_the_null_spans_are_shared() -> None:
    request = spans.start_request("auto", "/v1/chat/completions", {"traceparent": PARENT})
    assert request is spans.NO_REQUEST_SPAN
    with request.activate():
        assert spans.start_attempt(CARD, 0, "best") is spans.NO_ATTEMPT_SPAN
        assert spans.outgoing_headers() == {}


def test_a_file_exporter_without_a_file_says_which_key_is_missing() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs codriver[otel]")
    with pytest.raises(BadConfigValue, match=r"set observe\.spans_file"):
        configure_spans(ObserveConfig(spans="file"), "codriver-test")


def test_without_the_sdk_the_error_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from codriver.observe.setup import configure_spans\n"
        "from codriver.observe.config import ObserveConfig\n"
        "configure_spans(ObserveConfig(spans='console'), 'codriver-test')"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert "pip install 'codriver[otel]'" in done.stderr


def test_spans_off_costs_nothing() -> None:
    configure_spans(ObserveConfig(), "codriver-test")()
    assert not spans.enabled()
