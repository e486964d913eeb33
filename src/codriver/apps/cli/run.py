"""``codriver vehicle``, ``codriver cloud`` and ``codriver up``: the processes that answer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from codriver.core.config import load
from codriver.core.errors import BadConfigValue

from ..both import up_both
from ..cloud import TABLE as CLOUD
from ..cloud import Cloud
from ..ports import refuse_taken
from ..services import run, write_ready_file
from ..settings import CloudConfig, VehicleConfig
from ..vehicle import TABLE as VEHICLE
from ..vehicle import Vehicle
from .fetch import fetch_missing

_PARENT_POLL_S = 0.5
T = TypeVar("T")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; see: codriver config show.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting, as section.key=value; may be given again.")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs TLS.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")]
Model = Annotated[str | None, typer.Option(help="Catalogue name, or the path of a GGUF file.")]
CloudUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible server that is the cloud.")]
CloudModel = Annotated[str | None, typer.Option(help="What that server calls its model.")]
ParentPid = Annotated[int | None, typer.Option(hidden=True, help="End when this process, which started it, is gone.")]
ReadyFile = Annotated[Path | None, typer.Option(help="Written as JSON (url, pid) once requests are served.")]
Pull = Annotated[bool, typer.Option("--pull", help="Fetch the model first where it is missing.")]


def vehicle(
    config: ConfigFile = None,
    settings: Settings = None,
    host: Host = None,
    port: Port = None,
    model: Model = None,
    cloud_url: CloudUrl = None,
    cloud_model: CloudModel = None,
    policy: Annotated[str | None, typer.Option(help="Who answers when a request does not say.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The car computer whose table of actions is followed as it gets hot.")
    ] = None,
    pull: Pull = False,
    ready_file: ReadyFile = None,
    parent_pid: ParentPid = None,
) -> None:
    """Run a vehicle: the model on board, the way to the cloud, the router between them."""
    flags: dict[str, Any] = {
        "gateway.host": host,
        "gateway.port": port,
        "engine.model": model,
        "cloud.url": cloud_url,
        "cloud.model": cloud_model,
        "route.policy": policy,
        "heat.target": target,
    }
    loaded = load(VehicleConfig, config, os.environ, {**given(settings), **set_only(flags)})
    if pull:
        fetch_missing([loaded.engine.model], loaded.catalogue)
    run_loop(run(VEHICLE, Vehicle(loaded), lambda car: _serve(car, ready_file, parent_pid)))


def cloud(
    config: ConfigFile = None,
    settings: Settings = None,
    host: Host = None,
    port: Port = None,
    model: Model = None,
    upstream_url: CloudUrl = None,
    upstream_model: CloudModel = None,
    pull: Pull = False,
    ready_file: ReadyFile = None,
    parent_pid: ParentPid = None,
) -> None:
    """Run a cloud: a bigger model behind the same API, or a server that is already there."""
    flags: dict[str, Any] = {
        "gateway.host": host,
        "gateway.port": port,
        "engine.model": model,
        "engine.upstream_url": upstream_url,
        "engine.upstream_model": upstream_model,
    }
    loaded = load(CloudConfig, config, os.environ, {**set_only(flags), **given(settings)}, [VehicleConfig])
    if pull and not loaded.engine.upstream_url:
        fetch_missing([loaded.engine.model], loaded.catalogue)
    run_loop(run(CLOUD, Cloud(loaded), lambda one: _serve(one, ready_file, parent_pid)))


def up(
    port: Annotated[int, typer.Option(help="Port of the vehicle; the cloud takes the next one.")] = 8000,
    cloud_url: CloudUrl = None,
    cloud_model: CloudModel = None,
    model: Model = None,
) -> None:
    """Run a vehicle and a cloud on this machine, with embedded defaults. Fetches the models on first use."""
    refuse_taken(port, *(() if cloud_url is not None or port == 0 else (port + 1,)))
    wanted = [VehicleConfig().engine.model if model is None else model]
    if cloud_url is None:
        wanted.append(CloudConfig().engine.model)
    fetch_missing(wanted, load(VehicleConfig, None, os.environ).catalogue)
    up_both(port, cloud_url, cloud_model, model)


async def _serve(parts: Vehicle | Cloud, ready_file: Path | None, parent_pid: int | None) -> None:
    assert parts.listening is not None
    url = parts.listening.urls[0] + "/v1"
    kind = "vehicle" if isinstance(parts, Vehicle) else "cloud"
    Console(stderr=True).print(f"[bold]{kind}[/] serves at [link={url}]{url}[/] — stop with Ctrl-C", highlight=False)
    if ready_file is not None:
        write_ready_file(ready_file, url)
    orphaned = asyncio.create_task(_end_with(parent_pid)) if parent_pid is not None else None
    try:
        await parts.listening.until_signal()
    finally:
        if orphaned is not None:
            orphaned.cancel()


async def _end_with(parent_pid: int) -> None:
    """Ask this process to end once the one that started it is gone, however that happened."""
    while os.getppid() == parent_pid:  # noqa: ASYNC110 - a parent's end is no event that a child can await
        await asyncio.sleep(_PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def set_only(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in flags.items() if value is not None}


def given(settings: list[str] | None) -> dict[str, str]:
    """``--set`` options as flags. Errors: :class:`BadConfigValue`."""
    pairs: dict[str, str] = {}
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise BadConfigValue(f"--set takes section.key=value, not '{text}'.", param=key)
        pairs[key] = value
    return pairs
