"""The gateway bench's parts: the asyncio load generator, the upstream as a process, and the rows."""

from __future__ import annotations

import sys

import aiohttp
import pytest

from codriver.bench import load
from codriver.bench.gateway import _rows, _Samples
from codriver.bench.gateway_servers import free_port, own_command, started
from codriver.bench.load import Load
from codriver.core.errors import EngineUnavailable


@pytest.mark.parametrize("body", [b'{"messages":[]}', b'{"stream":true}'], ids=["whole", "stream"])
async def test_the_asyncio_load_on_the_upstream(body: bytes) -> None:
    port = free_port()
    with started("upstream", own_command("upstream", port), port, 20.0, {}) as target:
        seen = await load._press(port, body, 2, 0.05)
        assert target.cpu_s() >= 0
    assert seen.requests > 2
    assert seen.failed == 0
    assert 0 < seen.p50_ms <= seen.p99_ms


async def test_the_gateway_before_the_upstream() -> None:
    upstream, port = free_port(), free_port()
    with (
        started("upstream", own_command("upstream", upstream), upstream, 20.0, {}),
        started("codriver", own_command("gateway", port, upstream), port, 20.0, {}),
    ):
        body = b'{"model":"auto","messages":[{"role":"user","content":"hi"}],"stream":true}'
        seen = await load._press(port, body, 1, 0.05)
        async with aiohttp.ClientSession() as session:
            answer = await session.post(f"http://127.0.0.1:{port}/v1/chat/completions", data=body)
            text = await answer.text()
    assert (seen.requests > 0, seen.failed) == (True, 0)
    assert '"attempts":[{"engine":"cloud"' in text  # the router's own account: routing is on


def test_a_system_that_does_not_start_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no licence')"]
    with (
        pytest.raises(EngineUnavailable, match="rival did not start: no licence"),
        started("rival", command, 1, 20.0, {}),
    ):
        pass


def test_rows_compare_within_rounds() -> None:
    samples = {}
    for system, p50_ms, count in (("direct", 0.1, 900), ("codriver", 0.3, 300), ("litellm", 9.0, 10)):
        found = samples[system, "whole", 1] = _Samples()
        found.loads = [Load(p50_ms, p50_ms * 2, count, 1.0, 0)] * 2
        found.cpu_us = [1e6 / count] * 2
    rows = {(row.system, row.metric): row for row in _rows(samples)}
    assert rows["codriver", "added_p50_ms"].value == pytest.approx(0.2)
    assert rows["codriver", "requests_per_s_over_litellm"].value == pytest.approx(30)
    assert rows["codriver", "requests_per_core_s_over_litellm"].value == pytest.approx(30)
    assert rows["codriver", "p50_ms"].n == 600
    assert rows["codriver", "p50_ms"].case == "whole, 1 client, routing on (cloud-first)"
    assert ("direct", "added_p50_ms") not in rows
