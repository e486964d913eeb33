"""The fault catalogue: its verdicts on made-up answers, its server, and most of it against our own router."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from codriver.bench import faults
from codriver.bench.fault_answers import ARGUMENTS, TEXT, Asks, RightAnswer, expected, request_body
from codriver.bench.fault_call import Tempo
from codriver.bench.fault_cases import BEHAVIOURS, FAULTS, HEALTHY, Fault, Scenario, scenarios
from codriver.bench.fault_client import FaultClient
from codriver.bench.fault_server import FaultServer
from codriver.bench.fault_systems import Limits, Told, engines_of, litellm_command, own_models, portkey_command
from codriver.bench.fault_table import FaultReport
from codriver.bench.fault_tls import expired_context
from codriver.bench.fault_verdict import Ended, Heard, Verdict, judge
from codriver.bench.faults import Outcome, ask_all, ask_one, warm_up
from codriver.bench.gateway_servers import Target, free_port
from codriver.bench.rows import Row
from codriver.core.errors import EngineUnavailable
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.observe.metrics import Metrics
from codriver.route.config import LinkConfig

FACTOR = 0.25  # of the bench's times
# Wide enough for a busy machine: only what never comes, and what comes too late, may break them.
LIMITS = Limits(deadline_s=2.0, grace_s=3.0, first_token_s=0.5, inter_token_s=0.5, connect_s=0.5)
LINK = LinkConfig(0.2 * FACTOR, FACTOR, 0.7 * FACTOR, 2 * FACTOR)


def right(asks: Asks = "text", streamed: bool = True) -> RightAnswer:
    return RightAnswer.to(msgspec.json.decode(request_body("m", asks, streamed)))


def sse(*payloads: bytes) -> bytes:
    return b"".join(b"data: " + payload + b"\n\n" for payload in payloads)


def verdict(body: bytes, status: int = 200, ended: Ended = "clean", asks: Asks = "text") -> tuple[str, str]:
    found = judge(Heard(status, "text/event-stream", body, ended, 1.0), asks, streamed=True)
    return found.kind, found.why


def whole_verdict(body: Any, status: int = 200, asks: Asks = "text") -> tuple[str, str]:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    found = judge(Heard(status, "application/json", data, "clean", 1.0), asks, streamed=False)
    return found.kind, found.why


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize("asks", ["text", "tools", "json"])
def test_the_right_answer_is_whole(asks: Asks) -> None:
    answer = right(asks)
    assert verdict(sse(*answer.events(), b"[DONE]"), asks=asks) == ("whole", "")
    assert verdict(sse(*answer.events()), ended="broken", asks=asks) == ("whole", "")
    assert whole_verdict(answer.whole(), asks=asks) == ("whole", "")
    assert whole_verdict(answer.whole(finish_reason=None), asks=asks) == ("whole", "without its finish reason")


def test_a_cut_answer_with_an_end_is_a_lie() -> None:
    events = right().events()
    cut = events[:5]
    stop = right().chunk({}, "stop")
    assert verdict(sse(*cut, stop, b"[DONE]")) == (
        "lie",
        f"finish_reason stop, and it stops after 12 of {len(TEXT)} characters",
    )
    assert verdict(sse(*cut, b"[DONE]"))[0] == "lie"
    assert verdict(sse(*cut)) == ("lie", f"its end without a word, and it stops after 12 of {len(TEXT)} characters")
    assert verdict(sse(*cut, b'{"error": {"message": "x"}}', stop))[0] == "lie"
    assert verdict(b"") == ("lie", "its end without a word, and it is empty")
    assert whole_verdict(right().whole(text="w1 w2")) == (
        "lie",
        f"status 200, and it stops after 5 of {len(TEXT)} characters",
    )


def test_a_doubled_or_spliced_answer_is_a_lie() -> None:
    events = right().events()
    doubled = [*events[:5], *events[4:]]
    assert verdict(sse(*doubled, b"[DONE]")) == (
        "lie",
        "finish_reason stop, and it is another text from character 13 on",
    )
    assert whole_verdict(right().whole(text=TEXT + " w25"))[0] == "lie"
    assert whole_verdict(right("tools").whole(text=ARGUMENTS[:20]), asks="tools")[0] == "lie"
    assert whole_verdict(right().whole(finish_reason="length")) == (
        "lie",
        "status 200, and its finish reason is length",
    )


def test_an_error_that_cannot_be_missed_is_told() -> None:
    cut = right().events()[:5]
    assert verdict(sse(*cut, b'{"error": {"message": "The engine died."}}')) == (
        "told",
        "error event: The engine died.",
    )
    assert verdict(sse(*cut), ended="broken") == ("told", "the connection broke inside the answer")
    assert verdict(sse(*cut, b'{"choices": [')) == ("told", "an event that is not JSON, on which every client stops")
    assert verdict(b"", 0, "broken") == ("told", "the connection broke before an answer")
    assert whole_verdict({"error": {"message": "busy"}}, 503) == ("told", "HTTP 503: busy")
    assert whole_verdict(b"Bad gateway", 502) == ("told", "HTTP 502: Bad gateway")
    assert whole_verdict({"error": {"message": "busy"}}) == ("told", "error object with status 200: busy")
    assert whole_verdict(b'{"choices') == ("told", "a body that is not JSON, on which every client stops")


def test_what_is_not_over_in_time_hangs() -> None:
    assert verdict(b"", 0, "not") == ("hang", "nothing after 1 ms")
    assert verdict(sse(*right().events(), b"[DONE]"), ended="not")[0] == "hang"


# ---------------------------------------------------------------- the catalogue and its server


def test_the_catalogue_is_consistent() -> None:
    asked = scenarios()
    assert len({one.case for one in asked if one.streamed}) >= 40
    assert len({one.key for one in asked}) == len({one.case for one in asked}) == len(asked)
    nowhere = {fault.name for fault in FAULTS if fault.place != "http"}
    assert {fault.name for fault in FAULTS} - nowhere <= set(BEHAVIOURS)
    assert {fault.second for fault in FAULTS} <= set(BEHAVIOURS)


def test_a_healthy_engine_goes_on_from_what_it_is_given() -> None:
    body = msgspec.json.decode(request_body("m", "text", True))
    body["messages"].append({"role": "assistant", "content": TEXT[:31]})
    assert RightAnswer.to(body).rest == TEXT[31:]
    body["messages"][-1]["content"] = "something else"
    assert RightAnswer.to(body).rest == TEXT


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FaultServer]:
    async with FaultServer(Tempo().times(FACTOR), expired_context(tmp_path)[0]) as running:
        yield running


@pytest.mark.parametrize("asks", ["text", "tools", "json"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_the_server_itself_tells_the_truth_when_healthy(server: FaultServer, asks: Asks, streamed: bool) -> None:
    scenario = Scenario(Fault(HEALTHY), streamed)
    heard = await _directly(server, scenario, asks)
    assert judge(heard, asks, streamed).kind == "whole"
    assert server.scene("direct", scenario).first == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("early [DONE]", "lie"),
        ("empty completion", "lie"),
        ("duplicate chunk", "lie"),
        ("error chunk in a 200 stream", "told"),
        ("reset in the middle", "told"),
        ("503", "told"),
        ("clock jump", "whole"),
        ("stall in the middle", "hang"),
    ],
)
async def test_the_server_does_what_the_model_is_called(server: FaultServer, name: str, kind: str) -> None:
    heard = await _directly(server, Scenario(Fault(name), True), "text")
    assert judge(heard, "text", True).kind == kind


async def _directly(server: FaultServer, scenario: Scenario, asks: Asks) -> Heard:
    url = server.url("direct", scenario, "first")
    client = FaultClient(int(url.split(":")[2].split("/")[0]), 1.0, "/" + url.split("/", 3)[3])
    return await client.ask(request_body(scenario.fault.name, asks, scenario.streamed), {})


# ---------------------------------------------------------------- our router


@asynccontextmanager
async def codriver(
    server: FaultServer, chosen: list[Scenario], ca: Path, link_aware: bool = True
) -> AsyncIterator[tuple[int, Told]]:
    engines = tuple(engines_of(one, lambda which, one=one: server.url("codriver", one, which)) for one in chosen)
    told = Told(engines, LIMITS, LINK, str(ca), link_aware)
    config = GatewayConfig(port=0)
    async with own_models(told) as models:
        listening = await serve(Gateway(models, next(iter(models)), config, Metrics()), config)
        try:
            yield listening.port, told
        finally:
            await listening.aclose()


async def test_no_lie_and_no_hang_in_any_case(tmp_path: Path) -> None:
    chosen = [one for one in scenarios() if one.fault.name not in ("huge chunk", "link flapping")]
    tls, ca = expired_context(tmp_path)
    async with FaultServer(Tempo().times(FACTOR), tls) as server, codriver(server, chosen, ca) as (port, told):
        outcomes = await ask_all(server, "codriver", port, told, at_once=12)
    assert len(outcomes) == len(chosen)
    bad = {o.scenario.case: o.verdict for o in outcomes if o.verdict.kind in ("lie", "hang")}
    assert bad == {}
    lost = {o.scenario.case: o.verdict.why for o in outcomes if o.verdict.kind == "told"}
    hopeless = {one.case: lost.get(one.case) for one in chosen if one.fault.second != HEALTHY}
    assert lost == hopeless
    most = max(o.first_calls for o in outcomes)
    assert most == 1  # a fault is never paid for twice


async def test_where_nobody_answers_and_no_probe_has_told_so(tmp_path: Path) -> None:
    chosen = [one for one in scenarios() if one.fault.place != "http" and one.fault.second == HEALTHY]
    tls, ca = expired_context(tmp_path)
    async with FaultServer(Tempo().times(FACTOR), tls) as server, codriver(server, chosen, ca, False) as (port, told):
        outcomes = await ask_all(server, "codriver", port, told, at_once=12)
    assert {o.scenario.case: o.verdict.kind for o in outcomes} == {one.case: "whole" for one in chosen}
    slow = {o.scenario.case for o in outcomes if o.took_ms > 1e3 * LIMITS.connect_s}
    # Others may be slow on a busy machine; these two can only be found out by waiting.
    assert slow >= {"connection never made", "accepts but never reads"}


async def test_rows_of_one_case(server: FaultServer, tmp_path: Path) -> None:
    scenario = Scenario(Fault("cut in the middle"), True)
    async with codriver(server, [scenario], expired_context(tmp_path)[1]) as (port, told):
        client = FaultClient(port, told.limits.deadline_s + told.limits.grace_s)
        outcome = await ask_one(client, server.scene("codriver", scenario), scenario, {})
    rows = {row.metric: row for row in outcome.rows("codriver")}
    assert [rows[kind].value for kind in ("whole", "told", "lie", "hang")] == [1.0, 0.0, 0.0, 0.0]
    assert rows["upstream_calls"].value == 2.0
    assert rows["upstream_calls"].note == "1 to the first engine, 1 to the second"
    assert rows["time_ms"].value > 0


async def test_a_system_must_answer_before_it_is_tried(server: FaultServer, tmp_path: Path) -> None:
    chosen = [Scenario(Fault(HEALTHY), streamed) for streamed in (True, False)]
    async with codriver(server, chosen, expired_context(tmp_path)[1]) as (port, told):
        await warm_up(server, "codriver", port, told)
        with pytest.raises(EngineUnavailable, match="rival gives no right answer with healthy engines: told, the conn"):
            await warm_up(server, "rival", free_port(), told)


def test_a_system_that_ends_in_the_middle_has_no_verdicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    ended.wait()

    async def nothing(*_: object) -> list[Outcome]:
        return []

    monkeypatch.setattr(faults, "_system", lambda *_: nullcontext(Target("rival", 1, ended)))
    monkeypatch.setattr(faults, "warm_up", nothing)
    monkeypatch.setattr(faults, "ask_all", nothing)
    with pytest.raises(EngineUnavailable, match="rival ended in the middle, with code 3"):
        asyncio.run(faults._try_system("rival", tmp_path))


def test_a_rival_that_is_not_there_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODRIVER_RIVALS", str(tmp_path))
    told = Told(())
    assert litellm_command(tmp_path, 1, told) is None
    assert portkey_command(1) is None
    monkeypatch.setattr(faults, "_try_system", _only_rivals(faults._try_system))
    rows = {row.system: row for row in faults.run().rows}
    for rival in ("litellm", "portkey"):
        assert rows[rival].metric == "skipped"
        assert rows[rival].note == f"{rival} is not in $CODRIVER_RIVALS; `make bench` installs it there"


def _only_rivals(really: Any) -> Any:
    async def asked(system: str, folder: Path) -> list[faults.Outcome]:
        await asyncio.sleep(0)
        return [] if system == "codriver" else await really(system, folder)

    return asked


def test_the_table_puts_the_systems_beside_each_other() -> None:
    one = Scenario(Fault("503"), True)
    good = Outcome(one, Verdict("whole"), 12.3, 1, 1)
    bad = Outcome(one, Verdict("lie", "it is empty"), 4567.8, 3, 0)
    rows = [*good.rows("codriver"), *bad.rows("rival"), Row("other", "all", "skipped", 0.0, "", 0, note="not here")]
    lines = FaultReport("faults", "machine", "now", rows).table().splitlines()
    assert lines[2].split() == ["case", "codriver", "rival"]
    assert lines[3].split("  ")[0] == "503"
    assert " ".join(lines[3].split()) == "503 whole 12 ms 2 calls LIE 4,568 ms 3 calls"
    assert lines[5:] == ["other: left out, not here", "rival, 503: lie, it is empty"]


def test_each_kind_of_answer_is_different() -> None:
    assert len({expected("text"), expected("tools"), expected("json")}) == 3
