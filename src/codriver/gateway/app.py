"""The gateway: an ASGI application that puts the APIs that apps speak in front of engines.

Plain ASGI and a dictionary of routes, because that is what measured fastest (``docs/adr/0007-gateway-server.md``).
The path of a request: find the route, check the key, count it, read the body, parse it once, find the engine, set the
deadline, answer. Rule: every failure ends as an error body or event in the path's API, and nothing of a
request's text is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import (
    CodriverError,
    EngineUnavailable,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    UnknownModel,
)
from codriver.core.messages import ChatRequest, EmbedRequest, Privacy, RequestOptions
from codriver.core.privacy import strictest
from codriver.core.wire import encode
from codriver.observe.logs import where
from codriver.observe.metrics import Metrics
from codriver.observe.spans import start_request

from . import (
    chat,
    completions,
    embeddings,
    messages,
    ollama,
    ollama_embed,
    ollama_pages,
    openapi,
    pages,
    responses,
    shapes,
)
from .admission import Admission
from .auth import ApiKeys
from .config import GatewayConfig
from .console import NO_CONSOLE, Console, NoConsole
from .exchange import ClientGone, Exchange, Receive, Scope, Send
from .parsing import refuse_ambiguous

log = logging.getLogger("codriver.gateway")
Handler = Callable[[Exchange], Awaitable[None]]
# A route's two halves: the body as a request with its options, and the answer to it from an engine.
Parse = Callable[[Exchange, bytes], tuple[Any, RequestOptions | None]]
Respond = Callable[[Exchange, Engine, Any, Deadline], Awaitable[None]]
_FAREWELL_S = 0.5
CLIENT_GONE = 499  # nginx's number for a client that closed first; only metrics see it


class Gateway:
    """``models`` maps the names that clients use to engines; ``default`` is the one for a request that names none.

    The engines stay the caller's: closing them is not the gateway's work. Client disconnects arrive as a
    cancellation of the request's task, which ``connection.py`` sends; the engine's iterator is closed at once.
    """

    def __init__(
        self,
        models: Mapping[str, Engine],
        default: str,
        config: GatewayConfig,
        metrics: Metrics,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._models, self._default = models, models[default]
        self._config, self._metrics, self._clock = config, metrics, clock
        self._keys = ApiKeys(config)
        self._created_s = int(clock.wall_s())
        self._admission = Admission(config, self._keys, clock)
        self.draining = False
        self._console: NoConsole = NO_CONSOLE
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": partial(self._ask, parse=chat.parse, respond=chat.respond)},
            "/v1/completions": {"POST": partial(self._ask, parse=completions.parse, respond=completions.respond)},
            "/v1/embeddings": {"POST": partial(self._ask, parse=embeddings.parse, respond=embeddings.respond)},
            "/v1/responses": {"POST": partial(self._ask, parse=responses.parse, respond=shapes.respond)},
            "/v1/messages": {"POST": partial(self._ask, parse=messages.parse, respond=shapes.respond)},
            "/api/chat": {"POST": partial(self._ask, parse=ollama.parse_chat, respond=ollama.respond)},
            "/api/generate": {"POST": partial(self._ask, parse=ollama.parse_generate, respond=ollama.respond)},
            "/api/embed": {"POST": partial(self._ask, parse=embeddings.parse, respond=ollama_embed.respond)},
            "/api/tags": {"GET": self._ollama_tags},
            "/api/show": {"POST": self._ollama_show},
            "/api/version": {"GET": self._ollama_version},
            "/v1/models": {"GET": self._list_models},
            "/v1/models/{id}": {"GET": self._one_model},
            "/healthz": {"GET": self._health},
            "/metrics": {"GET": self._metrics_page},
            "/openapi.json": {"GET": self._description_page},
        }
        self._description = b""

    def show(self, console: Console) -> None:
        """Serve the console's page as well, and tell it what becomes of requests."""
        self._console = console
        self._routes |= console.routes(self._keys)
        self._description = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        exchange = Exchange(scope, receive, send, self._clock.monotonic_s())
        self._metrics.in_flight(1)
        try:
            await self._answer(exchange)
        except ClientGone:
            exchange.status = CLIENT_GONE
        except asyncio.CancelledError:
            await self._cancelled(exchange)
        finally:
            self._metrics.in_flight(-1)
            self._ended(exchange)

    async def drain(self, seconds: float) -> None:
        """Refuse new questions, let open answers end for ``seconds``, then cut what is left with an error event."""
        self.draining = True
        if self._admission.open:
            await asyncio.wait(set(self._admission.open), timeout=seconds)
        for task, exchange in list(self._admission.open.items()):
            exchange.cut_by = EngineUnavailable("The server is stopping; the answer was cut. Send the request again.")
            task.cancel()
        if self._admission.open:
            await asyncio.wait(set(self._admission.open), timeout=1.0)
        self._console.close()

    # ------------------------------------------------------------ the way of a request

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)(exchange)
        except CodriverError as error:
            await exchange.refuse(error)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001
            # The service loop: a defect in an engine must end as an error body, not as a dead connection. What it says
            # is left out: it may quote the request.
            fields = {"route": exchange.route, "at": where(error)}
            log.error("a request failed in an unforeseen way: %s", type(error).__name__, extra=fields)
            await exchange.refuse(CodriverError("An internal error occurred; it has been logged."))

    def _handler(self, exchange: Exchange) -> Handler:
        pattern = exchange.path
        methods = self._routes.get(pattern)
        if methods is None and pattern.startswith("/v1/models/"):
            pattern = "/v1/models/{id}"
            methods = self._routes[pattern]
        if methods is None:
            raise NotFound(f"Invalid URL ({exchange.method} {exchange.path[:200]}).")
        exchange.route = pattern
        handler = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
        if handler is None:
            exchange.allow = ", ".join(methods).encode()
            raise MethodNotAllowed(f"{exchange.method} is not allowed on {pattern}; use {', '.join(methods)}.")
        return handler

    async def _cancelled(self, exchange: Exchange) -> None:
        if exchange.cut_by is None:
            exchange.status = CLIENT_GONE
            return
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        with contextlib.suppress(TimeoutError):
            # A client that does not read would hold the last event, and with it this task, for ever.
            async with asyncio.timeout(_FAREWELL_S):
                await exchange.refuse(exchange.cut_by)

    def _ended(self, exchange: Exchange) -> None:
        seconds = self._clock.monotonic_s() - exchange.arrived_s
        status = exchange.outcome.status if exchange.outcome is not None else exchange.status
        self._metrics.request_ended(exchange.route, status, seconds)
        exchange.span.end(status, exchange.outcome, exchange.usage)
        self._console.ended(exchange, status, seconds)
        level = logging.WARNING if exchange.outcome is not None and status >= 500 else logging.DEBUG
        if log.isEnabledFor(level):
            fields = {"route": exchange.route, "status": status, "seconds": round(seconds, 4)}
            fields["request_id"] = exchange.head.request_id.decode()
            if exchange.outcome is not None:
                fields |= {"code": exchange.outcome.code, "reason": exchange.outcome.message}
            log.log(level, "answered", extra=fields)
        # An error holds the frames that it came through, they the body and the exchange, and that the error: without
        # this the body of every refused request would stay until the collector comes round.
        exchange.outcome = None

    # ------------------------------------------------------------ questions

    async def _ask(self, exchange: Exchange, *, parse: Parse, respond: Respond) -> None:
        task = self._admit(exchange)
        try:
            body = await exchange.body(self._config)
            request, options = parse(exchange, body)
            refuse_ambiguous(body)
            least = self._keys.least_privacy(exchange.caller)
            if least != "any":
                options = _at_least(least, request, options)
            if isinstance(request, ChatRequest):
                request.caller = exchange.caller
            if options is not None and options.priority == "background":
                self._admission.in_background(exchange)
            engine = self._engine(request.model)
            _refuse_leak(engine, options)
            if options is not None and options.session and exchange.caller:
                # Two callers may give their conversations the same name.
                options.session = f"{exchange.caller}:{options.session}"
            limit_s = self._limit_s(options)
            exchange.engine = engine.card.id
            exchange.span = start_request(request.model or engine.card.id, exchange.route, exchange.head.trace)
            self._admission.limit(exchange, limit_s)
            with exchange.span.activate():
                await respond(exchange, engine, request, Deadline(exchange.arrived_s + limit_s, self._clock))
        finally:
            self._admission.leave(task)

    def _admit(self, exchange: Exchange) -> asyncio.Task[Any]:
        """Count the exchange in. Errors: :class:`Unauthorized`, :class:`EngineUnavailable`, :class:`RateLimited`."""
        exchange.caller = self._keys.check(exchange.head.authorization)
        if self.draining:
            raise EngineUnavailable("The server is stopping and takes no new requests.", retry_after_s=5.0)
        return self._admission.enter(exchange)

    def _limit_s(self, options: RequestOptions | None) -> float:
        if options is None or options.deadline_ms is None:
            return self._config.request_limit_s
        return min(self._config.request_limit_s, options.deadline_ms / 1000)

    def _engine(self, name: str) -> Engine:
        if not name:
            return self._default
        # Ollama's clients call a model by its name with a tag.
        engine = self._models.get(name) or self._models.get(name.removesuffix(":latest"))
        if engine is None:
            near = difflib.get_close_matches(name[:100], self._models, n=3, cutoff=0.4) or sorted(self._models)[:5]
            raise UnknownModel(
                f"The model '{name[:100]}' does not exist here. Did you mean: {', '.join(near)}?", param="model"
            )
        return engine

    # ------------------------------------------------------------ pages

    async def _list_models(self, exchange: Exchange) -> None:
        self._keys.check(exchange.head.authorization)
        await pages.models(exchange, self._models, self._created_s)

    async def _one_model(self, exchange: Exchange) -> None:
        self._keys.check(exchange.head.authorization)
        name = pages.model_name(exchange.path)
        await exchange.answer(encode(pages.model(name, self._engine(name).card, self._created_s)))

    async def _ollama_tags(self, exchange: Exchange) -> None:
        self._keys.check(exchange.head.authorization)
        await exchange.answer(ollama_pages.tags(self._models, self._created_s))

    async def _ollama_show(self, exchange: Exchange) -> None:
        self._keys.check(exchange.head.authorization)
        body = await exchange.body(self._config)
        name = ollama_pages.shown_model(body)
        refuse_ambiguous(body)
        await exchange.answer(ollama_pages.show(name, self._engine(name).card, self._created_s))

    async def _ollama_version(self, exchange: Exchange) -> None:
        await exchange.answer(ollama_pages.version())

    async def _health(self, exchange: Exchange) -> None:
        await pages.health(exchange, self._models, self.draining)

    async def _metrics_page(self, exchange: Exchange) -> None:
        self._keys.check(exchange.head.authorization)
        page, content_type = self._metrics.render()
        await exchange.answer(page, 200, [(b"content-type", content_type.encode())])

    async def _description_page(self, exchange: Exchange) -> None:
        self._description = self._description or openapi.describe(self._routes)
        await exchange.answer(self._description)


def _refuse_leak(engine: Engine, options: RequestOptions | None) -> None:
    """A router keeps a request to its privacy class; an engine that the client named by itself cannot."""
    if options is None or options.privacy in (None, "any") or engine.card.locality == "vehicle":
        return
    if options.privacy == "local_only" or not engine.card.can("redact"):
        raise Forbidden(
            f"The request is {options.privacy}, and '{engine.card.id}' is not in the vehicle: nothing was sent to it.",
            param="codriver.privacy",
        )


def _at_least(least: Privacy, request: Any, options: RequestOptions | None) -> RequestOptions:
    """A request's options with the privacy class raised to ``least``, which its key asks for."""
    options = options or RequestOptions()
    options.privacy = strictest(least, options.privacy)
    if isinstance(request, EmbedRequest):
        request.privacy = options.privacy
    else:
        request.codriver = options
    return options


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing to start or stop: ``apps/`` owns the engines."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
