"""The console: a page that shows who answered and why, and the feed behind it.

The files of the page are handed in by ``apps/`` and answered from memory by their exact names, so that there is no path
to travel. Where there are API keys the feed and the state need one; the page itself does not. Rule: what the page gets
are figures and names (``observe/journal.py``), never a text, and nothing that it loads comes from elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from hashlib import sha256
from typing import Any

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.engine import Engine
from codriver.core.errors import RateLimited
from codriver.core.wire import encode
from codriver.observe.journal import Ended, Journal, Told, Watcher, read_told

from .auth import ApiKeys
from .exchange import STREAM, Exchange, Headers

Handler = Callable[[Exchange], Awaitable[None]]
PREFIX = "/console/"
INDEX = "index.html"
_BEAT_S = 15.0
_TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
}
_GUARDS: Headers = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_JSON: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *_GUARDS]


class NoConsole:
    """Shows nothing: the null version."""

    def ended(self, exchange: Exchange, status: int, seconds: float) -> None:
        """A request came to its end."""

    def close(self) -> None:
        """The server stops: let open feeds end."""


NO_CONSOLE = NoConsole()


class Console(NoConsole):
    """``files`` maps the names of the page's files to their bytes, ``engines`` the names in the router's line-up to
    engines; ``state`` gives what the page shows besides requests: plain values, without secrets.
    """

    def __init__(
        self,
        journal: Journal,
        files: Mapping[str, bytes],
        engines: Mapping[str, Engine],
        state: Callable[[], Mapping[str, Any]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._journal, self._engines, self._state, self._clock = journal, engines, state, clock
        self._files = {name: (body, _file_headers(name, body)) for name, body in files.items()}

    def routes(self, keys: ApiKeys) -> dict[str, dict[str, Handler]]:
        """The console's part of the gateway's table."""
        routes: dict[str, dict[str, Handler]] = {
            PREFIX + name: {"GET": partial(self._file, name=name)} for name in self._files
        }
        routes[PREFIX] = {"GET": partial(self._file, name=INDEX)}
        routes["/"] = routes[PREFIX.rstrip("/")] = {"GET": _to_the_page}
        routes[PREFIX + "state"] = {"GET": partial(self._show_state, keys=keys)}
        routes[PREFIX + "feed"] = {"GET": partial(self._feed, keys=keys)}
        return routes

    def ended(self, exchange: Exchange, status: int, seconds: float) -> None:
        if exchange.method != "POST":
            return
        error, usage = exchange.outcome, exchange.usage
        told = self._known(read_told(exchange.told if error is None else error.told))
        engine = self._engines.get(told.engine if told is not None and told.engine else exchange.engine)
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        self._journal.ended(
            Ended(
                number=self._journal.next_number(),
                at_s=self._clock.wall_s(),
                id=exchange.head.request_id.decode(),
                route=exchange.route,
                status=status,
                took_ms=round(1e3 * seconds, 3),
                engine=engine.card.id if engine is not None else "",
                code=error.code if error is not None else "",
                prompt_tokens=prompt,
                completion_tokens=completion,
                cost_usd=engine.card.price.cost_usd(prompt, completion) if engine is not None else 0.0,
                told=told,
            )
        )

    def close(self) -> None:
        self._journal.close()

    def _known(self, told: Told | None) -> Told | None:
        """An extension that names engines which nobody here has came from a server upstream: it is not kept."""
        if told is None or any(attempt.engine not in self._engines for attempt in told.attempts):
            return None
        return told if told.engine in ("", "cache") or told.engine in self._engines else None

    async def _file(self, exchange: Exchange, *, name: str) -> None:
        body, headers = self._files[name]
        await exchange.answer(body, 200, headers)

    async def _show_state(self, exchange: Exchange, *, keys: ApiKeys) -> None:
        """``GET /console/state``."""
        keys.check(exchange.head.authorization)
        await exchange.answer(encode(self._state()), 200, _JSON)

    async def _feed(self, exchange: Exchange, *, keys: ApiKeys) -> None:
        """``GET /console/feed``: what is kept, then what happens, until the client goes or is too slow."""
        keys.check(exchange.head.authorization)
        task = asyncio.current_task()
        assert task is not None

        def too_slow() -> None:
            exchange.cut_by = RateLimited("This feed was read too slowly and has been ended; open it again.")
            task.cancel()

        watcher = self._journal.watch(too_slow)
        try:
            recent = self._journal.recent()
            await exchange.start_stream([*STREAM, *_GUARDS])
            await exchange.event(encode({"kind": "hello", "now_s": self._clock.wall_s()}))
            for event in recent:
                await exchange.event(event)
            await exchange.event(encode({"kind": "live"}))
            async with aclosing(self._events(watcher)) as events:
                async for event in events:
                    await exchange.event(event)
            await exchange.end_stream(b"")
        finally:
            self._journal.leave(watcher)

    async def _events(self, watcher: Watcher) -> AsyncGenerator[bytes, None]:
        """The watcher's events, and a beat where there is none for long, so that a dead line is noticed."""
        waiting = asyncio.ensure_future(watcher.next())
        timer = asyncio.ensure_future(self._clock.sleep(_BEAT_S))
        try:
            while True:
                await asyncio.wait([waiting, timer], return_when=asyncio.FIRST_COMPLETED)
                if timer.done():
                    timer = asyncio.ensure_future(self._clock.sleep(_BEAT_S))
                    yield encode({"kind": "beat", "now_s": self._clock.wall_s()})
                if waiting.done():
                    event = waiting.result()
                    if event is None:
                        return
                    waiting = asyncio.ensure_future(watcher.next())
                    yield event
        finally:
            waiting.cancel()
            timer.cancel()


async def _to_the_page(exchange: Exchange) -> None:
    await exchange.answer(b"", 307, [(b"location", PREFIX.encode())])


def _file_headers(name: str, body: bytes) -> Headers:
    kind = _TYPES[name.rpartition(".")[2]]
    etag = b'"' + sha256(body).hexdigest()[:16].encode() + b'"'
    return [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"etag", etag), *_GUARDS]
