from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codriver.bench.engine import OURS, _ceiling, _rows
from codriver.bench.engine_systems import Heard, Setup, chat_body, plain_server, resident_mb
from codriver.core.messages import parse_chat


def test_the_body_is_greedy_and_streams() -> None:
    request = parse_chat(chat_body([{"role": "user", "content": "x"}], 7))
    assert (request.temperature, request.max_tokens, request.stream) == (0.0, 7, True)


def test_time_to_first_token() -> None:
    assert Heard(10.0, [10.25, 11.0]).ttft_ms == 250.0


def test_ratios_are_taken_round_by_round() -> None:
    rival = "llama.cpp server, our threads"
    samples = {(OURS, f"{n} streams", "decode", "tokens/s"): [10.0, 30.0, 22.0] for n in (1, 2, 4)}
    samples |= {(rival, f"{n} streams", "decode", "tokens/s"): [10.0, 20.0, 20.0] for n in (1, 2, 4)}
    samples[OURS, "cold, ~512 tokens", "ttft", "ms"] = [1000.0]
    samples[OURS, "warm prefix, ~512 tokens", "ttft", "ms"] = [50.0]
    rows = {(row.case, row.metric): row for row in _rows(samples)}
    ratio = rows["2 streams", "decode against llama.cpp"]
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == (pytest.approx(1.1), 1.0, 1.5, 3)
    assert rows["warm over cold", "ttft"].value == 0.05


def test_the_ceiling_is_bandwidth_over_bytes(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(bytes(1_000_000))
    bandwidth, bound = _ceiling(tmp_path / "m")
    assert bound.value == pytest.approx(bandwidth.value * 1000)


@pytest.mark.model
async def test_the_rival_answers(model_file: Callable[[str], Path]) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the wheel xllamacpp")
    setup = Setup(model_file("smollm2.gguf"), slots=1, context_tokens=256, batch_tokens=128)
    async with plain_server("rival", setup, "passive") as server:
        pid = server.pid
        heard = await server.ask(chat_body([{"role": "user", "content": "Hello"}], 4, to_the_end=True))
        assert resident_mb(pid) > 50
    assert len(heard.pieces_s) >= 3 and heard.usage.completion_tokens == 4
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
