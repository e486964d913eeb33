"""The vehicle grows hot: a file in sysfs's format stands for its sensor, everything else is real."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from codriver.apps.engines import start_on_board
from codriver.apps.heat import Governor, governor, paced
from codriver.apps.settings import HeatConfig, OnBoard
from codriver.catalogue import CatalogueConfig
from codriver.core.cadence import Cadence
from codriver.core.clock import ManualClock
from codriver.core.deadline import Deadline
from codriver.core.errors import BadConfigValue, MissingFile, UnknownEntry
from codriver.core.messages import parse_chat
from codriver.engines.null import Null, NullConfig
from codriver.engines.swapping import SwappingEngine
from codriver.observe.metrics import Metrics

from .conftest import Running, codriver

Start = Callable[..., Running]
SETTINGS = OnBoard(kind="null", threads=4)
PROFILE = "[power]\nbudget_w = 20.0\nthrottle_c = 80.0\n"


@pytest.fixture
def sensor(tmp_path: Path) -> Path:
    file = tmp_path / "temp"
    file.write_text("50000\n")
    return file


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    file = tmp_path / "box.toml"
    file.write_text(PROFILE)
    return file


@pytest.fixture
def smaller(tmp_path: Path) -> Path:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"weights")
    return file


def config(sensor: Path, profile: Path, **more: Any) -> HeatConfig:
    return HeatConfig(target=str(profile), temperature_file=sensor, **more)


async def made(config: HeatConfig) -> Governor:
    """A governor of a null engine, which is loaded anew as any engine on board is."""
    cadence = Cadence()
    engine = SwappingEngine(paced(await start_on_board(SETTINGS, CatalogueConfig(), "vehicle"), cadence))
    return governor(config, SETTINGS, engine, CatalogueConfig(), cadence)


async def test_up_at_once_and_down_with_hysteresis(sensor: Path, profile: Path, smaller: Path) -> None:
    rules = await made(config(sensor, profile, smaller=str(smaller)))
    loaded: list[OnBoard] = []

    async def load(wanted: OnBoard) -> Null:
        loaded.append(wanted)
        return Null(NullConfig(id="vehicle"))

    rules.load, rules.metrics = load, Metrics()
    seen = []
    for thousandths in (50_000, 76_000, 74_000, 79_500, 77_000, 71_900, 50_000):
        sensor.write_text(f"{thousandths}\n")
        await rules.step()
        seen.append((rules.at, rules.cadence.factor, rules.engine.health().state))
    assert seen == [
        (0, 1.0, "ready"), (2, 4.0, "ready"), (2, 4.0, "ready"), (3, 0.0, "down"), (3, 0.0, "down"), (1, 2.0, "ready"),
        (0, 1.0, "ready"),
    ]  # fmt: skip
    # Smaller on half of the threads; resting loads nothing; then the full model on three of four, then as it was.
    assert [(one.model == str(smaller), one.threads) for one in loaded] == [(True, 2), (False, 3), (False, 4)]
    page = rules.metrics.render()[0].decode()
    assert 'codriver_heat_step{step="normal"} 1.0' in page and 'codriver_heat_step{step="hot"} 0.0' in page
    assert "codriver_heat_celsius 50.0" in page
    await rules.engine.aclose()


async def test_what_it_does_is_told(sensor: Path, profile: Path, smaller: Path) -> None:
    rules = await made(config(sensor, profile, smaller=str(smaller)))
    sensor.write_text("76000")
    await rules.step()
    told = rules.engine.health().reason
    assert told == "the computer is hot (76 °C): small.gguf on 2 threads", "and no place on the disk"
    sensor.write_text("85000")
    await rules.step()
    assert rules.engine.health().reason == "it rests while the computer is critical (85 °C)"
    await rules.engine.aclose()


async def test_power_that_may_be_taken_counts_as_well(tmp_path: Path, profile: Path) -> None:
    file = tmp_path / "power1_cap"
    file.write_text("20000000")
    rules = await made(HeatConfig(target=str(profile), power_file=file))
    for microwatts, row in ((20_000_000, 0), (14_000_000, 1), (9_000_000, 2), (10_500_000, 2), (20_000_000, 0)):
        file.write_text(str(microwatts))
        await rules.step()
        assert rules.at == row
    await rules.engine.aclose()


async def test_a_sensor_that_is_gone_changes_nothing_and_is_told_once(
    sensor: Path, profile: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = await made(config(sensor, profile))
    sensor.write_text("85000")
    await rules.step()
    for content in (None, "", "warm", "999000"):
        if content is None:
            sensor.unlink()
        else:
            sensor.write_text(content)
        with caplog.at_level(logging.WARNING, "codriver.apps"):
            await rules.step()
        assert rules.at == 3 and rules.engine.health().state == "down"
    reasons = [getattr(record, "reason", "") for record in caplog.records if "cannot be read" in record.message]
    assert len(reasons) == 1 and reasons[0].startswith(f"The file {sensor} cannot be read, which should tell a temp")
    await rules.engine.aclose()


async def test_a_model_that_does_not_load_leaves_the_one_in_place_and_is_not_tried_again(
    sensor: Path, profile: Path, smaller: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules, tried = await made(config(sensor, profile, smaller=str(smaller))), []

    async def load(wanted: OnBoard) -> Null:
        tried.append(wanted.model)
        raise MissingFile("There is no model file small.gguf.")

    rules.load = load
    sensor.write_text("76000")
    with caplog.at_level(logging.ERROR, "codriver.apps"):
        for _ in range(3):
            await rules.step()
    assert tried == [str(smaller)] and rules.engine.health().state == "ready"
    assert rules.engine.health().reason == "the computer is hot (76 °C): all is as it was"
    assert [getattr(record, "reason", "") for record in caplog.records] == ["There is no model file small.gguf."]
    await rules.engine.aclose()


async def test_a_long_answer_does_not_keep_it_from_resting(sensor: Path, profile: Path, smaller: Path) -> None:
    """The engine before is still writing when the next row wants another one."""
    rules = await made(config(sensor, profile, smaller=str(smaller)))

    async def load(wanted: OnBoard) -> Null:
        return Null(NullConfig(id="vehicle"))

    rules.load = load
    body = b'{"messages": [{"role": "user", "content": "Hello"}], "stream": true}'
    answer = aiter(rules.engine.generate(parse_chat(body), Deadline.never()))
    await anext(answer)
    for thousandths, row, state in ((76_000, 2, "ready"), (71_000, 1, "ready"), (85_000, 3, "down")):
        sensor.write_text(f"{thousandths}")
        await asyncio.wait_for(rules.step(), 5)
        assert (rules.at, rules.engine.health().state) == (row, state)
    assert [chunk async for chunk in answer], "the answer goes on to its end"
    sensor.write_text("50000")
    await rules.step()
    assert rules.engine.health().reason == "", "and then all is as it was"
    await rules.engine.aclose()


async def test_it_looks_as_often_as_it_is_told_to_and_whatever_happens(
    sensor: Path, profile: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(wanted: OnBoard) -> Null:
        raise RuntimeError("nobody thought of this")

    rules = await made(config(sensor, profile, every_s=2.0))
    rules.clock, rules.load = ManualClock(), broken
    clock = rules.clock
    running = asyncio.create_task(rules.run())
    await clock.advance(0.1)
    sensor.write_text("76000")
    await clock.advance(1.8)
    assert rules.at == 0
    with caplog.at_level(logging.ERROR, "codriver.apps"):
        await clock.advance(0.2)
    assert rules.at == 2 and "heat: a look at it failed" in caplog.text and "nobody thought of this" in caplog.text
    sensor.write_text("85000")
    await clock.advance(2.0)
    assert rules.at == 3 and rules.engine.health().state == "down"
    running.cancel()
    await rules.engine.aclose()


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"target": "orin-mx"}, UnknownEntry, "There is no target 'orin-mx'"),
        ({"smaller": "/nowhere/small.gguf"}, MissingFile, r"There is no model file /nowhere/small\.gguf"),
        ({"temperature_file": Path("/nowhere/temp")}, MissingFile, "/nowhere/temp cannot be read, which should tell a"),
        ({"power_file": Path("/nowhere/cap")}, MissingFile, "/nowhere/cap cannot be read, which should tell a power"),
        ({"target": "rcar-v4h"}, BadConfigValue, r"The target rcar-v4h has no 'power\.throttle_c'"),
    ],
)
async def test_what_is_missing_is_told_before_anything_is_served(
    sensor: Path, profile: Path, change: dict[str, Any], error: type[Exception], told: str
) -> None:
    given = {"target": str(profile), "temperature_file": sensor, **change}
    with pytest.raises(error, match=told):
        await made(HeatConfig(**given))


async def test_a_bad_table_is_told_before_anything_is_served(sensor: Path, profile: Path) -> None:
    profile.write_text(f"{PROFILE}[[actions.steps]]\nname = 'a'\n[[actions.steps]]\nname = 'b'\nthreads_share = 0.0\n")
    with pytest.raises(BadConfigValue, match=r"'actions\.steps\[1\]\.threads_share' is 0"):
        await made(config(sensor, profile))


def test_a_running_vehicle_leaves_its_answers_to_the_cloud_while_it_is_too_hot(
    start: Start, sensor: Path, profile: Path
) -> None:
    cloud = start("cloud")
    vehicle = start(
        *("vehicle", "--cloud-url", cloud.url, "--target", str(profile)),
        CODRIVER_HEAT_TEMPERATURE_FILE=str(sensor), CODRIVER_HEAT_EVERY_S="0.05", CODRIVER_ENGINE_THREADS="4",
    )  # fmt: skip
    root = vehicle.url.removesuffix("/v1")

    def until(what: str) -> dict[str, Any]:
        give_up_s = time.monotonic() + 30
        while time.monotonic() < give_up_s:
            health: dict[str, Any] = json.load(urllib.request.urlopen(f"{root}/healthz"))["engines"]["vehicle"]
            if what in health.get("reason", ""):
                return health
            time.sleep(0.02)  # another process's clock cannot be injected
        pytest.fail(f"the vehicle never said {what!r}")

    def attempt(policy: str) -> dict[str, Any]:
        client = openai.OpenAI(base_url=vehicle.url, api_key="none", max_retries=0)
        asked: Any = [{"role": "user", "content": "hello"}]
        answer = client.chat.completions.create(
            model="codriver", messages=asked, extra_body={"codriver": {"policy": policy}}
        )
        told: dict[str, Any] = (answer.model_extra or {})["codriver"]
        return {"engine": told["engine"], "why": told["attempts"][0]["why"]}

    assert attempt("vehicle-only") == {"engine": "vehicle", "why": "the only place allowed"}
    sensor.write_text("76000\n")
    assert until("hot")["state"] == "ready"
    assert attempt("vehicle-only")["why"].startswith("the only place allowed; the computer is hot (76 °C): ")
    sensor.write_text("82000\n")
    assert until("critical")["state"] == "down"
    found = attempt("auto")
    assert found["engine"] == "cloud" and "it rests while the computer is critical (82 °C)" in found["why"]
    with pytest.raises(openai.APIStatusError, match="it rests while the computer is critical"):
        attempt("vehicle-only")
    page = urllib.request.urlopen(f"{root}/metrics").read().decode()
    assert 'codriver_heat_step{step="critical"} 1.0' in page and "codriver_heat_celsius 82.0" in page
    sensor.write_text("40000\n")
    give_up_s = time.monotonic() + 30
    while attempt("auto")["engine"] != "vehicle" and time.monotonic() < give_up_s:
        time.sleep(0.02)
    assert attempt("vehicle-only") == {"engine": "vehicle", "why": "the only place allowed"}
    assert vehicle.stop() == 0


def test_heat_that_cannot_be_read_ends_the_command_with_a_sentence(profile: Path) -> None:
    done = codriver("vehicle", "--port", "0", "--target", str(profile), CODRIVER_HEAT_TEMPERATURE_FILE="/nowhere/temp")
    assert (
        done.returncode == 2 and "The file /nowhere/temp cannot be read, which should tell a temperature" in done.stderr
    )
