"""What a client gets when the engine behind the router fails: every fault of the catalogue, against every system.

A case is one chat request to a system that has a faulty first engine and a second one to fall back on. The answer is
judged against the one right answer: ``whole``, ``told``, ``lie`` or ``hang`` (see :mod:`.fault_verdict`). A client that
leaves is another matter: ``whole`` then means that the first engine's work was stopped, ``hang`` that it went on.
A system must answer right with healthy engines before it is tried, and one that ends in the middle has no verdicts.
``--quick`` runs Codriver alone. A rival that is not there is a row with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from codriver.core.errors import EngineUnavailable

from .fault_answers import request_body
from .fault_call import Scene, Tempo
from .fault_cases import HEALTHY, Fault, Scenario, scenarios
from .fault_client import FaultClient
from .fault_server import FaultServer
from .fault_systems import (
    Limits,
    Told,
    engines_of,
    litellm_command,
    litellm_env,
    own_command,
    portkey_command,
    portkey_env,
    portkey_headers,
    version_of,
)
from .fault_table import FaultReport
from .fault_tls import expired_context
from .fault_verdict import KINDS, Heard, Verdict, judge
from .gateway_servers import Target, free_port, started
from .rows import Report, Row, machine

_AT_ONCE = 4
_WARM_UPS = 5
_HEALTHY = [Scenario(Fault(HEALTHY), streamed) for streamed in (True, False)]
_LEAVE_EARLY_S, _LEAVE_LATE_S = 0.3, 0.9
_STOP_S = 2.0
_START_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """One case of one system: the verdict, the time until it was sure, and the calls that reached the engines."""

    scenario: Scenario
    verdict: Verdict
    took_ms: float
    first_calls: int
    second_calls: int

    def rows(self, system: str) -> list[Row]:
        case, why = self.scenario.case, self.verdict.why
        kinds = [Row(system, case, kind, float(kind == self.verdict.kind), "", 1, note=why) for kind in KINDS]
        calls = f"{self.first_calls} to the first engine, {self.second_calls} to the second"
        return [
            *kinds,
            Row(system, case, "time_ms", round(self.took_ms, 1), "ms", 1),
            Row(system, case, "upstream_calls", float(self.first_calls + self.second_calls), "", 1, note=calls),
        ]


def run(quick: bool = False) -> Report:
    """Ask everything and report; ``quick`` leaves the rivals out."""
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="codriver-faults-") as folder:
        for system in ("codriver",) if quick else ("codriver", "litellm", "portkey"):
            try:
                outcomes = asyncio.run(_try_system(system, Path(folder)))
            except EngineUnavailable as error:
                rows.append(Row(system, "all", "skipped", 0.0, "", 0, note=error.message))
                continue
            rows += _sums(system, outcomes)
            for outcome in outcomes:
                rows += outcome.rows(system)
    if quick:
        rows += [Row(name, "all", "skipped", 0.0, "", 0, note="not in --quick") for name in ("litellm", "portkey")]
    return FaultReport("faults", machine(), begun, rows)


def _sums(system: str, outcomes: Sequence[Outcome]) -> list[Row]:
    found = Counter(outcome.verdict.kind for outcome in outcomes)
    version = version_of(system)
    return [Row(system, "all", kind, float(found[kind]), "cases", len(outcomes), note=version) for kind in KINDS]


async def _try_system(system: str, folder: Path) -> list[Outcome]:
    """Errors: :class:`EngineUnavailable` when the system is not there or does not start."""
    limits, asked = Limits(), [*_HEALTHY, *scenarios()]
    tls, authority = expired_context(folder)
    async with FaultServer(Tempo(), tls) as server:
        engines = tuple(engines_of(one, _addresses(server, system, one)) for one in asked)
        told = Told(engines, limits, ca=str(authority))
        port = free_port()
        with _system(system, folder, port, told) as running:
            await warm_up(server, system, port, told)
            outcomes = await ask_all(server, system, port, told)
            code = running.process.poll()
            if code is not None:
                raise EngineUnavailable(f"{system} ended in the middle, with code {code}", engine=system)
            return outcomes


def _addresses(server: FaultServer, system: str, scenario: Scenario) -> Callable[[str], str]:
    return lambda engine: server.url(system, scenario, engine)


@contextlib.contextmanager
def _system(system: str, folder: Path, port: int, told: Told) -> Iterator[Target]:
    if system == "codriver":
        command: list[str] | None = own_command(folder, port, told)
        env: dict[str, str] = {}
    elif system == "litellm":
        command, env = litellm_command(folder, port, told), litellm_env(told)
    else:
        command, env = portkey_command(port), portkey_env(told)
    if command is None:
        raise EngineUnavailable(f"{system} is not in $CODRIVER_RIVALS; `make bench` installs it there", engine=system)
    with started(system, command, port, _START_S, env) as running:
        yield running


async def warm_up(server: FaultServer, system: str, port: int, told: Told) -> None:
    """A few answers of healthy engines. Errors: :class:`EngineUnavailable` when the last of them is not whole."""
    for scenario in _HEALTHY:
        engines = next(one for one in told.engines if one.key == scenario.key)
        headers = portkey_headers(engines, told.limits) if system == "portkey" else {}
        for _ in range(_WARM_UPS):
            client = FaultClient(port, told.limits.deadline_s + told.limits.grace_s)
            outcome = await ask_one(client, server.scene(system, scenario), scenario, headers)
        if outcome.verdict.kind != "whole":
            what = f"{system} gives no right answer with healthy engines: {outcome.verdict.kind}, {outcome.verdict.why}"
            raise EngineUnavailable(what, engine=system)


async def ask_all(server: FaultServer, system: str, port: int, told: Told, at_once: int = _AT_ONCE) -> list[Outcome]:
    """Every scenario that ``told`` has engines for, several at once, in the catalogue's order."""
    by_key = {engines.key: engines for engines in told.engines}
    room = asyncio.Semaphore(at_once)
    limits = told.limits

    async def ask(scenario: Scenario) -> Outcome:
        headers = portkey_headers(by_key[scenario.key], limits) if system == "portkey" else {}
        async with room:
            client = FaultClient(port, limits.deadline_s + limits.grace_s)
            return await ask_one(client, server.scene(system, scenario), scenario, headers)

    return list(await asyncio.gather(*(ask(one) for one in scenarios() if one.key in by_key)))


async def ask_one(client: FaultClient, scene: Scene, scenario: Scenario, headers: dict[str, str]) -> Outcome:
    fault = scenario.fault
    prompt = "Count with numbered words." + " Again." * (fault.prompt_bytes // 7)
    body = request_body(scenario.key, fault.asks, scenario.streamed, prompt)
    if fault.leaves:
        return await _leave(client, scene, scenario, (body, headers))
    heard: Heard = await client.ask(body, headers)
    return Outcome(scenario, judge(heard, fault.asks, scenario.streamed), heard.took_ms, scene.first, scene.second)


async def _leave(
    client: FaultClient, scene: Scene, scenario: Scenario, request: tuple[bytes, dict[str, str]]
) -> Outcome:
    """Ask, close the connection, and see whether the engine's work is stopped."""
    after_s = _LEAVE_EARLY_S if scenario.fault.leaves == "early" else _LEAVE_LATE_S
    await client.ask(*request, leave_after_s=after_s)
    left_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_S):
            await scene.idle.wait()
    took_ms = 1e3 * (time.monotonic() - left_s)
    if scene.working:
        verdict = Verdict("hang", f"the engine was still at work {took_ms:.0f} ms after the client had left")
    elif not scene.first:
        verdict = Verdict("told", "the first engine was never asked")
    else:
        verdict = Verdict("whole", f"the engine's work was stopped {took_ms:.0f} ms after the client had left")
    return Outcome(scenario, verdict, took_ms, scene.first, scene.second)
