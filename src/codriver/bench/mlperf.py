"""An engine under MLCommons' own load generator: one query after the other, at random times, and at a fixed rate.

LoadGen (PyPI ``mlcommons-loadgen``, Apache-2.0) issues the queries, takes the times and writes its own logs for
SingleStream and Server (Poisson). It has no fixed rate; MLPerf Automotive's ConstantStream is driven here beside it.
The prompts are the drive's commands and small talk. The full run has the 6,636 queries and 600 seconds that MLPerf
Automotive asks of SingleStream, from which p99.9 has an estimate; ConstantStream would take 100,000 there. Neither
run is a submission: no run here is an MLPerf result. The floor is the same bridge with an engine that does nothing.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from codriver.core.errors import ChildDied, MissingExtra

from .mlperf_engines import refuse
from .mlperf_process import CONSTANT, SERVER, SINGLE, Found, Plan, Told
from .mlperf_stats import PERCENTILES, least_queries
from .rows import Report, Row, machine

_QUICK_QUERIES, _FULL_QUERIES, _FULL_S = 64, 6636, 600.0
_CASES = {SINGLE: "SingleStream", SERVER: "Server, Poisson", CONSTANT: "ConstantStream, own clock"}


def run(quick: bool = False, engine: str = "llama_cpp", logs: Path | None = None) -> Report:
    """``logs``: a folder for LoadGen's logs; without one a new folder, which the rows name.

    Errors: :class:`MissingExtra`; those of ``refuse`` for the engine; :class:`ChildDied` with what ended a run.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise MissingExtra("LoadGen is not installed; add it with: pip install 'codriver[bench]'.")
    refuse(engine)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    folder = logs or Path(tempfile.mkdtemp(prefix="codriver-mlperf-"))
    queries, seconds = (_QUICK_QUERIES, 0.0) if quick else (_FULL_QUERIES, _FULL_S)
    note = f"{'quick, not MLPerf-valid; ' if quick else ''}logs in {folder / engine}"
    found = _measured(Plan(engine, str(folder / engine), queries, seconds))
    rows = _rows(_name(engine), found, note)
    if engine != "null":
        floor = Plan("null", str(folder / "null"), _QUICK_QUERIES, 0.0, rate=found[-1].rate)
        rows += _rows("floor", _measured(floor), "an engine that does nothing, by the same bridge")
    return Report("mlperf", machine(), begun, rows)


def _name(engine: str) -> str:
    return "codriver" if engine == "llama_cpp" else f"codriver, {engine}"


def _measured(plan: Plan) -> tuple[Found, ...]:
    command = [sys.executable, "-m", "codriver.bench.mlperf_process", msgspec.json.encode(plan).decode()]
    given, held = os.pipe()  # its input ends with this process
    try:
        done = subprocess.run(command, stdin=given, capture_output=True, check=False)
    finally:
        os.close(given)
        os.close(held)
    line = done.stdout.strip().rpartition(b"\n")[2]
    if done.returncode or not line.startswith(b"{"):
        said = (done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise ChildDied(f"The engine '{plan.engine}' under LoadGen ended before its time: {said[:300]}")
    told = msgspec.json.decode(line, type=Told)
    if told.error:
        raise ChildDied(f"The engine '{plan.engine}' failed under LoadGen. {told.error}")
    return told.found


def _rows(system: str, found: Iterable[Found], note: str) -> list[Row]:
    return [row for one in found for row in _scenario(system, one, note)]


def _scenario(system: str, found: Found, note: str) -> list[Row]:
    values, n = found.values, found.queries
    case = _CASES[found.scenario] + (f" {found.rate:.3g}/s" if found.rate else "")
    rows = []
    for metric, key in (("latency", ""), ("ttft", "first_token_")):
        for name, percentile in PERCENTILES.items():
            value = values.get(f"result_{key}{100 * percentile:.2f}_percentile_latency_ns")
            least = least_queries(percentile)
            if value is None or (n < least and name == "p99.9"):
                continue
            bound = values.get(f"early_stopping_{key}{name}_ns")
            high = None if bound is None else float(bound) / 1e6
            told = f"{n} queries are too few for it: {least} are needed" if n < least else ""
            rows.append(Row(system, case, f"{metric} {name}", float(value) / 1e6, "ms", n, None, high, told))
    done = values.get("result_completed_samples_per_sec") or 1e9 / float(values["result_mean_latency_ns"])
    rows.append(Row(system, case, "answers", float(done), "1/s", n, note=note))
    if found.scenario == CONSTANT:
        late = float(values["result_overlatency_query_count"]) / n
        rows.append(Row(system, case, "later than the next was due", late, "share", n))
    else:
        said = "; ".join(str(values[key]) for key in sorted(values) if key.endswith("_result") and values[key])
        told = " ".join(f"LoadGen's own judgement. {said}".split())
        rows.append(Row(system, case, "valid", float(values["result_validity"] == "VALID"), "", 1, note=told))
    return rows
