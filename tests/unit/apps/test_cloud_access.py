"""How a vehicle is told to ask its cloud: going on from a partial answer, and scoring a draft."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from codriver.apps import cloud as cloud_app
from codriver.apps.cloud import Cloud
from codriver.apps.settings import CloudAccess, CloudConfig, InTheCloud, VehicleConfig
from codriver.apps.vehicle import _cloud_config
from codriver.core.engine import Capability
from codriver.core.errors import BadConfigValue
from codriver.engines.null import Null
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.route.trailing import GoesOn

URL = "http://127.0.0.1:9/v1"


def told(**members: Any) -> OpenAIConfig:
    return _cloud_config(VehicleConfig(cloud=CloudAccess(url=URL, **members)))


@pytest.mark.parametrize(
    ("members", "prefill", "can"),
    [
        ({}, "peer", {"prefill"}),
        ({"prefill": "llama_cpp"}, "llama_cpp", {"prefill"}),
        ({"peer": False}, "none", set()),
        ({"peer": False, "prefill": "vllm"}, "vllm", {"prefill"}),
        ({"peer": True, "prefill": "none"}, "none", set()),
        ({"peer": False, "prefill": "vllm", "verify": "vllm", "verify_least": 1.0}, "vllm", {"prefill", "verify"}),
    ],
)
async def test_a_cloud_goes_on_and_scores_as_it_is_told_to(
    members: dict[str, Any], prefill: str, can: set[str]
) -> None:
    config = told(**members)
    assert config.prefill == prefill
    assert config.verify_least == members.get("verify_least", 0.3)
    server = OpenAIServer(config)
    assert {name for name in ("prefill", "verify") if server.card.can(name)} == can
    await server.aclose()


@pytest.mark.parametrize("prefill", ["auto", "none", "llama_cpp"])
def test_scoring_needs_its_way_to_go_on(prefill: str) -> None:
    with pytest.raises(BadConfigValue) as found:
        told(prefill=prefill, verify="vllm")
    assert found.value.message == (
        f"cloud.verify is 'vllm' and cloud.prefill '{prefill}': a draft is scored as the beginning of an answer, so "
        "set cloud.prefill to 'vllm' too."
    )
    assert found.value.param == "cloud.verify"


@pytest.mark.parametrize(("can", "wrapped"), [(set(), True), ({"json_resume"}, False)])
async def test_a_cloud_goes_on_whatever_its_engine(
    can: set[Capability], wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def null(*_: object) -> Null:
        engine = Null()
        engine.card = replace(engine.card, capabilities=engine.card.capabilities | can)
        return engine

    monkeypatch.setattr(cloud_app, "start_on_board", null)
    cloud = Cloud(CloudConfig(engine=InTheCloud(kind="null")))
    async with cloud_app.engine(cloud):
        assert isinstance(cloud.engine, GoesOn) == wrapped


async def test_a_server_behind_a_cloud_is_asked_as_it_is_told_to() -> None:
    cloud = Cloud(CloudConfig(engine=InTheCloud(upstream_url=URL, upstream_prefill="vllm")))
    async with cloud_app.engine(cloud):
        assert isinstance(cloud.engine, GoesOn)
        assert cloud.engine.card.can("prefill")
