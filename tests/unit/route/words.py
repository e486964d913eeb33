"""An embedder without a model: a sentence is the sum of its words, each a direction of its own."""

from __future__ import annotations

import math
import zlib

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health
from codriver.core.errors import CodriverError
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, TensorRequest, Tensors

DIMENSIONS = 4096


def vector_of(text: str) -> list[float]:
    vector = [0.0] * DIMENSIONS
    for word in text.lower().replace("?", "").replace(".", "").replace(",", "").split():
        vector[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    norm = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / norm for value in vector]


class WordEmbedder:
    """``takes_s`` on the deadline's clock for each call, then ``error`` if there is one. ``seen`` are all texts."""

    card = EngineCard("embedder", "vehicle", "words", capabilities=frozenset({"embeddings"}))

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.takes_s = 0.0
        self.error: CodriverError | None = None

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        self.seen += request.texts()
        if self.takes_s:
            await deadline.wait(deadline.clock.sleep(self.takes_s))
        if self.error is not None:
            raise self.error
        return Embeddings([vector_of(text) for text in request.texts()], 1, "words")

    async def generate(self, request: ChatRequest, deadline: Deadline) -> ChatChunk:  # type: ignore[override]
        raise NotImplementedError

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        raise NotImplementedError

    def health(self) -> Health:
        return Health("ready")

    async def aclose(self) -> None: ...
