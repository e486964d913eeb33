"""A vehicle and a cloud as processes: they answer, survive each other's death, and end cleanly."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from .conftest import Running, codriver

Start = Callable[..., Running]


def ask(url: str, **options: Any) -> openai.types.chat.ChatCompletion:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    return client.chat.completions.create(
        model="codriver", messages=[{"role": "user", "content": "hello"}], extra_body={"codriver": options}
    )


def said(completion: openai.types.chat.ChatCompletion) -> dict[str, Any]:
    extension: dict[str, Any] = completion.model_extra["codriver"] if completion.model_extra else {}
    return extension


def metrics(running: Running) -> str:
    with urllib.request.urlopen(running.url.removesuffix("/v1") + "/metrics") as page:
        return str(page.read(), "utf-8")


@pytest.fixture
def pair(start: Start) -> tuple[Running, Running]:
    cloud = start("cloud")
    return start("vehicle", "--cloud-url", cloud.url), cloud


def test_vehicle_asks_the_cloud_and_says_so(pair: tuple[Running, Running]) -> None:
    vehicle, _ = pair
    answer = ask(vehicle.url, policy="cloud-first")
    assert said(answer)["engine"] == "cloud"
    assert answer.choices[0].finish_reason == "stop"


def test_killed_cloud_is_replaced_by_the_vehicle(pair: tuple[Running, Running]) -> None:
    vehicle, cloud = pair
    cloud.stop(signal.SIGKILL)
    answer = ask(vehicle.url, policy="cloud-first")
    assert said(answer)["engine"] == "vehicle"
    assert said(answer)["attempts"][0]["outcome"] == "engine_unavailable"
    assert answer.choices[0].message.content


def test_local_only_never_reaches_the_cloud(pair: tuple[Running, Running]) -> None:
    vehicle, cloud = pair
    before = metrics(cloud)
    answer = ask(vehicle.url, policy="cloud-first", privacy="local_only")
    assert said(answer)["engine"] == "vehicle"
    assert 'route="/v1/chat/completions"' not in before + metrics(cloud)


def test_a_model_by_name_still_obeys_privacy(pair: tuple[Running, Running]) -> None:
    vehicle, _ = pair
    client = openai.OpenAI(base_url=vehicle.url, api_key="none", max_retries=0)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model="cloud",
            messages=[{"role": "user", "content": "hello"}],
            extra_body={"codriver": {"privacy": "local_only"}},
        )
    assert "local_only" in caught.value.message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_vehicle_cleanly(start: Start, number: int) -> None:
    vehicle = start("vehicle")
    assert ask(vehicle.url).choices[0].message.content
    assert vehicle.stop(number) == 0


def test_killed_vehicle_leaves_its_port_and_the_cloud_alone(pair: tuple[Running, Running], start: Start) -> None:
    vehicle, cloud = pair
    port = vehicle.url.split(":")[-1].removesuffix("/v1")
    vehicle.stop(signal.SIGKILL)
    again = start("vehicle", "--port", port, "--cloud-url", cloud.url)
    assert said(ask(again.url, policy="cloud-first"))["engine"] == "cloud"


def test_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = codriver("vehicle", "--port", str(port))
    assert ended.returncode == 2
    assert f"error [port_in_use]: Port {port} on 127.0.0.1 is in use" in ended.stderr
    assert "--port" in ended.stderr


def test_policy_that_needs_a_cloud_without_one() -> None:
    ended = codriver("vehicle", "--port", "0", "--policy", "cloud-first")
    assert ended.returncode == 2
    assert "error [no_cloud_configured]: The policy 'cloud-first' needs a cloud" in ended.stderr


def test_plain_http_to_another_machine_is_refused() -> None:
    ended = codriver("vehicle", "--port", "0", "--cloud-url", "http://192.0.2.1:8001/v1")
    assert ended.returncode == 2
    assert "error [bad_config_value]" in ended.stderr
    assert "codriver keys init" in ended.stderr


def test_vehicle_and_cloud_know_each_other_by_certificate(start: Start, tmp_path: Path) -> None:
    made = codriver("keys", "init", "--folder", str(tmp_path / "keys"))
    assert made.returncode == 0, made.stderr
    keys = tmp_path / "keys"
    cloud = start(
        "cloud",
        *("--set", f"gateway.tls_cert={keys / 'cloud.crt'}", "--set", f"gateway.tls_key={keys / 'cloud.key'}"),
        *("--set", f"gateway.tls_client_ca={keys / 'ca.crt'}"),
    )
    assert cloud.url.startswith("https://")
    shown = ("--set", f"cloud.tls_cert={keys / 'vehicle.crt'}", "--set", f"cloud.tls_key={keys / 'vehicle.key'}")
    trusting = ("--cloud-url", cloud.url, "--set", f"cloud.tls_ca={keys / 'ca.crt'}")
    known = start("vehicle", *trusting, *shown)
    assert said(ask(known.url, policy="cloud-first"))["engine"] == "cloud"
    # Without its certificate the cloud does not let it in, and the vehicle answers by itself.
    stranger = start("vehicle", *trusting)
    assert said(ask(stranger.url, policy="cloud-first"))["engine"] == "vehicle"


def test_up_sees_a_taken_port_before_it_starts_anything(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = codriver(
            "up", "--port", str(port), "--model", str(tmp_path / "a.gguf"), "--cloud-url", "http://127.0.0.1:9"
        )
    assert ended.returncode == 2
    assert f"error [port_in_use]: Port {port} on 127.0.0.1 is not free" in ended.stderr


@pytest.mark.parametrize("port", ["65535", "70000"])
def test_up_needs_ports_that_exist(port: str) -> None:
    ended = codriver("up", "--port", port, "--model", "a.gguf")
    assert ended.returncode == 2
    assert "error [bad_config_value]: There is no port" in ended.stderr


def test_a_process_ends_with_the_one_that_started_it(start: Start) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    vehicle = start("vehicle", "--parent-pid", gone.stdout.decode().strip())
    assert vehicle.process.wait(timeout=30) == 0


def test_a_request_is_one_trace_over_both_processes(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")
    files = {name: tmp_path / f"{name}.jsonl" for name in ("vehicle", "cloud")}
    cloud = start("cloud", CODRIVER_OBSERVE_SPANS="file", CODRIVER_OBSERVE_SPANS_FILE=str(files["cloud"]))
    vehicle = start(
        "vehicle",
        *("--cloud-url", cloud.url),
        CODRIVER_OBSERVE_SPANS="file",
        CODRIVER_OBSERVE_SPANS_FILE=str(files["vehicle"]),
    )
    assert said(ask(vehicle.url, policy="cloud-first"))["engine"] == "cloud"
    for running in (vehicle, cloud):
        assert running.stop() == 0
    spans = {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in files.items()}
    request = next(span for span in spans["vehicle"] if span["parent_id"] is None)
    attempts = [span for span in spans["vehicle"] if span["parent_id"] == request["context"]["span_id"]]
    assert [span["attributes"]["codriver.engine.id"] for span in attempts] == ["cloud"]
    assert attempts[0]["attributes"]["gen_ai.operation.name"] == "chat"
    # The cloud's own span hangs below the attempt: one trace from the car to the model.
    assert spans["cloud"][0]["parent_id"] == attempts[0]["context"]["span_id"]
    assert spans["cloud"][0]["context"]["trace_id"] == request["context"]["trace_id"]
    assert "hello" not in json.dumps(spans)
