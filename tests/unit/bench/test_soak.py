"""The soak in short, against a real vehicle; and its parts: what it asks, what its upstream sees, what it hears."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from codriver.apps.cli.bench import BENCHES
from codriver.apps.cli.main import app
from codriver.bench import soak
from codriver.bench.fault_answers import ARGUMENTS, JSON, TEXT, Asks, expected
from codriver.bench.fault_call import Tempo
from codriver.bench.fault_cases import BEHAVIOURS, HEALTHY
from codriver.bench.fault_verdict import Heard, judge
from codriver.bench.rows import Report, Row
from codriver.bench.soak_client import SoakClient
from codriver.bench.soak_judge import judged
from codriver.bench.soak_load import Load, Tally
from codriver.bench.soak_report import SoakReport
from codriver.bench.soak_requests import FAULTS_OF, PATHS, Api, Ask, Drawer, Shares
from codriver.bench.soak_shapes import as_chat, engine_of
from codriver.bench.soak_tags import SECRET, Tag, mail, tag_in
from codriver.bench.soak_upstream import Finding, SoakServer, looked_at, read_findings
from codriver.core.messages import ChatRequest
from codriver.engines.null import Null, NullConfig
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.observe.metrics import Metrics


async def test_a_short_soak_leaves_everything_as_it_was() -> None:
    plan = soak.Plan(calm_s=4.0, soak_s=12.0, rate=30.0, trouble_s=3.0, look_s=0.25, settle_s=20.0, hangs_up=True)
    found, troubles = await soak.soak_one(plan)
    assert found.soaked.asked > 200
    assert troubles.counts.total() >= 2
    lines = {line.name: line for line in judged(found)}
    # How soon the cloud is back and how small a slope can be seen are the machine's matter in so short a run.
    lines.pop("the cloud answers again")
    lines.pop("memory does not grow")
    assert {name: line.note for name, line in lines.items() if not line.holds} == {}
    assert found.ending.recovered_s < float("inf")
    assert found.after.rss_mb - found.before.rss_mb < 60
    assert {"whole", "left", "refused"} <= set(found.soaked.kinds)
    assert set(found.soaked.engines) == {"cloud", "vehicle"}


# ---------------------------------------------------------------- what is asked


def test_the_same_seed_asks_the_same() -> None:
    first, second, other = Drawer(1), Drawer(1), Drawer(2)
    asked = [first.draw() for _ in range(300)]
    assert asked == [second.draw() for _ in range(300)]
    assert asked != [other.draw() for _ in range(300)]


def test_everything_is_asked() -> None:
    drawer = Drawer(1)
    asked = [drawer.draw() for _ in range(6000)]
    assert {one.manner for one in asked} == {"plain", "slow", "leaves", "bad"}
    assert {one.path for one in asked} > set(PATHS.values())
    assert {one.asks for one in asked} == {"text", "tools", "json"}
    faulty = Drawer(1, Shares(faults=1.0))
    drawn = {faulty.draw().fault for _ in range(6000)}
    places = {"link down before", "link down during", "link flapping"}
    clients = {"client leaves before the first token", "client leaves in the middle"}
    assert drawn == set(BEHAVIOURS) - places - clients
    for header in ("privacy", "failover", "session", "priority", "budget-usd"):
        assert any(f"x-codriver-{header}" in one.headers for one in asked)
    shares = Counter(one.manner for one in asked)
    assert 0.03 < shares["leaves"] / len(asked) < 0.07
    exposed = {one.headers.get("x-codriver-policy") for one in asked if not one.sheltered and one.manner == "plain"}
    assert "cloud-only" in exposed
    assert not any(one.sheltered for one in asked if one.headers.get("x-codriver-policy") == "cloud-only")


def test_a_calm_load_has_no_faults_and_no_rude_clients() -> None:
    drawer = Drawer(1, Shares(faults=1.0))
    asked = [drawer.calm() for _ in range(300)]
    assert {(one.fault, one.manner) for one in asked} == {(HEALTHY, "plain")}


def test_turns_of_a_session_are_counted_and_a_busy_one_is_left_alone() -> None:
    drawer = Drawer(1, Shares(sessions=1.0))
    drawer.busy |= {f"{kind}-{n}" for kind in ("any", "redact", "local_only") for n in range(40)} - {"any-3"}
    turns = [one.turn for one in (drawer.calm() for _ in range(2000)) if one.session]
    assert turns == list(range(1, len(turns) + 1))
    assert turns


def test_faults_fit_what_is_asked() -> None:
    assert "tool call cut in half" in FAULTS_OF["tools"][0]
    assert "tool call cut in half" not in FAULTS_OF["text"][0]
    assert "JSON answer cut in half" not in FAULTS_OF["tools"][0]


def test_a_tag_goes_through_a_text() -> None:
    tag = Tag("early [DONE]", "any-3", 17, "redact")
    assert tag_in(f"Count. {Tag().text()} then {tag.text()} Go on.") == tag
    assert tag_in("Count.") is None


# ---------------------------------------------------------------- what the upstream sees


def chat(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def turn(number: int, session: str = "any-1") -> str:
    return f"Count. {Tag(HEALTHY, session, number).text()}"


def test_a_right_history_is_reported_without_a_fault() -> None:
    body = chat(("user", turn(1)), ("assistant", TEXT), ("user", turn(3)), ("assistant", TEXT), ("user", turn(4)))
    assert looked_at(body) == [Finding("", "any-1", 4, [1, 3])]
    # A request that goes on from a part holds the part as its last message.
    body["messages"].append({"role": "assistant", "content": "w1 w2"})
    assert looked_at(body) == [Finding("", "any-1", 4, [1, 3])]


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([("user", turn(1)), ("assistant", TEXT[:9]), ("user", turn(2))], "turn 1 of a session has another answer"),
        ([("user", turn(1)), ("user", turn(2))], "a session holds a question without its answer"),
        ([("user", turn(1)), ("user", turn(2)), ("user", turn(3))], "a session's messages do not alternate"),
        ([("user", turn(5)), ("assistant", TEXT), ("user", turn(4))], "the turns of a session are out of order"),
        ([("user", turn(1, "any-2")), ("assistant", TEXT), ("user", turn(2))], "a turn of the session 'any-2' is in"),
    ],
)
def test_a_wrong_history_is_found(messages: list[tuple[str, str]], wrong: str) -> None:
    [found] = looked_at(chat(*messages))
    assert found.wrong.startswith(wrong)


@pytest.mark.parametrize(
    ("text", "what"), [(SECRET, "a local_only text"), (mail(3), "an address that was to be redacted")]
)
def test_what_no_cloud_may_see_is_found(text: str, what: str) -> None:
    [found] = looked_at(chat(("user", f"Count. {Tag().text()} {text}")))
    assert found.wrong == f"the cloud was shown {what}"


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "findings"
    assert read_findings(file) == []
    file.write_bytes(msgspec.json.encode(Finding("x")) + b'\n{"wrong": "y')
    assert read_findings(file) == [Finding("x")]


@pytest.fixture
async def upstream(tmp_path: Path) -> AsyncIterator[SoakServer]:
    async with SoakServer(Tempo().times(0.2), tmp_path / "findings") as running:
        yield running


@pytest.mark.parametrize(("fault", "kind"), [(HEALTHY, "whole"), ("early [DONE]", "lie"), ("503", "told")])
@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_the_tag_chooses_the_fault(upstream: SoakServer, api: Api, fault: str, kind: str) -> None:
    prompt = f"Count. {Tag(fault).text()}"
    asked: dict[str, Any] = {"prompt": prompt} if api == "completions" else chat(("user", prompt))
    body = msgspec.json.encode({"model": "m", "stream": True, **asked})
    path = "/" + upstream.address.split("/", 3)[3] + "/chat/completions"
    client = _client(upstream)
    heard = await client.ask(Ask(path, body), 3.0)
    client.close()
    assert judge(as_chat(heard, api), "text", True).kind == kind


async def test_a_right_text_without_its_end_is_no_turn_that_must_be_remembered(upstream: SoakServer) -> None:
    client, tally = _client(upstream), Tally()
    load = Load(Drawer(1), client, 1)
    for turn, fault in enumerate((HEALTHY, "no finish_reason", "first token late"), 1):
        text = f"Count. {Tag(fault, 'any-1', turn).text()}"
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}
        path = "/" + upstream.address.split("/", 3)[3] + "/chat/completions"
        await load.one(Ask(path, msgspec.json.encode(body), streamed=True, session="any-1", turn=turn), tally)
    client.close()
    assert tally.kinds["whole"] == 3
    assert load.whole_turns == {"any-1": [1, 3]}
    assert load.other_turns == {"any-1": {2}}


def _client(upstream: SoakServer) -> SoakClient:
    return SoakClient(int(upstream.address.split(":")[2].split("/")[0]))


# ---------------------------------------------------------------- what is heard


@pytest.fixture
async def gateway() -> AsyncIterator[int]:
    """The vehicle's engine alone: what it says must be right in every API."""
    config = GatewayConfig(port=0)
    listening = await serve(Gateway({"codriver": Null(NullConfig(text=TEXT))}, "codriver", config, Metrics()), config)
    yield listening.port
    await listening.aclose()


async def test_the_vehicles_engine_gives_the_right_answer_to_all_of_it(gateway: int) -> None:
    client, drawer = SoakClient(gateway), Drawer(3, Shares(leaves=0, bad=0, background=0))
    seen: set[tuple[Api, Asks, bool]] = set()
    for _ in range(150):
        ask = drawer.draw()
        heard = await client.ask(ask, 5.0)
        found = judge(as_chat(heard, ask.api), ask.asks, ask.streamed)
        assert (found.kind, found.why) == ("whole", ""), (ask, heard.body)
        seen.add((ask.api, ask.asks, ask.streamed))
    client.close()
    assert len(seen) >= 18


async def test_bad_requests_are_refused_as_they_must_be(gateway: int) -> None:
    client, drawer = SoakClient(gateway), Drawer(3, Shares(bad=1.0))
    for _ in range(60):
        ask = drawer.draw()
        heard = await client.ask(ask, 5.0)
        assert heard.status in ask.statuses, (ask, heard)
    client.close()


async def test_a_client_leaves_when_it_is_told_to(upstream: SoakServer) -> None:
    path = "/" + upstream.address.split("/", 3)[3] + "/chat/completions"
    body = msgspec.json.encode({"model": "m", "stream": True, **chat(("user", Tag("no response").text()))})
    heard = await _client(upstream).ask(Ask(path, body, manner="leaves", leave_after_s=0.05), 30.0)
    assert (heard.ended, heard.status) == ("not", 0)


@pytest.mark.parametrize("api", ["chat", "completions", "responses", "messages"])
def test_an_error_stays_an_error_and_a_cut_a_cut(api: Api) -> None:
    events = {
        "chat": b'{"choices":[{"index":0,"delta":{"content":"w1"}}]}',
        "completions": b'{"choices":[{"index":0,"text":"w1"}]}',
        "responses": b'{"type":"response.output_text.delta","delta":"w1"}',
        "messages": b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"w1"}}',
    }
    failed = {
        "responses": b'{"type":"response.failed","response":{"error":{"code":"x","message":"died"}}}',
        "messages": b'{"type":"error","error":{"type":"api_error","message":"died"}}',
    }.get(api, b'{"error":{"message":"died"}}')
    cut = Heard(200, "text/event-stream", b"data: " + events[api] + b"\n\n", "clean", 1.0)
    assert judge(as_chat(cut, api), "text", True).kind == "lie"
    told = Heard(200, "text/event-stream", cut.body + b"data: " + failed + b"\n\n", "clean", 1.0)
    assert judge(as_chat(told, api), "text", True).kind == "told"


def test_a_restart_takes_back_what_came_before() -> None:
    def event(**members: Any) -> bytes:
        return b"data: " + msgspec.json.encode(members) + b"\n\n"

    begun = event(choices=[{"index": 0, "delta": {"content": "w1 w2 "}}])
    mark = event(choices=[], codriver={"restart": True, "discard_chars": 6})
    whole = event(choices=[{"index": 0, "delta": {"content": TEXT}, "finish_reason": "stop"}])
    heard = Heard(200, "text/event-stream", begun + mark + whole, "clean", 1.0)
    assert judge(as_chat(heard, "chat"), "text", True).kind == "whole"
    spliced = Heard(200, "text/event-stream", begun + whole, "clean", 1.0)
    assert judge(as_chat(spliced, "chat"), "text", True).kind == "lie"


def test_who_answered_is_read_from_the_answer() -> None:
    assert engine_of(Heard(200, "", b'{"a":1,"codriver":{"engine":"cloud","x":2}}', "clean", 1.0)) == "cloud"
    assert engine_of(Heard(200, "", b'{"a":1}', "clean", 1.0)) == ""


def test_only_the_right_answer_fits_the_schema_and_the_tool() -> None:
    assert {expected(asks) for asks in ("text", "tools", "json")} == {TEXT, ARGUMENTS, JSON}


# ---------------------------------------------------------------- the command


def test_a_line_that_does_not_hold_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[bool, float | None]] = []

    def run(quick: bool = False, minutes: float | None = None) -> Report:
        told.append((quick, minutes))
        return SoakReport("soak", "machine", "now", [Row("codriver", "judged", "x", float(quick), "", 1, note="y")])

    monkeypatch.setattr(BENCHES, "load", lambda _: run)
    failed = CliRunner().invoke(app, ["bench", "soak", "--minutes", "3"])
    assert failed.exit_code == 1
    assert "FAIL  x: y" in failed.output
    assert CliRunner().invoke(app, ["bench", "soak", "--quick"]).exit_code == 0
    assert told == [(False, 3.0), (True, None)]


def test_only_the_soak_takes_minutes() -> None:
    ended = CliRunner().invoke(app, ["bench", "gateway", "--minutes", "3"])
    assert ended.exit_code != 0
    assert "takes no --minutes" in f"{ended.output} {ended.exception}"


async def test_the_null_engine_goes_on_from_a_prompt() -> None:
    from codriver.core.deadline import Deadline

    engine = Null(NullConfig(text="one two three"))
    for prompt, rest in (("Say: one two", " three"), ("Say: on", "one two three"), ("Say: one two three", "")):
        request = ChatRequest(prompt=prompt)
        text = "".join([chunk.text() async for chunk in engine.generate(request, Deadline.after(5.0))])
        assert text == rest
