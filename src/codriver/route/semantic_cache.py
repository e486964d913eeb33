"""Answers kept for questions that come again, in the same words or in ones that mean the same.

An answer is given again only to the same caller, in the same privacy class, after the same system prompt and history,
with the same tools, format, model and sampling; within ``ttl_s``; and only for a question whose cosine is at least
``threshold``, whose numbers, negations, opposites and names are the same in the same order, and which has the words
that both share in the same order. Kept are whole answers of text that ended by themselves (``stop``), from a plan none
of whose attempts failed, for requests of one choice that leave ``temperature`` out or at 0. Nothing that is
``local_only`` is kept, and nothing is written to disk. Without API keys all clients that name no ``user`` are one
caller. Limits: ``entries`` answers, the least recently used goes first; all go when the routes file changes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec

from codriver.core.clock import Clock
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, RequestOptions, Usage
from codriver.core.wire import request_members
from codriver.observe.metrics import Metrics, NoMetrics

from .execute import Run
from .semantic_apply import last_user_text
from .semantic_file import CacheRule
from .semantic_words import same_order, telling_words, words

# Members of a body that change how an answer is sent, not what it is.
_ASIDE = ("stream", "stream_options", "codriver", "user", "messages", "temperature")


class Slot(msgspec.Struct, frozen=True):
    """Where an answer to a question belongs: ``context`` is everything but the question itself."""

    context: bytes
    telling: tuple[str, ...]
    words: tuple[str, ...]
    vector: Sequence[float]


class _Kept(msgspec.Struct, frozen=True):
    slot: Slot
    at_s: float
    id: str
    model: str
    text: str
    usage: Usage | None
    engine: str


class SemanticCache:
    """The answers of one vehicle, in memory."""

    def __init__(self, rule: CacheRule, clock: Clock, metrics: Metrics | NoMetrics | None = None) -> None:
        self._rule, self._clock, self._metrics = rule, clock, metrics or NoMetrics()
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._made = 0

    def __len__(self) -> int:
        return len(self._kept)

    def slot(self, request: ChatRequest, question: str, vector: Sequence[float]) -> Slot | None:
        """``None`` for a request whose answer must not be kept or given again."""
        options = request.codriver or RequestOptions()
        said = last_user_text(request.messages)
        unfit = (
            said is None
            or said.strip() != question
            or request.prompt is not None
            or request.continue_from is not None
            or options.privacy == "local_only"
            or (request.n or 1) != 1
            or bool(request.logprobs)
            or bool(request.temperature)
        )
        return None if unfit else Slot(_context(request, options), telling_words(question), words(question), vector)

    def find(self, slot: Slot, told: dict[str, object]) -> list[ChatChunk] | None:
        """The chunks of a kept answer, as one stream that says where it comes from; ``told`` goes with it."""
        now_s, best, found = self._clock.monotonic_s(), self._rule.threshold, None
        for key, kept in list(self._kept.items()):
            if now_s - kept.at_s >= self._rule.ttl_s:
                del self._kept[key]
            elif kept.slot.context == slot.context and kept.slot.telling == slot.telling:
                near = _cosine(kept.slot.vector, slot.vector)
                if near >= best and same_order(kept.slot.words, slot.words):
                    best, found = near, key
        self._metrics.semantic_cache("hit" if found is not None else "miss")
        if found is None:
            return None
        self._kept.move_to_end(found)
        kept = self._kept[found]
        extension = {
            "engine": "cache",
            "locality": "vehicle",
            "attempts": [],
            **told,
            "cache": {"engine": kept.engine, "age_s": round(now_s - kept.at_s, 3), "cosine": round(min(best, 1.0), 4)},
        }
        return _replayed(kept, extension, int(self._clock.wall_s()))

    def keep(self, slot: Slot, run: Run) -> None:
        """Keep what ``run`` delivered, if it is fit to be given again."""
        answer = run.answer
        outcomes = [record.outcome for record in run.records]
        plain = answer.complete and answer.finish_reason == "stop" and bool(answer.text)
        if not plain or answer.tool_calls_begun or run.privacy == "local_only":
            return
        # The answer of an emergency, when a better engine could not be had, must not outlive it.
        if outcomes[-1:] != ["answered"] or any(one not in ("answered", "rejected") for one in outcomes):
            return
        done = answer.completion()
        if done.choices[0].message.refusal or done.choices[0].message.reasoning_content:
            return
        self._made += 1
        usage = done.usage or None
        engine = run.records[-1].engine
        self._kept[self._made] = _Kept(slot, self._clock.monotonic_s(), done.id, done.model, answer.text, usage, engine)
        self._metrics.semantic_cache("kept")
        while len(self._kept) > self._rule.entries:
            self._kept.popitem(last=False)


def _context(request: ChatRequest, options: RequestOptions) -> bytes:
    """A digest of the caller, the privacy class and all of the request but its last message."""
    body: dict[str, Any] = request_members(request.raw) if request.raw else msgspec.to_builtins(request)
    rest = {key: value for key, value in body.items() if key not in _ASIDE and not key.startswith("__")}
    who = [request.caller, request.user or "", options.privacy or "any"]
    how = [options.policy, options.engine, options.lora, options.context]
    before = [msgspec.to_builtins(message) for message in request.messages[:-1]]
    return hashlib.blake2b(msgspec.json.encode([who, how, before, rest], order="sorted"), digest_size=32).digest()


def _replayed(kept: _Kept, extension: dict[str, object], created: int) -> list[ChatChunk]:
    head = ChatChunk(
        id=kept.id,
        created=created,
        model=kept.model,
        choices=[ChunkChoice(delta=Delta(role="assistant", content=kept.text))],
    )
    last = ChatChunk(
        id=kept.id,
        created=created,
        model=kept.model,
        choices=[ChunkChoice(finish_reason="stop")],
        usage=kept.usage or msgspec.UNSET,
        codriver=extension,
    )
    return [head, last]


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(map(float.__mul__, left, right))
