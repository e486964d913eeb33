"""What the console shows of a process: its built files are there, its settings hold no secret."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from codriver.apps.console import page_files
from codriver.apps.console.state import console_state, shown_settings
from codriver.apps.settings import CloudAccess, CloudConfig, OnBoard, VehicleConfig
from codriver.core.config import describe
from codriver.engines.null import Null
from codriver.gateway.config import GatewayConfig
from codriver.privacy.config import PrivacyConfig
from codriver.route.config import RouteConfig
from codriver.route.lineup import Lineup

from .conftest import Running

Start = Callable[..., Running]
JS_BYTES = 60_000


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as page:
        return bytes(page.read())


def test_the_built_page_is_small_whole_and_loads_nothing_from_elsewhere() -> None:
    files = page_files()
    page = files["index.html"].decode()
    named = re.findall(r'(?:src|href)="\./([^"]+)"', page)
    assert sorted(named) == sorted(set(files) - {"index.html"})
    assert re.findall(r'(?:src|href)="(?!\./|#)', page) == []
    assert "<style" not in page
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert len(files["console.js"]) < JS_BYTES
    assert b"innerHTML" not in files["console.js"]


def test_settings_are_shown_without_secrets() -> None:
    config = VehicleConfig(
        privacy=PrivacyConfig(names=("Hush",), names_file=Path("/home/hush/names")),
        gateway=GatewayConfig(
            api_keys=("hush",),
            key_privacy=("redact=hush",),
            keys_file=Path("/home/hush/keys"),
            tls_key=Path("/home/hush/tls"),
        ),
        cloud=CloudAccess(url="https://hush:hush@cloud.example:8001/v1?key=hush", api_key_env="HUSH"),
        engine=OnBoard(model="/home/hush/model.gguf", prefix_file=Path("/home/hush/p.json")),
        route=RouteConfig(calibration=Path("/home/hush/mine.json")),
    )
    shown = {one["key"]: one["value"] for one in shown_settings(config)}
    assert shown["cloud.url"] == "https://cloud.example:8001/v1"
    assert shown["engine.model"] == "model.gguf"
    assert shown["route.calibration"] == "mine.json"
    assert shown["route.policy"] == "auto"
    assert "hush" not in json.dumps(shown).lower()


def test_no_setting_that_could_hold_a_secret_is_shown() -> None:
    shown = {one["key"] for config in (VehicleConfig(), CloudConfig()) for one in shown_settings(config)}
    every = {one.key for config in (VehicleConfig, CloudConfig) for one in describe(config)}
    risky = {key for key in every if re.search(r"_key|keys|key_|names|tls|secret|password|_env|file", key)}
    assert risky
    assert shown & risky == set()


def test_the_state_of_a_line_up() -> None:
    engine = Null()
    engine.card = replace(engine.card, id="vehicle", model="/home/me/model.gguf")
    state = console_state("vehicle", VehicleConfig(), ("codriver", "vehicle"), Lineup({"vehicle": engine}))
    (one,) = state["engines"]
    assert (state["kind"], state["models"]) == ("vehicle", ["codriver", "vehicle"])
    assert (one["name"], one["model"], one["breaker"]) == ("vehicle", "model.gguf", "closed")
    assert one["health"].state == "ready"


def test_vehicle_and_cloud_serve_the_console(start: Start) -> None:
    cloud = start("cloud")
    vehicle = start("vehicle", "--cloud-url", cloud.url)
    for running, kind, engines in ((vehicle, "vehicle", ["vehicle", "cloud"]), (cloud, "cloud", ["cloud"])):
        base = running.url.removesuffix("/v1")
        assert b"Codriver console" in fetch(base + "/")
        assert fetch(base + "/console/console.js") == page_files()["console.js"]
        state: dict[str, Any] = json.loads(fetch(base + "/console/state"))
        assert state["kind"] == kind
        assert [engine["name"] for engine in state["engines"]] == engines


def test_the_console_can_be_left_out(start: Start) -> None:
    vehicle = start("vehicle", "--set", "gateway.console=false")
    try:
        fetch(vehicle.url.removesuffix("/v1") + "/console/")
    except urllib.error.HTTPError as error:
        assert error.code == 404
    else:
        raise AssertionError("the console was served")
