"""The fault catalogue: every way for an upstream to fail that this project knows of, by the model name that selects it.

A fault is a behaviour of the first engine (and in some of the second), or a place where no server answers at all.
Rule: a fault must be one that a router can know of; an upstream that says another word, with a proper end, is not in
here.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from .fault_answers import Asks
from .fault_call import Call

Behaviour = Callable[[Call], Awaitable[None]]
Place = Literal["http", "dns", "refused", "black-hole", "deaf", "tls-none", "tls-expired"]
Leaves = Literal["", "early", "late"]
AFTER = 7  # pieces of the answer that come before a fault in its middle
HEALTHY = "healthy"
_PADDING_BYTES = 12 << 20
_YEAR_9999_MS = 253_402_300_799_000
_ERROR = {"error": {"message": "The server had an error.", "type": "server_error", "param": None, "code": "oops"}}
_LIMITED = {"error": {"message": "Rate limit reached.", "type": "requests", "param": None, "code": "rate_limit"}}


@dataclass(frozen=True)
class Fault:
    """``name`` is the model's name at the first engine, ``second`` at the one that stands by. ``place``: what is at
    the first engine's address. ``whole`` too: the case is asked without streaming as well. ``leaves``: the client goes
    away before the first token or in the middle.
    """

    name: str
    second: str = HEALTHY
    place: Place = "http"
    asks: Asks = "text"
    whole: bool = False
    leaves: Leaves = ""
    prompt_bytes: int = 0


async def _healthy(call: Call) -> None:
    await call.answer()


async def _no_response(call: Call) -> None:
    await call.hang()


async def _headers_only(call: Call) -> None:
    await call.head()
    await call.hang()


async def _late(call: Call) -> None:
    await call.head()
    await call.pause(call.tempo.late_s)
    await call.events(call.right.events())
    await call.end()


async def _stall(call: Call) -> None:
    await call.begin(AFTER)
    await call.hang()


async def _cut(call: Call) -> None:
    await call.begin(AFTER)


async def _cut_clean(call: Call) -> None:
    await call.begin(AFTER, chunked=False)


async def _cut_framed(call: Call) -> None:
    await call.begin(AFTER)
    await call.end(done=False)


async def _early_done(call: Call) -> None:
    await call.begin(AFTER)
    await call.end()


async def _malformed(call: Call) -> None:
    rest = await call.begin(AFTER)
    await call.event(b'{"choices": [{"index": 0, "delta": {"content": "w')
    await call.events(rest)
    await call.end()


async def _not_utf8(call: Call) -> None:
    rest = await call.begin(AFTER)
    await call.event(call.right.chunk({"content": "w?"}).replace(b"?", b"\xff\xfe"))
    await call.events(rest)
    await call.end()


async def _keep_alive(call: Call) -> None:
    await call.head()
    for _ in range(int(call.tempo.drip_limit_s / call.tempo.drip_s)):
        await call.part(b": keep-alive\n\n" if call.streamed else b" ")
        await call.pause(call.tempo.drip_s)


async def _error_body(call: Call) -> None:
    await call.whole(_ERROR)


async def _error_chunk(call: Call) -> None:
    await call.begin(AFTER)
    await call.event(msgspec.json.encode(_ERROR))
    await call.end()


async def _limited_hinted(call: Call) -> None:
    await call.whole(_LIMITED, "429 Too Many Requests", {"retry-after": "30"})


async def _limited(call: Call) -> None:
    await call.whole(_LIMITED, "429 Too Many Requests")


async def _limited_absurd(call: Call) -> None:
    await call.whole(_LIMITED, "429 Too Many Requests", {"retry-after": "Thu, 01 Jan 2099 00:00:00 GMT"})


async def _burst(call: Call) -> None:
    if call.number <= 2:
        await call.whole(_ERROR, "500 Internal Server Error")
    else:
        await call.answer()


async def _overloaded(call: Call) -> None:
    await call.whole(_ERROR, "503 Service Unavailable")


async def _unauthorised(call: Call) -> None:
    await call.whole({"error": {"message": "Incorrect API key.", "code": "invalid_api_key"}}, "401 Unauthorized")


async def _unknown(call: Call) -> None:
    await call.whole({"error": {"message": "No such model.", "code": "model_not_found"}}, "404 Not Found")


async def _moved(call: Call) -> None:
    await call.whole({}, "302 Found", {"location": "/"})


async def _drip(call: Call) -> None:
    """Always something before a limit on gaps, never done before a limit on the whole."""
    await call.head()
    if not call.streamed:
        for byte in msgspec.json.encode(call.right.whole()):
            await call.part(bytes([byte]))
            await call.pause(call.tempo.drip_s)
    for payload in call.right.events():
        await call.event(payload)
        await call.pause(call.tempo.drip_s)
    await call.end()


async def _reset_before(call: Call) -> None:
    call.reset()


async def _reset_after(call: Call) -> None:
    await call.head()
    await call.pause(call.tempo.piece_s)
    call.reset()


async def _reset_amid(call: Call) -> None:
    await call.begin(AFTER)
    call.reset()


async def _page(call: Call) -> None:
    await call.head(kind="text/html")
    await call.part(b"<html><body>Please log in to this hotspot.</body></html>")
    await call.raw(b"0\r\n\r\n")


async def _huge(call: Call) -> None:
    """The right answer with an event (or a member) of 12 MB that no client has use for."""
    padding = {"choices": [], "padding": "x" * _PADDING_BYTES}
    if not call.streamed:
        await call.whole({**call.right.whole(), **padding, "choices": call.right.whole()["choices"]})
        return
    rest = await call.begin(AFTER)
    await call.event(msgspec.json.encode({**msgspec.json.decode(rest[0]), **padding}))
    await call.events(rest)
    await call.end()


async def _empty(call: Call) -> None:
    if not call.streamed:
        await call.whole(call.right.whole(text=""))
        return
    await call.head()
    events = call.right.events()
    await call.events([events[0], call.right.chunk({}, "stop")])
    await call.end()


async def _nothing(call: Call) -> None:
    """A proper end of no body at all."""
    await call.head()
    await call.end(done=False)


async def _duplicate(call: Call) -> None:
    """One event twice, as after a reconnect. Its random member shows that it is not a word said twice."""
    events = call.right.events()
    await call.head()
    await call.events(events[:AFTER])
    await call.events([events[AFTER], *events[AFTER:]])
    await call.end()


async def _half_claimed(call: Call) -> None:
    """Half of the answer with the finish reason of a whole one."""
    right = call.right
    half = len(right.pieces) // 2
    if not call.streamed:
        await call.whole(right.whole(text="".join(right.pieces[:half])))
        return
    await call.begin(half)
    await call.event(right.chunk({}, right.finish_reason))
    await call.end()


async def _half_cut(call: Call) -> None:
    await call.begin(len(call.right.pieces) // 2, chunked=False)


async def _no_finish(call: Call) -> None:
    if not call.streamed:
        await call.whole(call.right.whole(finish_reason=None))
        return
    await call.begin(len(call.right.pieces))
    await call.end()


async def _no_done(call: Call) -> None:
    await call.head()
    await call.events(call.right.events())
    await call.end(done=False)


async def _clock(call: Call) -> None:
    """Dates that no clock can mean, in the head and in the body."""
    call.right = replace(call.right, created=_YEAR_9999_MS)
    fields = {"date": "Thu, 01 Jan 1970 00:00:00 GMT", "expires": "Fri, 31 Dec 9999 23:59:59 GMT"}
    if not call.streamed:
        await call.whole(call.right.whole(), fields=fields)
        return
    await call.head(fields=fields)
    await call.events(call.right.events())
    await call.end()


async def _link_during(call: Call) -> None:
    rest = await call.begin(AFTER)
    call.scene.link.clear()
    await call.events(rest)
    await call.end()


async def _link_flapping(call: Call) -> None:
    """Up for half a gap, down for a gap, and so on from the first call."""
    scene, gap_s = call.scene, call.tempo.gap_s

    async def toggle() -> None:
        while True:
            await asyncio.sleep(gap_s / 2)
            scene.link.clear()
            await asyncio.sleep(gap_s)
            scene.link.set()

    if scene.toggling is None:
        scene.toggling = asyncio.get_running_loop().create_task(toggle())
    await call.head()
    for payload in call.right.events():
        await call.event(payload)
        await call.pause(gap_s / 15)
    await call.end()


async def _unpacked(call: Call) -> None:
    await call.head(fields={"content-encoding": "gzip"})
    await call.part(gzip.compress(b"data: {}\n\n")[:12] + b"\0\0not gzip")
    await call.end(done=False)


async def _framing(call: Call) -> None:
    await call.begin(AFTER)
    await call.raw(b"zz\r\n")
    await call.hang()


async def _not_http(call: Call) -> None:
    await call.raw(b"SSH-2.0-OpenSSH_9.6\r\n")
    await call.hang()


BEHAVIOURS: dict[str, Behaviour] = {
    HEALTHY: _healthy, "no response": _no_response, "headers only": _headers_only, "first token late": _late,
    "stall in the middle": _stall, "cut in the middle": _cut, "cut without framing": _cut_clean,
    "cut with a proper end": _cut_framed, "early [DONE]": _early_done, "malformed chunk": _malformed,
    "not UTF-8": _not_utf8, "keep-alive comments only": _keep_alive, "200 with an error body": _error_body,
    "error chunk in a 200 stream": _error_chunk, "429 with retry-after": _limited_hinted,
    "429 without retry-after": _limited, "429 with an absurd retry-after": _limited_absurd, "500 burst": _burst,
    "503": _overloaded, "401": _unauthorised, "404": _unknown, "302": _moved, "slow drip": _drip,
    "reset before headers": _reset_before, "reset after headers": _reset_after, "reset in the middle": _reset_amid,
    "wrong content type": _page, "huge chunk": _huge, "empty completion": _empty, "empty body": _nothing,
    "duplicate chunk": _duplicate,
    "tool call cut in half": _half_cut, "tool call half, said to be whole": _half_claimed,
    "JSON answer cut in half": _half_cut, "JSON answer half, said to be whole": _half_claimed,
    "no finish_reason": _no_finish, "no [DONE]": _no_done, "clock jump": _clock, "link down before": _healthy,
    "link down during": _link_during, "link flapping": _link_flapping, "bad gzip": _unpacked,
    "broken framing": _framing, "not HTTP": _not_http, "client leaves before the first token": _headers_only,
    "client leaves in the middle": _drip,
}  # fmt: skip


def _of(*names: str, **what: Any) -> list[Fault]:
    return [Fault(name, **what) for name in names]


FAULTS: tuple[Fault, ...] = (
    *_of("no response", "headers only", "200 with an error body", "429 with retry-after", "500 burst", whole=True),
    *_of("slow drip", "keep-alive comments only", "wrong content type", "huge chunk", "empty completion", whole=True),
    *_of("no finish_reason", "clock jump", "cut in the middle", "reset before headers", "empty body", whole=True),
    *_of("first token late", "stall in the middle", "cut without framing", "cut with a proper end", "early [DONE]"),
    *_of("malformed chunk", "not UTF-8", "error chunk in a 200 stream", "429 without retry-after"),
    *_of("429 with an absurd retry-after", "503", "401", "404", "302", "reset after headers", "reset in the middle"),
    *_of("duplicate chunk", "no [DONE]", "bad gzip", "broken framing", "not HTTP"),
    *_of("tool call cut in half", "tool call half, said to be whole", asks="tools", whole=True),
    *_of("JSON answer cut in half", "JSON answer half, said to be whole", asks="json", whole=True),
    *_of("link down before", "link down during", "link flapping", whole=True),
    Fault("name not found", place="dns"),
    Fault("connection refused", place="refused", whole=True),
    Fault("connection never made", place="black-hole"),
    Fault("accepts but never reads", place="deaf", prompt_bytes=600_000),
    Fault("TLS failure", place="tls-none"),
    Fault("expired certificate", place="tls-expired"),
    Fault("client leaves before the first token", leaves="early", whole=True),
    Fault("client leaves in the middle", leaves="late"),
    Fault("cut in the middle", second="stall in the middle", whole=True),
    Fault("stall in the middle", second="cut in the middle"),
    Fault("503", second="no response"),
    Fault("every engine down", second="503", place="refused", whole=True),
    Fault("no response", second="no response"),
)


@dataclass(frozen=True)
class Scenario:
    """One fault asked in one way. ``key`` can stand in a path and is the model's name at the system under test."""

    fault: Fault
    streamed: bool

    @property
    def case(self) -> str:
        fault = self.fault
        then = "" if fault.second == HEALTHY or fault.name == "every engine down" else f", then {fault.second}"
        return fault.name + then + ("" if self.streamed else " (not streamed)")

    @property
    def key(self) -> str:
        return "-".join(re.findall(r"[a-z0-9]+", self.case.lower()))


def scenarios() -> list[Scenario]:
    """Every fault streamed, and not streamed where that makes a difference to what can go wrong."""
    return [Scenario(fault, streamed) for fault in FAULTS for streamed in ((True, False) if fault.whole else (True,))]
