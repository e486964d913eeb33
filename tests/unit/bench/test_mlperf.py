"""LoadGen itself, on engines that answer at once and on one that fails: each run in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from codriver.bench import mlperf
from codriver.bench.mlperf_process import SINGLE, Found
from codriver.bench.mlperf_stats import Taken, discarded, estimate, least_queries, write_constant_summary
from codriver.core.errors import BadConfigValue, ChildDied, UnknownEntry

needs_loadgen = pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason="needs mlcommons-loadgen (extra bench)"
)
# An engine that fails at its fifth question, as the process that the bench starts runs it.
_FAILS = """
import sys
import msgspec
from codriver.bench import mlperf_process
from codriver.core.errors import EngineDied
from codriver.engines.null import Null
class Fails(Null):
    asked = 0
    async def generate(self, request, deadline):
        self.asked += 1
        if self.asked >= 5:
            raise EngineDied("The fifth question was too much.")
        async for chunk in super().generate(request, deadline):
            yield chunk
async def start(name):
    return Fails()
mlperf_process.start = start
mlperf_process.main(msgspec.json.decode(sys.argv[1].encode(), type=mlperf_process.Plan))
"""


def test_the_least_counts_are_those_of_mlperf() -> None:
    """662: MultiStream's min_query_count in MLPerf Inference; 6,636: SingleStream's in MLPerf Automotive."""
    assert [least_queries(p) for p in (0.9, 0.99, 0.999)] == [64, 662, 6636]
    assert discarded(63, 0.9) == -1 and discarded(64, 0.9) == 0
    assert estimate(list(range(63)), 0.9) is None
    assert estimate(list(range(64)), 0.9) == 63
    # The bound comes down to the percentile as the run gets longer, and never below it.
    over = [estimate(list(range(n)), 0.9) / n for n in (64, 1000, 24_576)]  # type: ignore[operator]
    assert over[0] > over[1] > over[2] > 0.9 and over[2] < 0.906


def test_p999_is_told_only_where_the_count_suffices() -> None:
    values = {f"result_{p}_percentile_latency_ns": 2e6 for p in ("50.00", "90.00", "99.00", "99.90")}
    values |= {"result_mean_latency_ns": 2e6, "result_validity": 0.0}
    rows = {row.metric: row for row in mlperf._scenario("codriver", Found(SINGLE, 64, 0.0, dict(values)), "")}
    assert "latency p99.9" not in rows and rows["latency p90"].note == ""
    assert rows["latency p99"].note == "64 queries are too few for it: 662 are needed"
    rows = {row.metric: row for row in mlperf._scenario("codriver", Found(SINGLE, 6636, 0.0, dict(values)), "")}
    assert rows["latency p99.9"].value == 2.0 and rows["latency p99.9"].note == ""


def test_the_summary_of_a_fixed_rate_has_loadgens_figures(tmp_path: Path) -> None:
    taken = Taken([0.1] * 60 + [0.5] * 4, [0.05] * 64, 640, 32.0)
    values = write_constant_summary(tmp_path, taken, 4.0)
    assert values["result_90.00_percentile_latency_ns"] == pytest.approx(1e8)
    assert values["early_stopping_p90_ns"] == pytest.approx(5e8)
    assert (values["result_overlatency_query_count"], values["result_completed_tokens_per_second"]) == (4, 20.0)
    assert "a fixed rate; not LoadGen" in (tmp_path / "constant_log_summary.txt").read_text()


@needs_loadgen
def test_an_engine_goes_through_loadgen_and_its_logs_stay(tmp_path: Path) -> None:
    report = mlperf.run(True, "null", tmp_path)
    rows = {(row.case.split(" ")[0].strip(","), row.metric): row for row in report.rows}
    single = rows["SingleStream", "latency p90"]
    assert single.n == 64 and 0 < single.value < 1000
    assert rows["SingleStream", "ttft p50"].value <= rows["SingleStream", "latency p50"].value
    assert (
        "not MLPerf-valid" in rows["SingleStream", "answers"].note and str(tmp_path) in rows["Server", "answers"].note
    )
    assert rows["Server", "latency p50"].n == rows["ConstantStream", "latency p50"].n == 64
    summary = (tmp_path / "null" / SINGLE / "mlperf_log_summary.txt").read_text()
    assert "MLPerf Results Summary" in summary and "Scenario : SingleStream" in summary
    answers = json.loads((tmp_path / "null" / SINGLE / "mlperf_log_accuracy.json").read_text())
    assert any(b"quick brown fox" in bytes.fromhex(one["data"]) for one in answers)
    detail = (tmp_path / "null" / "Server" / "mlperf_log_detail.txt").read_text()
    assert '"is_error": true' not in detail


@needs_loadgen
def test_an_engine_that_fails_ends_the_run_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "fails.py"
    script.write_text(_FAILS)
    real = subprocess.run

    def run(command: list[str], **options: object) -> object:
        assert command[1:3] == ["-m", "codriver.bench.mlperf_process"]
        return real([sys.executable, str(script), *command[3:]], timeout=60, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", run)
    told = r"engine 'null' failed under LoadGen\. SingleStream: The fifth question was too much\."
    with pytest.raises(ChildDied, match=told):
        mlperf.run(True, "null", tmp_path / "logs")


def test_engines_that_cannot_be_started_are_told() -> None:
    if importlib.util.find_spec("mlperf_loadgen") is None:
        pytest.skip("needs mlcommons-loadgen (extra bench)")
    with pytest.raises(UnknownEntry, match=r"There is no engine 'lama_cpp'\. Did you mean 'llama_cpp'"):
        mlperf.run(True, "lama_cpp")
    with pytest.raises(BadConfigValue, match="cannot start the engine 'replay' by itself; it starts llama_cpp, null"):
        mlperf.run(True, "replay")
