"""What the gateway costs: time added to a direct call, requests a second on one core, CPU per request.

Every system stands before the same trivial upstream, on core 0; the load and the upstream are on core 1. Codriver is
measured with routing on, as a vehicle runs it. Systems are measured in turn within each round, so that a busy machine
is busy for all of them. Requests a core-second, from CPU time, are what other work on the machine disturbs least. The
floor is nginx. Rule: a system that cannot run here is a row with the reason, not a gap.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from codriver.core.errors import EngineUnavailable

from .gateway_servers import (
    POLICY,
    STREAM_CHUNKS,
    Target,
    free_port,
    litellm_command,
    nginx_command,
    own_command,
    pinned,
    started,
)
from .load import Load, generator, press
from .rows import Report, Row, machine

_QUESTION = (
    b'{"model":"auto","messages":[{"role":"system","content":"You are the car assistant."},{"role":"user","content":'
    b'"Please set the temperature to 21 degrees and tell me when we arrive at home."}],"max_tokens":64'
)
_BODIES = {"whole": _QUESTION + b"}", f"stream of {STREAM_CHUNKS}": _QUESTION + b',"stream":true}'}
_CLIENTS = (1, 16)
_NULL = "codriver, null engine"
_OWN = {_NULL: "codriver"}
_CASES = {"codriver": f", routing on ({POLICY})", _NULL: f", routing on ({POLICY}), null engine"}
_LITELLM_ENV = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_PROXY": "127.0.0.1"}

Key = tuple[str, str, int]  # system, kind of answer, clients


class _Samples:
    """All rounds of one system and case."""

    def __init__(self) -> None:
        self.loads: list[Load] = []
        self.cpu_us: list[float] = []


def run(quick: bool = False) -> Report:
    """Measure and report. ``quick`` takes two rounds of one second a case, otherwise three of three."""
    rounds, seconds = (2, 1.0) if quick else (3, 3.0)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    samples: dict[Key, _Samples] = defaultdict(_Samples)
    skipped: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as folder, _systems(Path(folder), skipped) as targets:
        for target in targets:
            press(target.port, _BODIES["whole"], 4, 1.0, pinned(1))
        for _, kind, clients, target in itertools.product(range(rounds), _BODIES, _CLIENTS, targets):
            key = (target.system, kind, clients)
            if key[:2] not in skipped:
                reason = _measure(samples[key], target, _BODIES[kind], clients, seconds)
                if reason:
                    skipped[key[:2]] = reason
    broken = [kind for system, kind in skipped if system == "direct"]
    if broken:
        raise EngineUnavailable(f"The bench's own upstream failed: {skipped['direct', broken[0]]}.", engine="direct")
    rows = _rows({key: found for key, found in samples.items() if key[:2] not in skipped})
    rows += [Row(name, case, "skipped", 0.0, "", 0, None, None, reason) for (name, case), reason in skipped.items()]
    return Report("gateway", machine(), begun, rows)


@contextlib.contextmanager
def _systems(folder: Path, skipped: dict[tuple[str, str], str]) -> Iterator[list[Target]]:
    with contextlib.ExitStack() as stack:

        def start(name: str, command: list[str], port: int, core: int = 0, patience_s: float = 20.0) -> Target:
            env = _LITELLM_ENV if name == "litellm" else {}
            return stack.enter_context(started(name, pinned(core) + command, port, patience_s, env))

        port = free_port()
        direct = start("direct", own_command("upstream", port), port, core=1)
        targets = [direct]
        for name, kind in (("codriver", "gateway"), (_NULL, "null")):
            port = free_port()
            targets.append(start(name, own_command(kind, port, direct.port), port))
        for name, make, missing in (
            ("nginx", nginx_command, "nginx is not installed"),
            ("litellm", litellm_command, "LiteLLM is not in $CODRIVER_RIVALS; `make bench` installs it there"),
        ):
            port = free_port()
            command = make(folder, port, direct.port)
            if command is None:
                skipped[name, "any"] = missing
                continue
            try:
                targets.append(start(name, command, port, patience_s=120.0))
            except EngineUnavailable as error:
                skipped[name, "any"] = error.message
        yield targets


def _measure(into: _Samples, target: Target, body: bytes, clients: int, seconds: float) -> str:
    """One load on one system; why the system cannot be measured, or nothing. A stalled one gets longer, twice."""
    for longer in (1, 4, 10):
        before_s = target.cpu_s()
        load = press(target.port, body, clients, seconds * longer, pinned(1))
        if load.failed:
            return f"{load.failed} of {load.requests} requests failed with {clients} clients"
        if load.requests:
            into.loads.append(load)
            into.cpu_us.append((target.cpu_s() - before_s) * 1e6 / load.requests)
            return ""
    return f"no answer within {10 * seconds:g} seconds with {clients} clients"


def _rows(samples: dict[Key, _Samples]) -> list[Row]:
    rows: list[Row] = []
    for (system, kind, clients), found in samples.items():
        case = f"{kind}, {clients} client{'s' if clients > 1 else ''}"
        count = sum(load.requests for load in found.loads)
        row = _Maker(_OWN.get(system, system), case + _CASES.get(system, ""), count)
        rows.append(row.make("p50_ms", "ms", [load.p50_ms for load in found.loads]))
        rows.append(row.make("p99_ms", "ms", [load.p99_ms for load in found.loads]))
        rows.append(row.make("requests_per_s", "1/s", [load.requests / load.seconds for load in found.loads]))
        rows.append(row.make("cpu_us_per_request", "µs", found.cpu_us))
        rows.append(row.make("requests_per_core_s", "1/s", [1e6 / cpu_us for cpu_us in found.cpu_us if cpu_us]))
        direct = samples["direct", kind, clients].loads
        if system not in ("direct", _NULL):
            pairs = list(zip(found.loads, direct, strict=True))
            rows.append(row.make("added_p50_ms", "ms", [a.p50_ms - b.p50_ms for a, b in pairs]))
            rows.append(row.make("added_p99_ms", "ms", [a.p99_ms - b.p99_ms for a, b in pairs]))
        rival = samples.get(("litellm", kind, clients))
        if system == "codriver" and rival is not None:
            pairs = list(zip(found.loads, rival.loads, strict=True))
            ratios = [(a.requests / a.seconds) / (b.requests / b.seconds) for a, b in pairs]
            rows.append(row.make("requests_per_s_over_litellm", "×", ratios))
            shares = [theirs / ours for ours, theirs in zip(found.cpu_us, rival.cpu_us, strict=True) if ours]
            rows.append(row.make("requests_per_core_s_over_litellm", "×", shares))
    return rows


class _Maker:
    """Rows of one system and case: the median over the rounds, with the lowest and the highest."""

    def __init__(self, system: str, case: str, count: int) -> None:
        self._system, self._case, self._count = system, case, count

    def make(self, metric: str, unit: str, values: list[float]) -> Row:
        if not values:
            return Row(self._system, self._case, metric, 0.0, unit, 0, None, None, "not measured: needs Linux's /proc")
        middle, low, high = (round(f(values), 4) for f in (statistics.median, min, max))
        note = f"median of {len(values)} rounds, load by {generator()}"
        return Row(self._system, self._case, metric, middle, unit, self._count, low, high, note)
