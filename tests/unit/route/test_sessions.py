"""Conversations: what is kept, what goes first, and what never leaves the vehicle."""

from __future__ import annotations

from typing import Any

import msgspec

from codriver.core.messages import ChatRequest, Message, RequestOptions, parse_chat
from codriver.route.sessions import Sessions


def said(text: str, session: str | None = "s", **options: Any) -> ChatRequest:
    return ChatRequest(
        messages=[Message(role="system", content="be brief"), Message(role="user", content=text)],
        codriver=RequestOptions(session=session, **options),
    )


def reply(text: str) -> Message:
    return Message(role="assistant", content=text)


def texts(request: ChatRequest) -> list[str]:
    return [message.text() for message in request.messages]


def test_history_stands_between_the_system_message_and_what_is_new() -> None:
    sessions = Sessions()
    first = said("one")
    assert sessions.extend(first) is first
    sessions.record(first, reply("1"))
    assert texts(sessions.extend(said("two"))) == ["be brief", "one", "1", "two"]
    assert texts(sessions.extend(said("two", session="other"))) == ["be brief", "two"]
    sessions.forget("s")
    assert texts(sessions.extend(said("two"))) == ["be brief", "two"]


def test_the_bytes_follow_the_history_and_keep_what_nobody_knows() -> None:
    sessions = Sessions()
    sessions.record(said("one"), reply("1"))
    body = b'{"messages":[{"role":"user","content":"two"}],"min_p":0.2,"codriver":{"session":"s"}}'
    sent = msgspec.json.decode(sessions.extend(parse_chat(body)).raw or b"")
    assert [m["content"] for m in sent["messages"]] == ["one", "1", "two"]
    assert sent["min_p"] == 0.2


def test_nothing_is_kept_without_a_name_or_without_room() -> None:
    sessions = Sessions()
    sessions.record(said("one", session=None), reply("1"))
    assert sessions.extend(said("two", session=None)).messages[-2].content == "be brief"
    none = Sessions(most=0)
    none.record(said("one"), reply("1"))
    assert texts(none.extend(said("two"))) == ["be brief", "two"]


def test_the_least_recently_used_conversation_and_the_oldest_exchange_go_first() -> None:
    sessions = Sessions(most=2, most_messages=4)
    for name in ("a", "b"):
        sessions.record(said("x", session=name), reply("y"))
    sessions.record(said("x2", session="a"), reply("y2"))
    sessions.record(said("x", session="c"), reply("y"))
    assert texts(sessions.extend(said("new", session="b"))) == ["be brief", "new"]
    sessions.record(said("x3", session="a"), reply("y3"))
    assert texts(sessions.extend(said("new", session="a"))) == ["be brief", "x2", "y2", "x3", "y3", "new"]


def test_a_conversation_stays_short_enough_for_the_vehicles_model() -> None:
    sessions = Sessions(most_chars=100)
    for index in range(10):
        sessions.record(said(f"question {index} " + "x" * 20), reply("y" * 10))
    assert texts(sessions.extend(said("new")))[1].startswith("question 8")
    sessions.record(said("x" * 1000), reply("y"))
    assert texts(sessions.extend(said("new"))) == ["be brief", "new"]


def test_what_was_said_locally_keeps_the_conversation_local_while_it_is_remembered() -> None:
    sessions = Sessions(most_messages=4)
    sessions.record(said("my home is at …", privacy="local_only"), reply("noted"), "local_only")
    extended = sessions.extend(said("and the weather?"))
    assert extended.codriver and extended.codriver.privacy == "local_only"
    assert sessions.extend(said("x", session="t")).codriver.privacy is None  # type: ignore[union-attr]
    for index in range(2):
        sessions.record(said(f"q{index}"), reply("a"))
    assert sessions.extend(said("later")).codriver.privacy is None  # type: ignore[union-attr]
