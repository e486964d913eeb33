"""The systems that the fault catalogue tests, each a process of its own and each told the same two engines per case.

Codriver is what a vehicle runs: the gateway on a socket and, per case, the router with its link monitor, the first
engine as the cloud and the second as the vehicle's own. The rivals are set up as their documentation advises: fallback,
a time limit on each attempt, one retry. Run as ``python -m codriver.bench.fault_systems PORT FILE`` for ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import msgspec
import uvloop

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.gateway.tls import client_context
from codriver.observe.metrics import Metrics
from codriver.route.config import LinkConfig, RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup, Pace
from codriver.route.link import LinkMonitor

from .fault_cases import Scenario

_ANSWER_TOKENS = 26
RETRIES = 1
# Portkey adds headers to what it fetched. Under node its listener puts a Response of its own in place of node's, which
# shares the fetched headers, and those cannot be changed: every answer would be a 500. With node's own it works.
_NODES_OWN_RESPONSE = "data:text/javascript," + quote(
    "const define = Object.defineProperty; Object.defineProperty = (on, name, what) =>"
    " on === globalThis && name === 'Response' ? on : define(on, name, what);"
)


@dataclass(frozen=True)
class Limits:
    """Seconds. The client's deadline and its grace, Codriver's two limits on silence, a rival's limit on an attempt."""

    deadline_s: float = 4.0
    grace_s: float = 2.0
    first_token_s: float = 1.0
    inter_token_s: float = 0.8
    connect_s: float = 1.0
    attempt_s: float = 1.0


@dataclass(frozen=True)
class Engines:
    """The two engines of one scenario: addresses and the model's name at each. ``probe``: the path of the link's
    probe.
    """

    key: str
    first_url: str
    first_model: str
    second_url: str
    second_model: str
    probe: str


@dataclass(frozen=True)
class Told:
    """What a system is started with."""

    engines: tuple[Engines, ...]
    limits: Limits = field(default_factory=Limits)
    link: LinkConfig = field(default_factory=LinkConfig)
    ca: str = ""
    link_aware: bool = True


def engines_of(scenario: Scenario, url: Callable[[str], str]) -> Engines:
    """``url`` gives the base address of ``first`` and ``second``."""
    first = url("first")
    path = "/" + first.split("://", 1)[1].split("/", 1)[1]
    fault = scenario.fault
    return Engines(scenario.key, first, fault.name, url("second"), fault.second, path.removesuffix("/v1") + "/health")


# ---------------------------------------------------------------- Codriver


@contextlib.asynccontextmanager
async def own_models(told: Told) -> AsyncIterator[dict[str, Engine]]:
    """A router per scenario, under the scenario's key as the model's name."""
    async with contextlib.AsyncExitStack() as stack:
        yield {engines.key: await _router(engines, told, stack) for engines in told.engines}


async def _router(engines: Engines, told: Told, stack: contextlib.AsyncExitStack) -> HybridEngine:
    limits = told.limits

    def probe() -> Awaitable[float]:
        return cloud.probe(Deadline.after(told.link.retry_s))

    monitor = LinkMonitor(probe, told.link)
    cloud = OpenAIServer(
        OpenAIConfig(
            id="cloud",
            url=engines.first_url,
            model=engines.first_model,
            health_path=engines.probe,
            connect_timeout_s=limits.connect_s,
        ),
        monitor,
        _tls(engines.first_url, told.ca),
    )
    vehicle = OpenAIServer(
        OpenAIConfig(
            id="vehicle",
            url=engines.second_url,
            model=engines.second_model,
            locality="vehicle",
            prefill="vllm",
            connect_timeout_s=limits.connect_s,
        )
    )
    stack.push_async_callback(cloud.aclose)
    stack.push_async_callback(vehicle.aclose)
    stack.callback(asyncio.create_task(monitor.run()).cancel)
    lineup = Lineup({"vehicle": vehicle, "cloud": cloud}, monitor)
    # What a vehicle has learnt of its own engine after some answers.
    lineup.paces["vehicle"] = Pace(limits.deadline_s / 40, limits.deadline_s / 400, _ANSWER_TOKENS)
    config = RouteConfig(
        policy="cloud-first",
        deadline_s=limits.deadline_s,
        first_token_s=limits.first_token_s,
        inter_token_s=limits.inter_token_s,
        link_aware=told.link_aware,
    )
    return HybridEngine(lineup, config, engines.key)


def _tls(url: str, ca: str) -> ssl.SSLContext | None:
    return client_context(Path(ca)) if url.startswith("https") and ca else None


async def _run_own(port: int, told: Told) -> None:
    config = GatewayConfig(port=port)
    async with own_models(told) as models:
        listening = await serve(Gateway(models, next(iter(models)), config, Metrics()), config)
        await listening.until_signal()


def own_command(folder: Path, port: int, told: Told) -> list[str]:
    file = folder / "codriver-faults.json"
    file.write_bytes(msgspec.json.encode(told))
    return [sys.executable, "-m", "codriver.bench.fault_systems", str(port), str(file)]


# ---------------------------------------------------------------- rivals


def litellm_command(folder: Path, port: int, told: Told) -> list[str] | None:
    """LiteLLM's proxy with a model and its fallback per scenario; ``None`` when it is not in ``$CODRIVER_RIVALS``."""
    binary = _rivals() / "bin" / "litellm"
    if not binary.is_file():
        return None
    models: list[dict[str, object]] = []
    for engines in told.engines:
        models.append(_litellm_model(engines.key, engines.first_url, engines.first_model, told.limits))
        models.append(_litellm_model(f"{engines.key}-second", engines.second_url, engines.second_model, told.limits))
    settings = {
        "model_list": models,
        "router_settings": {
            "num_retries": RETRIES,
            "timeout": told.limits.attempt_s,
            "stream_timeout": told.limits.attempt_s,
            "fallbacks": [{engines.key: [f"{engines.key}-second"]} for engines in told.engines],
        },
        "litellm_settings": {"telemetry": False},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    file = folder / "litellm-faults.yaml"
    file.write_text(json.dumps(settings))  # every JSON file is YAML
    return [str(binary), "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def _litellm_model(name: str, url: str, model: str, limits: Limits) -> dict[str, object]:
    params = {
        "model": f"openai/{model}",
        "api_base": url,
        "api_key": "none",
        "timeout": limits.attempt_s,
        "stream_timeout": limits.attempt_s,
    }
    return {"model_name": name, "litellm_params": params}


def litellm_env(told: Told) -> dict[str, str]:
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_PROXY": "127.0.0.1"}
    return env | ({"SSL_CERT_FILE": told.ca} if told.ca else {})


def portkey_command(port: int) -> list[str] | None:
    """Portkey's gateway under node; ``None`` when either is not there."""
    script = _rivals() / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    node = shutil.which("node")
    if node is None or not script.is_file():
        return None
    return [node, "--import", _NODES_OWN_RESPONSE, str(script), f"--port={port}", "--headless"]


def portkey_env(told: Told) -> dict[str, str]:
    return {"NODE_EXTRA_CA_CERTS": told.ca} if told.ca else {}


def portkey_headers(engines: Engines, limits: Limits) -> dict[str, str]:
    """The configuration that goes with each request: fall back from the first engine to the second."""
    targets = [
        {
            "provider": "openai",
            "api_key": "none",
            "custom_host": url,
            "override_params": {"model": model},
            "retry": {"attempts": RETRIES},
            "request_timeout": int(1e3 * limits.attempt_s),
        }
        for url, model in ((engines.first_url, engines.first_model), (engines.second_url, engines.second_model))
    ]
    return {"x-portkey-config": json.dumps({"strategy": {"mode": "fallback"}, "targets": targets})}


def version_of(system: str) -> str:
    """The rival's version, as its installation says; empty for ours."""
    if system == "litellm":
        found = next(_rivals().glob("lib/python*/site-packages/litellm-*.dist-info"), None)
        return found.name.removesuffix(".dist-info").replace("-", " ") if found else ""
    manifest = _rivals() / "node_modules" / "@portkey-ai" / "gateway" / "package.json"
    if system != "portkey" or not manifest.is_file():
        return ""
    return f"@portkey-ai/gateway {json.loads(manifest.read_text())['version']}"


def _rivals() -> Path:
    return Path(os.environ.get("CODRIVER_RIVALS") or "/nonexistent")


def main(arguments: Sequence[str]) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        told = msgspec.json.decode(Path(arguments[1]).read_bytes(), type=Told)
        uvloop.run(_run_own(int(arguments[0]), told))


if __name__ == "__main__":
    main(sys.argv[1:])
