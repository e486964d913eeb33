"""What a user sees of the command line, mistakes included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import codriver


def test_missing_model_names_the_command_that_mends_it(tmp_path: Path) -> None:
    ended = codriver("vehicle", "--port", "0", CODRIVER_ENGINE_KIND="llama_cpp", CODRIVER_HOME=str(tmp_path))
    assert ended.returncode == 2
    assert "error [missing_file]" in ended.stderr
    assert "codriver models pull smollm2-135m-instruct-q4_1" in ended.stderr


def test_model_file_that_is_not_there(tmp_path: Path) -> None:
    ended = codriver("vehicle", "--port", "0", "--model", str(tmp_path / "no.gguf"), CODRIVER_ENGINE_KIND="llama_cpp")
    assert ended.returncode == 2
    assert f"There is no model file {tmp_path / 'no.gguf'}" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "route.polcy=auto"], "Unknown configuration key 'route.polcy' (flag). Did you mean 'route.policy'?"),
        (["--set", "route.policy=fastest"], "'route.policy' is 'fastest'; allowed: auto | vehicle-only"),
        (["--set", "gateway.port=99999"], "'gateway.port' is 99999; allowed: at least 0 and at most 65535."),
        (["--set", "nonsense"], "--set takes section.key=value, not 'nonsense'."),
        (["--config", "no-such-file.toml"], "The configuration file no-such-file.toml does not exist."),
    ],
)
def test_bad_configuration_names_key_and_allowed_values(arguments: list[str], told: str) -> None:
    ended = codriver("vehicle", *arguments)
    assert ended.returncode == 2
    assert told in ended.stderr


def test_unknown_environment_key() -> None:
    ended = codriver("vehicle", CODRIVER_ROUTE_POLCY="auto")
    assert ended.returncode == 2
    assert "Did you mean 'CODRIVER_ROUTE_POLICY'?" in ended.stderr


def test_config_check_and_show(tmp_path: Path) -> None:
    file = tmp_path / "car.toml"
    file.write_text('[route]\npolicy = "vehicle-first"\n\n[gateway]\nport = 9000\n')
    assert codriver("config", "check", str(file)).stdout.endswith("all keys and values are known\n")
    shown = codriver("config", "show", "vehicle").stdout
    assert "CODRIVER_ROUTE_POLICY" in shown
    assert "Longest time for a whole answer" in shown


def test_layers_file_below_environment_below_flag(tmp_path: Path) -> None:
    file = tmp_path / "car.toml"
    file.write_text('[route]\npolicy = "cloud-only"\n')
    # The file's value alone needs a cloud; the environment's does not; the flag's does again.
    assert codriver("vehicle", "--port", "0", "--config", str(file)).returncode == 2
    ended = codriver(
        "vehicle", "--port", "0", "--config", str(file), "--policy", "cloud-first", CODRIVER_ROUTE_POLICY="vehicle-only"
    )
    assert "The policy 'cloud-first' needs a cloud" in ended.stderr


def test_doctor_says_what_is_missing(tmp_path: Path) -> None:
    ended = codriver("doctor", "--json", CODRIVER_HOME=str(tmp_path))
    findings = {finding["what"]: finding for finding in json.loads(ended.stdout)}
    model = findings["model smollm2-135m-instruct-q4_1"]
    assert ended.returncode == 1
    assert model["state"] == "broken"
    assert "codriver models pull smollm2-135m-instruct-q4_1" in model["detail"]
    assert findings["engine null"]["state"] == "ok"


def test_chat_without_a_server() -> None:
    ended = codriver("chat", "hello", "--url", "http://127.0.0.1:9/v1")
    assert ended.returncode == 1
    assert (
        "error [engine_unavailable]: Nothing answers at http://127.0.0.1:9/v1: start one with `codriver up`"
        in ended.stderr
    )


def test_version() -> None:
    assert codriver("--version").stdout.startswith("codriver 0.")
