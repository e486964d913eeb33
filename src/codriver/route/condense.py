"""A request's documents (``codriver.context``) become one message before the question: whole, or condensed.

Condensing is extractive and done on the vehicle: the passages nearest to the question, by their words (BM25) and, where
the sentence embedder is on board, by their meaning too, fill ``route.condense_tokens``. Every engine gets the same
message, and a cloud never what was left out. Reading by meaning takes ``route.condense_within_s`` at most: when that is
over, words alone choose. Limits: only declared documents are condensed, never the messages; the last user message is
the question; cutting a long document, which happens once for each, takes about 0.2 s per MB in a thread.
Rule: after :meth:`Condenser.apply` the request holds no document any more, neither in the struct nor in its bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError, UnsupportedParameter
from codriver.core.messages import ChatRequest, Message
from codriver.core.wire import changed

from .config import RouteConfig
from .passages import Passage, by_words, choose, cut, digest, tokens_of, written
from .reading import asked

if TYPE_CHECKING:
    from .meanings import Meanings

T = TypeVar("T")
_WHOLE = "The vehicle's documents:"
_PART = 'Passages from the vehicle\'s documents ("[...]" marks what was left out):'
# Share of the meaning in a passage's score; its words have the rest.
MEANING = 0.3
# Shorter documents, in budgets, go whole: condensing saves them two kilobytes at most, which is 50 ms on the slowest
# recorded uplink, and could lose the answer.
_WORTH = 2.0
# Longer texts are worked on in a thread.
_INLINE_CHARS = 16_000
_KEPT_CHARS = 2_000_000
# What a passage's neighbours may tell of it, where it is to be redacted.
_MARGIN_CHARS = 160
# Of the vehicle's context, estimates of tokens may be that far off; an answer needs some, and a condensate that is
# smaller than this is made for the cloud alone.
_SURE, _ANSWER_TOKENS, _LEAST_TOKENS = 0.8, 256, 128


@dataclass(frozen=True, slots=True)
class Edged:
    """A run of chosen passages, ``text[start:end]``, with what stands around it in its document."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Condensed:
    """The request with its documents as a message; ``told`` for the answer's extension; ``edges`` for redaction."""

    request: ChatRequest
    told: dict[str, object] = field(default_factory=dict)
    edges: tuple[Edged, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of ``passages`` were chosen and what they read like; ``by``: ``words`` or ``meaning`` too."""

    passages: Sequence[Passage]
    numbers: Sequence[int]
    chosen: Sequence[int]
    by: str

    @property
    def text(self) -> str:
        return f"{_PART}\n{written(self.passages, self.numbers, self.chosen)}"


class Condenser:
    """``meanings`` is ``None`` where there is no embedder; ``room_tokens`` the context of the vehicle's own engine, 0
    where there is none.
    """

    def __init__(self, config: RouteConfig, meanings: Meanings | None = None, room_tokens: int = 0) -> None:
        self._config = config
        self._meanings = meanings
        self._room_tokens = room_tokens
        self._cut: OrderedDict[bytes, tuple[list[Passage], int]] = OrderedDict()
        self._cut_chars = 0

    async def apply(self, request: ChatRequest, deadline: Deadline) -> Condensed:
        """Errors: :class:`UnsupportedParameter` for a plain completion, which has no messages."""
        options = request.codriver
        if options is None or options.context is None:
            return Condensed(request)
        bare = msgspec.structs.replace(options, context=None)
        documents = options.context
        if request.prompt is not None:
            raise UnsupportedParameter(
                "'codriver.context' goes with messages; a plain completion takes none: put the text into the prompt.",
                param="codriver.context",
            )
        if not any(map(str.strip, documents)):
            return Condensed(changed(request, codriver=bare))
        budget, whole_tokens = self._limits(request)
        size = sum(len(document.encode("utf-8", "surrogatepass")) for document in documents)
        told: dict[str, object] = {"documents": len(documents)}
        edges: tuple[Edged, ...] = ()
        if self._config.condense == "never" or sum(map(tokens_of, documents)) <= whole_tokens:
            text = whole_text(documents)
            told["by"] = "whole"
        else:
            choice = await self.choose(documents, asked(request), budget, deadline)
            text = choice.text
            edges = _edges(documents, choice)
            told |= {"passages": len(choice.chosen), "of": len(choice.passages), "by": choice.by}
        told |= {"tokens": tokens_of(text), "saved_bytes": max(0, size - len(text.encode("utf-8", "surrogatepass")))}
        at = _before_question(request.messages)
        messages = [*request.messages[:at], Message(role="user", content=text), *request.messages[at:]]
        return Condensed(changed(request, messages=messages, codriver=bare), {"condensed": told}, edges)

    def _limits(self, request: ChatRequest) -> tuple[int, int]:
        """The budget, and the most tokens of documents that go whole: no more than the vehicle's own engine can read
        beside the messages, where that is anything to speak of.
        """
        most = self._config.condense_tokens
        whole = int(_WORTH * most) if self._config.condense == "auto" else most
        if self._room_tokens:
            answer = request.limit_tokens or _ANSWER_TOKENS
            room = int(_SURE * self._room_tokens) - tokens_of(request.text()) - answer
            if room >= _LEAST_TOKENS:
                return min(most, room), min(whole, room)
        return most, whole

    async def choose(self, documents: Sequence[str], question: str, budget: int, deadline: Deadline) -> Choice:
        """The passages of ``documents`` that go into ``budget`` tokens."""
        passages: list[Passage] = []
        numbers: list[int] = []
        for number, document in enumerate(documents):
            found = await self._passages(document)
            passages += found
            numbers += [number] * len(found)
        size = sum(map(len, documents))
        scores, by = await _aside(size, lambda: by_words(passages, question)), "words"
        if self._meanings is not None and question.strip() and self._config.condense_within_s:
            within = deadline.within(self._config.condense_within_s)
            try:
                cosines = await self._meanings.cosines(passages, question, scores, within)
            except CodriverError:
                pass  # out of time, or the embedder failed: the words are enough
            else:
                scores = [(1 - MEANING) * a + MEANING * b for a, b in zip(scores, cosines, strict=True)]
                by = "meaning"
        chosen = await _aside(size, lambda: choose(passages, scores, budget))
        return Choice(passages, numbers, chosen, by)

    async def _passages(self, document: str) -> list[Passage]:
        """Each document is cut once, as long as it is remembered."""
        key, size = digest(document), len(document)
        if key in self._cut:
            self._cut.move_to_end(key)
            return self._cut[key][0]
        found = await _aside(size, lambda: cut(document))
        if size <= _KEPT_CHARS and key not in self._cut:
            self._cut[key] = found, size
            self._cut_chars += size
            while self._cut_chars > _KEPT_CHARS:
                self._cut_chars -= self._cut.popitem(last=False)[1][1]
        return found


def whole_text(documents: Sequence[str]) -> str:
    """All of the documents as one message."""
    told = (f"Document {number}:\n{document.strip()}" for number, document in enumerate(documents, start=1))
    return "\n".join([_WHOLE, *told])


def condenser(config: RouteConfig, engines: Sequence[Engine], room_tokens: int) -> Condenser:
    """With the meanings of the vehicle's embedder, where ``engines`` hold one."""
    for engine in engines:
        if engine.card.locality == "vehicle" and engine.card.can("embeddings") and not engine.card.can("chat"):
            try:
                from .meanings import Meanings
            except ImportError:
                break
            return Condenser(config, Meanings(engine), room_tokens)
    return Condenser(config, None, room_tokens)


async def _aside(size: int, work: Callable[[], T]) -> T:
    return work() if size <= _INLINE_CHARS else await asyncio.to_thread(work)


def _before_question(messages: Sequence[Message]) -> int:
    """Where the last user message stands; the end where there is none."""
    return next((at for at in reversed(range(len(messages))) if messages[at].role == "user"), len(messages))


def _edges(documents: Sequence[str], choice: Choice) -> tuple[Edged, ...]:
    """The chosen passages, those that follow each other as one, with what stands around them."""
    runs: list[tuple[int, int, int]] = []
    for place, at in enumerate(choice.chosen):
        number, passage = choice.numbers[at], choice.passages[at]
        if place and choice.chosen[place - 1] == at - 1 and runs[-1][0] == number:
            runs[-1] = (number, runs[-1][1], passage.end)
        else:
            runs.append((number, passage.start, passage.end))
    edged = []
    for number, start, end in runs:
        first = max(0, start - _MARGIN_CHARS)
        edged.append(Edged(documents[number][first : end + _MARGIN_CHARS], start - first, end - first))
    return tuple(edged)
