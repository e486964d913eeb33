"""What the soak asks: requests of all APIs, manners and options, drawn from one seed.

Each request's text carries a tag that tells the upstream which fault it is to have, and what the request must never
show a cloud. The tool and the schema are such that only the catalogue's right answer fits them, so that the null engine
of the vehicle gives it as well. Faults of an address (a name that is not found, a certificate) are not drawn here: a
vehicle has one cloud; refused and silent connections come from the troubles of :mod:`.soak_troubles`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from .fault_answers import ARGUMENTS, JSON, TOOL, Asks
from .fault_cases import FAULTS, HEALTHY
from .soak_tags import SECRET, Tag, mail

Api = Literal["chat", "completions", "responses", "messages"]
Manner = Literal["plain", "slow", "leaves", "bad"]
PATHS: dict[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
_APIS: tuple[tuple[Api, ...], tuple[int, ...]] = (("chat", "completions", "responses", "messages"), (5, 1, 2, 2))
_ASKS: tuple[tuple[Asks, ...], tuple[int, ...]] = (("text", "tools", "json"), (6, 2, 2))
_POLICIES = ("cloud-first", "auto", "vehicle-first", "cloud-only", "vehicle-only"), (14, 2, 2, 1, 1)
_PRIVACIES = ("any", "redact", "local_only"), (8, 1, 1)
_FAILOVERS = ("", "restart", "declare"), (8, 1, 1)
_PARAMETERS = {
    "type": "object",
    "properties": {name: {"const": value} for name, value in msgspec.json.decode(ARGUMENTS).items()},
    "required": list(msgspec.json.decode(ARGUMENTS)),
}
_SCHEMA = {
    "type": "object",
    "properties": {"words": {"const": msgspec.json.decode(JSON)["words"]}},
    "required": ["words"],
}
_EMPTY = "empty completion"
# Where an answer without a word is given out by intent: nobody else may be asked. So it is where a prompt may be
# complete already.
_EMPTY_PASSES = ("cloud-only",)
# Shares of the usual weight: 12 MB each, and pauses of the breaker in which the cloud gets no fault at all.
_RARE = {"huge chunk": 0.1, "429 with retry-after": 0.25, "429 with an absurd retry-after": 0.25}


@dataclass(frozen=True)
class Shares:
    """Of all requests: those with a fault, those whose client leaves, reads slowly, or sends what is no request."""

    faults: float = 0.12
    leaves: float = 0.05
    slow: float = 0.04
    bad: float = 0.04
    sessions: float = 0.2
    background: float = 0.03
    tight_budget: float = 0.03


@dataclass(frozen=True)
class Ask:
    """One request as it goes out, and what may come of it.

    ``sheltered``: the vehicle may answer it whatever the cloud does. ``statuses``: what a bad request must be told.
    """

    path: str
    body: bytes
    api: Api = "chat"
    asks: Asks = "text"
    streamed: bool = False
    manner: Manner = "plain"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    fault: str = HEALTHY
    sheltered: bool = False
    deadline_s: float = 4.0
    leave_after_s: float | None = None
    statuses: tuple[int, ...] = ()
    session: str = ""
    turn: int = 0


class Drawer:
    """Draws one request after the other. Sessions' turns are numbered here; who asks must not let them overlap."""

    def __init__(self, seed: int, shares: Shares | None = None) -> None:
        self._random = random.Random(seed)
        self._shares = shares or Shares()
        self._turns: dict[str, int] = {}
        self.busy: set[str] = set()

    def calm(self) -> Ask:
        """A request of the usual mix that has no fault and whose client behaves."""
        return self._usual("plain", HEALTHY)

    def draw(self) -> Ask:
        shares, lot = self._shares, self._random.random()
        if lot < shares.bad:
            return self._random.choice(_BAD)
        lot -= shares.bad
        manner: Manner = "leaves" if lot < shares.leaves else "slow" if lot < shares.leaves + shares.slow else "plain"
        return self._usual(manner, None if self._random.random() < shares.faults else HEALTHY)

    def plain(self, policy: str = "cloud-first", session: str = "") -> Ask:
        """A chat request without anything special, for a look at the state."""
        tag = Tag(HEALTHY, session, self._next_turn(session))
        options = {"policy": policy, "deadline_ms": 4000.0} | ({"session": session} if session else {})
        body = _bodies("chat", "text", False, f"Count with numbered words. {tag.text()}")
        body["codriver"] = options
        return Ask(PATHS["chat"], msgspec.json.encode(body), session=session, turn=tag.turn)

    def shuffled(self, names: list[str]) -> list[str]:
        return self._random.sample(names, len(names))

    def _usual(self, manner: Manner, fault: str | None) -> Ask:
        pick = self._random
        api = pick.choices(*_APIS)[0]
        asks: Asks = "text" if api == "completions" else pick.choices(*_ASKS)[0]
        streamed = pick.random() < 0.6
        options = self._options(api, asks, streamed)
        if fault is None:
            names, weights = FAULTS_OF[asks]
            fault = pick.choices(names, weights)[0]
            if fault == _EMPTY and (api == "completions" or options["policy"] in _EMPTY_PASSES):
                fault = HEALTHY
        session = str(options.get("session", ""))
        tag = Tag(fault, session, self._next_turn(session), str(options.get("privacy", "any")))
        prompt = f"Count with numbered words. {tag.text()}"
        if tag.privacy == "local_only":
            prompt += f" {SECRET}"
        elif tag.privacy == "redact":
            prompt += f" Write to {mail(pick.randrange(50))} then."
        body = _bodies(api, asks, streamed, prompt)
        headers = {f"x-codriver-{name.replace('_', '-')}": f"{value}" for name, value in options.items()}
        sheltered = (
            options["policy"] != "cloud-only" and options.get("failover") != "declare" and "priority" not in options
        )
        leaves = pick.choice((0.005, 0.05, 0.15, 0.4)) if manner == "leaves" else None
        return Ask(
            PATHS[api], msgspec.json.encode(body), api, asks, streamed, manner, headers=headers, fault=fault,
            sheltered=sheltered, leave_after_s=leaves, session=session, turn=tag.turn,
        )  # fmt: skip

    def _options(self, api: Api, asks: Asks, streamed: bool) -> dict[str, object]:
        pick, shares = self._random, self._shares
        options: dict[str, object] = {"policy": pick.choices(*_POLICIES)[0], "deadline_ms": 4000}
        privacy = pick.choices(*_PRIVACIES)[0] if asks == "text" else "any"
        failover = pick.choices(*_FAILOVERS)[0]
        if failover and not (failover == "restart" and streamed and api != "chat"):
            options["failover"] = failover
        if privacy == "local_only" and options["policy"] == "cloud-only":
            privacy = "any"
        if privacy != "any":
            options["privacy"] = privacy
        if asks == "text" and api != "completions" and pick.random() < shares.sessions:
            session = f"{privacy}-{pick.randrange(40 if privacy == 'any' else 8)}"
            if session not in self.busy:
                options["session"] = session
        if pick.random() < shares.background:
            options["priority"] = "background"
        if pick.random() < shares.tight_budget:
            options["budget_usd"] = 1e-9
        return options

    def _next_turn(self, session: str) -> int:
        if not session:
            return 0
        self._turns[session] = self._turns.get(session, 0) + 1
        return self._turns[session]


def _faults_of(asks: Asks) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The names of what can go wrong with such an answer, and how often each is drawn."""
    fit = {
        fault.name
        for fault in FAULTS
        if fault.place == "http" and not fault.leaves and "link" not in fault.name and fault.asks in ("text", asks)
    }
    names = tuple(sorted(fit))
    return names, tuple(_RARE.get(name, 1.0) for name in names)


FAULTS_OF: dict[Asks, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "text": _faults_of("text"),
    "tools": _faults_of("tools"),
    "json": _faults_of("json"),
}


# ---------------------------------------------------------------- bodies


def _bodies(api: Api, asks: Asks, streamed: bool, prompt: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "codriver", "temperature": 0}
    if streamed:
        body["stream"] = True
    messages = [{"role": "user", "content": prompt}]
    if api == "completions":
        return body | {"prompt": prompt, "max_tokens": 64}
    if api == "responses":
        return body | {"input": prompt, "max_output_tokens": 64} | _responses_extras(asks)
    if api == "messages":
        return body | {"messages": messages, "max_tokens": 64} | _messages_extras(asks)
    if streamed:
        body["stream_options"] = {"include_usage": True}
    return body | {"messages": messages, "max_tokens": 64} | _chat_extras(asks)


def _chat_extras(asks: Asks) -> dict[str, Any]:
    if asks == "tools":
        function = {"name": TOOL, "description": "Set the temperature of a zone.", "parameters": _PARAMETERS}
        return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    if asks == "json":
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "words", "schema": _SCHEMA}}}
    return {}


def _responses_extras(asks: Asks) -> dict[str, Any]:
    if asks == "tools":
        return {
            "tools": [{"type": "function", "name": TOOL, "parameters": _PARAMETERS, "strict": False}],
            "tool_choice": "required",
        }
    if asks == "json":
        return {"text": {"format": {"type": "json_schema", "name": "words", "schema": _SCHEMA}}}
    return {}


def _messages_extras(asks: Asks) -> dict[str, Any]:
    if asks == "tools":
        return {"tools": [{"name": TOOL, "input_schema": _PARAMETERS}], "tool_choice": {"type": "any"}}
    if asks == "json":
        return {"output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}}}
    return {}


def _bad(status: int, body: bytes, path: str = PATHS["chat"], method: str = "POST", **headers: str) -> Ask:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Ask(path, body, manner="bad", method=method, headers=named, statuses=(status,))


_ASKED = b'{"model": "codriver", "messages": [{"role": "user", "content": "x"}]'
_BAD: tuple[Ask, ...] = (
    _bad(400, b'{"model": '),
    _bad(400, b'{"model": "codriver", "messages": []}'),
    _bad(400, _ASKED + b', "temperature": 9}'),
    _bad(400, _ASKED + b', "codriver": {"polizy": "auto"}}'),
    _bad(400, _ASKED + b"}", x_codriver_deadline_ms="soon"),
    _bad(404, _ASKED.replace(b"codriver", b"nobody") + b"}"),
    _bad(404, b"{}", "/v1/nothing"),
    _bad(405, b"", method="GET"),
    _bad(400, b'{"input": 7}', PATHS["responses"]),
    _bad(400, b'{"messages": "x", "max_tokens": 3}', PATHS["messages"]),
    _bad(400, b'{"prompt": ["a", "b"]}', PATHS["completions"]),
)
