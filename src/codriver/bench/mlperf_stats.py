"""Percentiles that a run is long enough for, by MLPerf's early stopping; LoadGen's detail log; the summary of a fixed
rate in the same words.

Source: MLPerf Inference Rules, appendix "Early Stopping Criterion" (mlcommons/inference_policies), with its tolerance
of 0 and confidence of 0.99.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

CONFIDENCE = 0.99
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_DETAIL = ":::MLLOG "
Values = dict[str, float | str | bool]


def discarded(n: int, percentile: float) -> int:
    """How many of ``n`` latencies may be left out above the estimate of a percentile; -1 where ``n`` says nothing.

    The largest t with P(at most t of n are above the percentile) ≤ 1 − confidence, less one.
    """
    above, mass, count = 1 - percentile, 0.0, 0
    for count in range(n + 1):
        ways = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
        mass += math.exp(ways + count * math.log(above) + (n - count) * math.log(percentile))
        if mass > 1 - CONFIDENCE:
            break
    return count - 2 if count else -1


def least_queries(percentile: float) -> int:
    """From how many queries on the percentile has an estimate: 64 for p90, 662 for p99, 6,636 for p99.9."""
    n = 2
    while discarded(n, percentile) < 0:
        n += 1
    return n


def estimate(ordered: Sequence[float], percentile: float) -> float | None:
    """The early-stopping estimate from latencies in rising order: a bound that holds with 99 % confidence."""
    left_out = discarded(len(ordered), percentile)
    return None if left_out < 0 else ordered[len(ordered) - 1 - left_out]


def detail_values(file: Path) -> Values:
    """LoadGen's results by their keys; errors that it logged under ``error``. Errors: ``OSError``."""
    found: Values = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith(_DETAIL):
            continue
        entry = msgspec.json.decode(line[len(_DETAIL) :])
        if entry["key"].startswith(("result_", "early_stopping")):
            found[entry["key"]] = entry["value"]
        if entry.get("metadata", {}).get("is_error"):
            found["error"] = f"{entry['key']}: {entry['value']}"
    return found


@dataclass
class Taken:
    """What a run at a fixed rate took: seconds from when each query was due, and in all."""

    whole_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


def write_constant_summary(folder: Path, taken: Taken, rate: float) -> Values:
    """The same figures under LoadGen's own keys, and beside them as text. Errors: ``OSError``."""
    whole, first = sorted(taken.whole_s), sorted(taken.first_s)
    n, late = len(whole), sum(one > 1 / rate for one in whole)
    found: Values = {
        "result_query_count": n,
        "result_overlatency_query_count": late,
        "result_completed_samples_per_sec": n / taken.seconds,
        "result_completed_tokens_per_second": taken.tokens / taken.seconds,
        "result_min_latency_ns": 1e9 * whole[0],
        "result_max_latency_ns": 1e9 * whole[-1],
        "result_mean_latency_ns": 1e9 * sum(whole) / n,
    }
    lines = ["=" * 48, "Codriver Results Summary (a fixed rate; not LoadGen)", "=" * 48]
    lines += [f"Scenario : ConstantStream, {rate:.4g} queries per second", f"queries : {n}"]
    lines += [f"Later than the next was due : {late}", f"Completed samples per second : {n / taken.seconds:.2f}"]
    for name, percentile in PERCENTILES.items():
        for key, said, values in (("", "latency", whole), ("first_token_", "first token latency", first)):
            if values:
                at = values[min(len(values) - 1, int(percentile * len(values)))]
                found[f"result_{key}{100 * percentile:.2f}_percentile_latency_ns"] = 1e9 * at
                lines.append(f"{100 * percentile:.2f} percentile {said} (ns) : {1e9 * at:.0f}")
                bound = estimate(values, percentile)
                if bound is not None:
                    found[f"early_stopping_{key}{name}_ns"] = 1e9 * bound
                    lines.append(f" * Early stopping {name} estimate : {1e9 * bound:.0f}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "constant_log_summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found
