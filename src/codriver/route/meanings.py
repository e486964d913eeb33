"""How near passages are to a question in meaning: cosines of sentence embeddings, kept across requests by content.

Needs NumPy, which comes with the embedder. A manual comes with every question, so vectors are kept, the least recently
used go first. A text is embedded by itself: other requests wait for one passage at most, and its vector does not depend
on its company. Rule: of a long context only the passages that have most of the question's words are embedded, and those
whose vectors are there already; the others count as the farthest of these.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codriver.core.deadline import Deadline
from codriver.core.errors import PromptTooLong
from codriver.core.messages import Embeddings, EmbedRequest

from .passages import Passage, digest

Floats = NDArray[np.float32]
MOST_EMBEDDED = 32
# About 1.5 kB each.
_KEPT = 8192
_LEAST_CHARS = 16


class Embedder(Protocol):
    """Whoever makes sentence embeddings: an Engine, as far as this needs it."""

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings: ...


class Meanings:
    """``embedder`` stays the caller's."""

    def __init__(self, embedder: Embedder, most: int = MOST_EMBEDDED) -> None:
        self._embedder = embedder
        self._most = most
        self._kept: OrderedDict[bytes, Floats] = OrderedDict()

    async def cosines(
        self, passages: Sequence[Passage], question: str, scores: Sequence[float], deadline: Deadline
    ) -> list[float]:
        """One cosine per passage; ``scores`` are those by words. Errors: those of the embedder,
        :class:`DeadlineExceeded` among them; what was embedded by then is kept for the next request.
        """
        asked = await self._vector(digest(question), question, deadline)
        likely = heapq.nlargest(self._most, range(len(passages)), key=lambda at: scores[at])
        for at in [at for at in likely if passages[at].key not in self._kept]:
            await self._vector(passages[at].key, passages[at].said, deadline)
        known = [at for at, passage in enumerate(passages) if passage.key in self._kept]
        for at in known:
            self._kept.move_to_end(passages[at].key)
        if not known:
            return [0.0] * len(passages)
        near = np.stack([self._kept[passages[at].key] for at in known]) @ asked
        found = np.full(len(passages), near.min(), np.float32)
        found[known] = near
        cosines: list[float] = found.tolist()
        return cosines

    async def _vector(self, key: bytes, text: str, deadline: Deadline) -> Floats:
        vector = self._kept.get(key)
        if vector is None:
            vector = np.asarray(await self._embedded(text.strip() or " ", deadline), np.float32)
            self._kept[key] = vector
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return vector

    async def _embedded(self, text: str, deadline: Deadline) -> list[float]:
        """Of a text that has too many tokens its beginning."""
        while True:
            try:
                return (await self._embedder.embed(EmbedRequest(input=text), deadline)).vectors[0]
            except PromptTooLong:
                if len(text) <= _LEAST_CHARS:
                    raise
                text = text[: len(text) * 2 // 3]
