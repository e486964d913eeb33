"""The redact class: what a cloud engine reads, what client, session and vehicle get, and when nothing is sent."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from codriver.core.deadline import Deadline
from codriver.core.errors import Forbidden, NoEngineLeft
from codriver.core.messages import (
    ChatRequest,
    EmbedRequest,
    FunctionCall,
    FunctionSpec,
    ImagePart,
    ImageUrl,
    Message,
    TextPart,
    Tool,
    ToolCall,
    parse_chat,
)
from codriver.core.plan import Attempt, AttemptPlan, PlanError
from codriver.core.privacy import Detector, Finding, NoDetector, Unreadable
from codriver.core.virtual import LoopClock, run_virtual
from codriver.core.wire import encode
from codriver.engines.null import Null, NullConfig
from codriver.privacy import NameFinder, PrivacyConfig
from codriver.privacy.detect import make_detector
from codriver.route.conceal import Concealer
from codriver.route.config import RouteConfig
from codriver.route.execute import Run
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.pinned import PinnedEngine
from codriver.route.redact import Privacy
from codriver.route.vault import Vault
from tests.unit.route.drive import Got, ask, lineup_of, watch
from tests.unit.route.faulty import EVERY, Fault, Faulty

DETECTOR = make_detector(PrivacyConfig(names=("Anna Schmidt",)))
MAIL, PHONE, VIN = "anna.schmidt@example.org", "+49 151 12345678", "1HGCM82633A004352"
SECRETS = (MAIL, PHONE, VIN, "Schmidt")


def concealer(vault: Vault | None = None, *entities: str) -> Concealer:
    return Concealer(DETECTOR, NameFinder(entities), Vault() if vault is None else vault)


def hidden(request: ChatRequest, *entities: str) -> ChatRequest:
    made = concealer(None, *entities)
    made.learn(request)
    return made.request(request)


def user(text: str) -> Message:
    return Message(role="user", content=text)


# ---------------------------------------------------------------- what is sent


def test_one_value_has_one_placeholder_wherever_it_stands() -> None:
    request = ask(
        messages=[
            Message(role="system", content=f"The driver is ANNA  schmidt, {MAIL}."),
            user(f"Write to {MAIL.upper()} and call {PHONE}"),
            Message(role="tool", content=f"{PHONE} is busy", tool_call_id="c"),
        ]
    )
    assert [message.text() for message in hidden(request).messages] == [
        "The driver is <NAME_1>, <EMAIL_1>.",
        "Write to <EMAIL_1> and call <PHONE_1>",
        "<PHONE_1> is busy",
    ]


def test_what_its_surroundings_told_is_known_where_it_stands_alone() -> None:
    request = ask(messages=[user("Is 3 May 1990 a Thursday?"), user("I was born on 3 May 1990.")])
    assert hidden(request).messages[0].text() == "Is <BIRTHDATE_1> a Thursday?"


def test_every_member_of_the_body_is_walked_and_the_apis_words_stay() -> None:
    body = {
        "model": "codriver",
        "messages": [
            {"role": "user", "name": "Schmidt", "content": [{"type": "text", "text": MAIL}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "mail", "arguments": '{"to":"' + MAIL + '"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": '{"phone": "\\u002b49 151 12345678"}', "extra": [VIN]},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "mail",
                    "description": f"Mail, usually to {MAIL}",
                    "parameters": {"type": "object", "properties": {"to": {"type": "string", "enum": [MAIL]}}},
                },
            }
        ],
        "user": MAIL,
        "stop": [PHONE],
        "metadata": {"vin": VIN, MAIL: 1},
        "min_p": 0.25,
        "max_tokens": 20,
        "codriver": {"privacy": "redact", "session": MAIL},
    }
    sent = hidden(parse_chat(json.dumps(body).encode()))
    assert sent.raw is not None
    for text in (sent.raw.decode(), encode(msgspec.structs.replace(sent, raw=None)).decode()):
        for secret in SECRETS:
            assert secret not in text
    got = json.loads(sent.raw)
    assert (got["min_p"], got["max_tokens"], got["model"]) == (0.25, 20, "codriver")
    assert "codriver" not in got
    assert [message["role"] for message in got["messages"]] == ["user", "assistant", "tool"]
    assert got["messages"][0]["name"] == "NAME_1"
    assert json.loads(got["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"to": "<EMAIL_1>"}
    assert json.loads(got["messages"][2]["content"]) == {"phone": "<PHONE_1>"}
    assert got["tools"][0]["function"]["parameters"]["properties"]["to"]["enum"] == ["<EMAIL_1>"]
    assert got["metadata"] == {"vin": "<VIN_1>", "<EMAIL_1>": 1}


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({"lat": 48.137154, "lon": 11.576124}, {"lat": "<GPS_1>", "lon": "<GPS_2>"}),
        ({"at": [48.137154, 11.576124]}, {"at": ["<GPS_1>", "<GPS_2>"]}),
        ({"dob": "1990-05-03", "when": "2026-11-25"}, {"dob": "<BIRTHDATE_1>", "when": "2026-11-25"}),
        ({"card": 4111111111111111}, {"card": "<CARD_1>"}),
        ({"degrees": 21.5, "seat": 3, "on": True}, {"degrees": 21.5, "seat": 3, "on": True}),
    ],
)
def test_json_values_are_told_by_their_names_and_neighbours(arguments: Any, sent: Any) -> None:
    call = ToolCall(id="c", function=FunctionCall("f", json.dumps(arguments)))
    request = ask(messages=[Message(role="assistant", tool_calls=[call])])
    calls = hidden(request).messages[0].tool_calls
    assert calls and json.loads(calls[0].function.arguments) == sent


def test_what_looks_like_a_placeholder_already_is_a_value_like_any_other() -> None:
    vault = Vault()
    made = concealer(vault)
    request = ask(messages=[user(f"What does <EMAIL_1> mean? Write to {MAIL}.")])
    made.learn(request)
    assert made.request(request).messages[0].text() == "What does <TEXT_1> mean? Write to <EMAIL_1>."
    assert vault.values == {"<TEXT_1>": "<EMAIL_1>", "<EMAIL_1>": MAIL}


def test_a_prompt_and_the_answer_that_was_joined_to_it_hide_nothing() -> None:
    made, request = concealer(), ask(prompt=f"I am Schmidt, {VIN}")
    made.learn(request)
    longer = msgspec.structs.replace(request, prompt=f"I am Schmidt, {VIN}you said {VIN}: a")
    assert made.request(longer).prompt == "I am <NAME_1>, <VIN_1>you said <VIN_1>: a"


def test_names_that_the_request_brings_are_hidden_too() -> None:
    request = ask(messages=[user("Tell Zoé and zoé's boss, Dr. Who")])
    assert hidden(request, "Zoé", "Dr. Who").messages[0].text() == "Tell <NAME_1> and <NAME_1>'s boss, <NAME_2>"


def test_an_ordinary_request_is_sent_as_it_is() -> None:
    request = parse_chat(b'{"messages":[{"role":"user","content":"set 21.5 degrees on the A4 motorway"}],"top_p":0.5}')
    sent = hidden(request)
    assert sent.messages == request.messages
    assert json.loads(sent.raw or b"") == json.loads(request.raw or b"")


@pytest.mark.parametrize(
    "message",
    [
        Message(role="user", content=[TextPart("see"), ImagePart(ImageUrl("data:image/png;base64,AAAA"))]),
        user("data:image/png;base64,AAAA"),
        user("A1b2" * 60),
        user("x " * 150_000),
        Message(role="assistant", tool_calls=[ToolCall(id="c", function=FunctionCall("f", '{"a":"\\u0041'))]),
        Message(role="user", content=[TextPart("+49 151 "), TextPart("12345678")]),
    ],
)
def test_what_cannot_be_looked_into_is_not_sent(message: Message) -> None:
    with pytest.raises(Unreadable) as refused:
        concealer().learn(ask(messages=[message]))
    assert "A" * 4 not in str(refused.value)


def test_an_answer_cut_inside_a_value_is_not_sent() -> None:
    made, request = concealer(), ask(messages=[user(f"My number is {PHONE}")])
    made.learn(request)
    for part, sent in (
        ("You can be reached at +49 151 12345678", "You can be reached at <PHONE_1>"),
        ("You can be reached at a number", "You can be reached at a number"),
    ):
        assert made.request(msgspec.structs.replace(request, continue_from=part)).continue_from == sent
    for part in ("You can be reached at +", "You can be reached at +49 151 1", "+49 ", "it is +49 151 1234567"):
        with pytest.raises(Unreadable, match="ends in the middle"):
            made.request(msgspec.structs.replace(request, continue_from=part))


# ---------------------------------------------------------------- through the router


class Echo(Faulty):
    """Answers with what it was asked last, two characters a chunk."""

    def _left(self, request: ChatRequest) -> tuple[str, ...]:
        text = "you said: " + next(m.text() for m in reversed(request.messages) if m.role == "user")
        part = request.continue_from or ""
        assert text.startswith(part)
        rest = text[len(part) :]
        return tuple(rest[at : at + 2] for at in range(0, len(rest), 2))


def drive(*engines: Faulty, detector: Detector = DETECTOR, config: RouteConfig | None = None, **asked: Any) -> Got:
    async def main() -> Got:
        lineup = lineup_of(*engines)
        hybrid = HybridEngine(lineup, config, detector=detector)
        return await watch(hybrid.generate(ask(**asked), Deadline.never(LoopClock())), lineup)

    return run_virtual(main())


ASKED = f"mail {MAIL} or call Schmidt"
REDACT = {"privacy": "redact", "policy": "cloud-first"}


def test_the_cloud_reads_placeholders_and_the_client_values() -> None:
    v, c = Echo("v"), Echo("c", "cloud")
    got = drive(v, c, messages=[user(ASKED)], codriver=REDACT)
    assert got.text == f"you said: {ASKED}"
    assert c.requests[0].messages[0].text() == "mail <EMAIL_1> or call <NAME_1>"
    assert got.extension["privacy"] == "redact"
    assert got.extension["redacted"] == {"EMAIL": 1, "NAME": 1}
    assert not any(secret in str(got.extension) for secret in SECRETS)


def test_the_vehicle_reads_the_original() -> None:
    v = Echo("v")
    got = drive(v, Echo("c", "cloud", fault=Fault("refuse")), messages=[user(ASKED)], codriver=REDACT)
    assert got.text == f"you said: {ASKED}"
    assert v.requests[0].messages[0].text() == ASKED
    assert got.extension["engine"] == "v"


@pytest.mark.parametrize("after", range(1, 18))
def test_an_answer_cut_anywhere_goes_on_from_cloud_to_vehicle_and_from_cloud_to_cloud(after: int) -> None:
    for second in (Echo("v"), Echo("d", "cloud")):
        c = Echo("c", "cloud", fault=Fault("die", after))
        got = drive(c, second, messages=[user(ASKED)], codriver=REDACT)
        assert got.text == f"you said: {ASKED}"
        assert got.extension["engine"] == second.name
        if second.locality == "cloud":
            assert not any(secret in str(second.requests) for secret in SECRETS)


@pytest.mark.parametrize("after", range(1, 22))
def test_an_answer_of_the_vehicle_goes_on_in_the_cloud_only_where_nothing_private_is_cut(after: int) -> None:
    v, c = Echo("v", fault=Fault("die", after)), Echo("c", "cloud")
    plan = AttemptPlan((Attempt("v", "vehicle", "", "at_once"), Attempt("c", "cloud", "")), 30.0, privacy="redact")
    got = through(plan, ask(messages=[user(ASKED)], codriver=REDACT), v, c)
    if c.requests:
        assert got.text == f"you said: {ASKED}"
        assert not any(secret in str(c.requests) for secret in SECRETS)
        assert "anna." not in str(c.requests)
    else:
        assert got.error is not None


def through(plan: AttemptPlan, request: ChatRequest, *engines: Faulty) -> Got:
    async def main() -> Got:
        lineup = lineup_of(*engines)
        whole, veil = Privacy(DETECTOR).prepare(request, lambda _: Vault())
        run = Run(lineup.veiled(veil), RouteConfig(), plan, whole, Deadline.never(LoopClock()))
        return await watch(run.chunks(), lineup)

    return run_virtual(main())


def test_a_conversation_keeps_its_placeholders_and_its_class() -> None:
    async def main() -> None:
        c = Echo("c", "cloud")
        lineup = lineup_of(c)
        hybrid = HybridEngine(lineup, detector=DETECTOR)

        async def say(text: str, **options: Any) -> Got:
            asked = ask(messages=[user(text)], codriver={"session": "s", **options})
            return await watch(hybrid.generate(asked, Deadline.never(LoopClock())), lineup)

        await say(f"I am {MAIL}", privacy="redact")
        got = await say(f"and {PHONE}, not {MAIL}")
        assert got.text == f"you said: and {PHONE}, not {MAIL}"
        assert got.extension["privacy"] == "redact"
        assert [m.text() for m in c.requests[1].messages] == [
            "I am <EMAIL_1>", "you said: I am <EMAIL_1>", "and <PHONE_1>, not <EMAIL_1>",
        ]  # fmt: skip

    run_virtual(main())


class Seeing(Faulty):
    @property
    def card(self) -> Any:  # type: ignore[override]
        return replace(super().card, modalities=frozenset({"text", "image"}))


class Broken:
    why_not = ""

    def find(self, text: str) -> list[Finding]:
        raise RuntimeError(f"cannot parse {text}")


@pytest.mark.parametrize(
    ("detector", "message", "why"),
    [
        (NoDetector("the extra is missing"), user("hi"), "the extra is missing"),
        (Broken(), user("hi"), "looking for personal data failed"),
        (DETECTOR, user("A1b2" * 60), "encoded data cannot be looked into"),
        (
            DETECTOR,
            Message(role="user", content=[ImagePart(ImageUrl("http://x/y.png"))]),
            "pictures and sound cannot be redacted",
        ),
    ],
)
def test_what_cannot_be_redacted_stays_in_the_vehicle_and_says_so(
    detector: Detector, message: Message, why: str
) -> None:
    v, c = Seeing("v"), Seeing("c", "cloud")
    got = drive(v, c, detector=detector, messages=[message], codriver=REDACT)
    assert (got.extension["engine"], got.extension["privacy"]) == ("v", "local_only")
    assert got.extension["not_redacted"] == why
    assert c.requests == []
    got = drive(c, detector=detector, messages=[message], codriver=REDACT)
    assert isinstance(got.error, NoEngineLeft)
    assert c.requests == []


def test_without_a_detector_redact_is_local_only() -> None:
    v, c = Faulty("v"), Faulty("c", "cloud")
    got = drive(v, c, detector=NoDetector(), codriver=REDACT)
    assert got.extension["engine"] == "v"
    assert c.calls == 0


def test_the_vehicles_own_class_holds_for_requests_that_say_less() -> None:
    v, c = Echo("v"), Echo("c", "cloud")
    for privacy in (None, "any"):
        options = {"policy": "cloud-first", **({"privacy": privacy} if privacy else {})}
        got = drive(v, c, config=RouteConfig(privacy="redact"), messages=[user(ASKED)], codriver=options)
        assert got.extension["privacy"] == "redact"
        got = drive(v, c, config=RouteConfig(privacy="local_only"), messages=[user(ASKED)], codriver=options)
        assert (got.extension["privacy"], got.extension["engine"]) == ("local_only", "v")
    assert not any(secret in str(c.requests) for secret in SECRETS)


def test_a_plan_for_a_bare_cloud_engine_is_not_run() -> None:
    plan = AttemptPlan((Attempt("c", "cloud", "", "at_once"),), privacy="redact")
    with pytest.raises(PlanError, match="a redact request must not reach c"):
        Run(Lineup({"c": Null(NullConfig(id="c", locality="cloud"))}), RouteConfig(), plan, ask(), Deadline.never())


def test_log_probabilities_are_not_asked_for_where_they_would_be_of_placeholders() -> None:
    c = Echo("c", "cloud")
    got = drive(c, messages=[user(ASKED)], codriver=REDACT, logprobs=True, top_logprobs=2)
    assert (c.requests[0].logprobs, c.requests[0].top_logprobs) == (None, None)
    assert all(choice.logprobs is None for chunk in got.chunks for choice in chunk.choices)


def test_tools_are_called_with_values() -> None:
    c = Faulty("c", "cloud", words=('{"to"', ': "<EMA', "IL_1", '>"}'), tool=True, capabilities=EVERY)
    tools = [Tool(FunctionSpec("mail"))]
    got = drive(c, messages=[user(ASKED)], codriver=REDACT, tools=tools)
    calls = got.answer.completion().choices[0].message.tool_calls
    assert json.loads(calls[0].function.arguments) == {"to": MAIL}  # type: ignore[index, union-attr]


async def test_texts_to_embed_stay_in_the_vehicle_unless_anything_goes() -> None:
    c = Null(NullConfig(id="c", locality="cloud", dimensions=4))
    lineup = Lineup({"c": c})
    hybrid = HybridEngine(lineup, detector=DETECTOR)
    request = EmbedRequest("x", privacy="redact")
    with pytest.raises(Exception, match="No engine here makes embeddings"):
        await hybrid.embed(request, Deadline.never())
    with pytest.raises(Forbidden, match="may not leave the vehicle, and 'c' is not in it"):
        await PinnedEngine(hybrid, lineup, "c").embed(request, Deadline.never())
    strict = HybridEngine(lineup, RouteConfig(privacy="redact"), detector=DETECTOR)
    with pytest.raises(Forbidden, match="may not leave the vehicle"):
        await PinnedEngine(strict, lineup, "c", "redact").embed(EmbedRequest("x"), Deadline.never())
    assert (await PinnedEngine(hybrid, lineup, "c").embed(EmbedRequest("x"), Deadline.never())).model == "c"
