"""How a vehicle is told to ask its cloud: going on from a partial answer, and scoring a draft."""

from __future__ import annotations

from typing import Any

import pytest

from codriver.apps.settings import CloudAccess, VehicleConfig
from codriver.apps.vehicle import _cloud_config
from codriver.core.errors import BadConfigValue
from codriver.engines.openai import OpenAIConfig, OpenAIServer

URL = "http://127.0.0.1:9/v1"


def told(**members: Any) -> OpenAIConfig:
    return _cloud_config(VehicleConfig(cloud=CloudAccess(url=URL, **members)))


@pytest.mark.parametrize(
    ("members", "prefill", "can"),
    [
        ({}, "llama_cpp", {"prefill"}),
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


def test_scoring_needs_a_way_to_go_on() -> None:
    with pytest.raises(BadConfigValue) as found:
        told(peer=False, verify="vllm")
    assert found.value.message == (
        "cloud.verify is 'vllm', and a draft is scored as the beginning of an answer: set cloud.prefill too."
    )
    assert found.value.param == "cloud.verify"
