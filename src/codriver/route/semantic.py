"""Semantic routes: what a request is about fills in what it does not say about itself.

The last user message is embedded on the vehicle and matched with the routes of a file (``semantic_match.py``). A route
sets only what the client left open. Privacy only ever gets stricter: while the file names a class stricter than
``any``, earlier user messages in the request and routes that come close to winning count for it as well. Embedding may
take 50 ms: when that is over, or the embedder fails, no route is taken and the request gets the strictest class that
the file names. The file is looked at once a second at most and read anew in the background; a broken one leaves the
old rules as they are, and the reason is logged once. Rule: text is compared and never logged, counted or told.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError
from codriver.core.messages import ChatChunk, ChatRequest, EmbedRequest
from codriver.core.privacy import strictest
from codriver.observe.metrics import Metrics, NoMetrics

from .execute import Run
from .semantic_apply import filled_in, sentences, stricter
from .semantic_cache import SemanticCache, Slot
from .semantic_file import RoutesFile, read_routes
from .semantic_match import Match, Matcher

_log = logging.getLogger("codriver.route")
EMBED_S = 0.05
LOOK_S = 1.0
_KEPT_READINGS = 1024


class Ruling:
    """What semantic routing says of one request. ``told`` goes into the answer's extension."""

    __slots__ = ("_cache", "_slot", "answer", "told")

    def __init__(
        self, told: dict[str, object] | None = None, cache: SemanticCache | None = None, slot: Slot | None = None
    ) -> None:
        self.told: dict[str, object] = told or {}
        self._cache, self._slot = cache, slot
        self.answer: list[ChatChunk] | None = None
        if cache is not None and slot is not None:
            self.answer = cache.find(slot, self.told)

    def keep(self, run: Run) -> None:
        """Remember the answer that ``run`` gave, where the route and the answer allow it."""
        if self._cache is not None and self._slot is not None:
            self._cache.keep(self._slot, run)


NO_RULING = Ruling()


class NoRoutes:
    """A vehicle without a routes file: every request stays as it is."""

    async def rule(self, request: ChatRequest, deadline: Deadline) -> tuple[ChatRequest, Ruling]:
        return request, NO_RULING

    def shown(self) -> list[dict[str, object]]:
        """The routes for those who watch, without their examples."""
        return []

    async def aclose(self) -> None: ...


NO_ROUTES = NoRoutes()


class Reading(msgspec.Struct, frozen=True):
    """A sentence's verdict and its vector."""

    match: Match
    vector: Sequence[float]


class SemanticRoutes(NoRoutes):
    """Made by :meth:`start`. ``embedder`` stays the caller's."""

    def __init__(
        self, file: Path, embedder: Engine, engines: Collection[str], metrics: Metrics | NoMetrics, clock: Clock
    ) -> None:
        self._file, self._embedder, self._engines = file, embedder, engines
        self._metrics, self._clock = metrics, clock
        self._vectors: dict[str, Sequence[float]] = {}
        self._readings: OrderedDict[bytes, Reading] = OrderedDict()
        self._looked_s = clock.monotonic_s()
        self._stamp = _stamp(file)
        self._loading: asyncio.Task[None] | None = None
        self._rules: RoutesFile
        self._matcher: Matcher
        self._cache: SemanticCache

    @classmethod
    async def start(
        cls,
        file: Path,
        embedder: Engine,
        engines: Collection[str],
        metrics: Metrics | NoMetrics | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> SemanticRoutes:
        """Read the file and embed its examples; ``engines`` are those a route may name.

        Errors: those of ``read_routes``, and the embedder's.
        """
        made = cls(file, embedder, engines, metrics or NoMetrics(), clock)
        await made._load()
        return made

    async def rule(self, request: ChatRequest, deadline: Deadline) -> tuple[ChatRequest, Ruling]:
        """The request with what its route fills in, and what to tell and to remember."""
        self._look()
        rules = self._rules
        *earlier, text = sentences(request)
        # Where no route is private, only the last message matters.
        texts = [*(one for one in earlier if one and rules.strictest != "any"), *([text] if text else [])]
        try:
            readings = await self._read(texts, deadline.within(EMBED_S))
        except CodriverError as error:
            self._metrics.semantic_route("failed")
            return stricter(request, rules.strictest), Ruling(_told(None, failed=error.code))
        # What was said earlier is still in the request: its privacy class holds, whatever the last message is about.
        # In doubt between two routes the stricter class holds, too.
        taken = [rules.route[name] for one in readings for name in one.match.contenders]
        asked = request.codriver
        request = stricter(request, strictest("any", *(rule.privacy for rule in taken)))
        if not text:
            return request, self._abstained(None)
        last = readings[-1]
        if last.match.route is None:
            return request, self._abstained(last.match.score)
        self._metrics.semantic_route(last.match.route)
        rule = rules.route[last.match.route]
        request = filled_in(request, rule)
        told = _told(last.match.route, score=round(last.match.score, 4))
        # Who names an engine wants its answer; a question that follows on something personal may have such an answer.
        pinned = asked is not None and asked.engine is not None
        if not rule.cache or pinned or any(one.personal for one in taken):
            return request, Ruling(told)
        return request, Ruling(told, self._cache, self._cache.slot(request, text, last.vector))

    def _abstained(self, score: float | None) -> Ruling:
        self._metrics.semantic_route("none")
        return Ruling(_told(None, score=None if score is None else round(score, 4)))

    def shown(self) -> list[dict[str, object]]:
        shown = []
        for name, rule in self._rules.route.items():
            members: dict[str, object] = msgspec.to_builtins(rule)
            members["examples"] = len(rule.examples)
            shown.append({"name": name, **{key: value for key, value in members.items() if value not in (None, False)}})
        return shown

    # ------------------------------------------------------------ reading

    async def _read(self, texts: list[str], deadline: Deadline) -> list[Reading]:
        """A reading of each text. Those made before time ran out are kept for the next request."""
        found: list[Reading] = []
        matcher = self._matcher
        for text in texts:
            key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            reading = self._readings.get(key)
            if reading is None:
                (vector,) = (await self._embedder.embed(EmbedRequest(input=text), deadline)).vectors
                reading = Reading(matcher.match(vector), vector)
                if matcher is self._matcher:
                    self._readings[key] = reading
                    if len(self._readings) > _KEPT_READINGS:
                        self._readings.popitem(last=False)
            else:
                self._readings.move_to_end(key)
            found.append(reading)
        return found

    # ------------------------------------------------------------ the file

    def _look(self) -> None:
        """Read the file anew, in the background, when it has changed."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < LOOK_S or (self._loading is not None and not self._loading.done()):
            return
        self._looked_s = now_s
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._loading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        try:
            await self._load()
        except CodriverError as error:
            _log.error("the routes file was not taken; the old rules stay", extra={"reason": error.message})
        else:
            _log.info("the routes file was read anew", extra={"routes": len(self._rules.route)})

    async def _load(self) -> None:
        rules = read_routes(self._file, self._engines)
        # One by one: a live request need wait for one sentence at most, and a vector does not depend on its batch.
        vectors = {
            text: self._vectors.get(text)
            or (await self._embedder.embed(EmbedRequest(input=text), Deadline.never(self._clock))).vectors[0]
            for text in rules.texts()
        }
        matcher = Matcher(rules, vectors)
        self._rules, self._matcher, self._vectors = rules, matcher, vectors
        self._cache = SemanticCache(rules.cache, self._clock, self._metrics)
        self._readings.clear()

    async def aclose(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading


def _told(route: str | None, **more: object) -> dict[str, object]:
    return {"semantic": {"route": route, **more}}


def _stamp(file: Path) -> tuple[int, int] | None:
    """What changes when the file does; ``None`` while there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
