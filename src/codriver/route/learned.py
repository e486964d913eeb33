"""Quality that reads the request: the trained model's probability per engine, shifted by what driving taught.

Needs NumPy and a sentence embedder; where either is missing, plain :class:`~codriver.route.quality.Quality` stands in
its place. The rule kept: reading never makes a request fail or wait longer than ``read_within_s``; what was not read in
time is decided as if there were no model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from codriver.core.deadline import Deadline
from codriver.core.errors import CodriverError
from codriver.core.messages import ChatRequest, Embeddings, EmbedRequest

from .online import CORRECTED, GATED, Shift
from .outcome_model import OutcomeModel
from .quality import Quality
from .reading import asked, read

_KEPT = 256


class Embedder(Protocol):
    """Whoever makes sentence embeddings: an Engine, as far as this needs it."""

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings: ...


class LearnedQuality(Quality):
    """``heads``: which head of the model speaks for an engine. One without a head is judged by its own calibration, or
    not at all.
    """

    def __init__(
        self,
        model: OutcomeModel,
        embedder: Embedder,
        heads: Mapping[str, str],
        read_within_s: float = 0.05,
    ) -> None:
        super().__init__()
        self._model = model
        self._embedder = embedder
        self._heads = {engine: head for engine, head in heads.items() if head in model.file.heads}
        self._read_within_s = read_within_s
        self._read: OrderedDict[int, dict[str, float]] = OrderedDict()
        self.shifts: dict[str, Shift] = {}

    @property
    def heads(self) -> Mapping[str, str]:
        return self._heads

    async def read(self, request: ChatRequest, deadline: Deadline) -> None:
        options = request.codriver
        if options is not None and (options.engine is not None or options.policy not in (None, "auto")):
            return
        key = _key(request)
        if key in self._read:
            self._read.move_to_end(key)
            return
        reading = read(request)
        if not reading.start.strip():
            return
        wanted = EmbedRequest(input=reading.start)
        try:
            found = await self._embedder.embed(wanted, deadline.within(self._read_within_s))
        except CodriverError:
            return
        vector = np.asarray(found.vectors[0], np.float32)
        if vector.shape != (self._model.file.dimensions,):
            return
        self._read[key] = self._model.good(reading, vector, set(self._heads.values()))
        if len(self._read) > _KEPT:
            self._read.popitem(last=False)

    def expected(self, engine: str, request: ChatRequest) -> float | None:
        trained = self._trained(engine, request)
        shift = self.shifts.get(engine)
        return trained if trained is None or shift is None else shift.applied(trained)

    def judged(self, engine: str, request: ChatRequest, confidence: float) -> None:
        # Without a calibration a gate's figure is no probability, and teaches nothing.
        if self.calibrated(engine):
            self._learn(engine, request, confidence, GATED)

    def corrected(self, engine: str, request: ChatRequest, good: bool) -> None:
        self._learn(engine, request, float(good), CORRECTED)

    def _learn(self, engine: str, request: ChatRequest, good: float, weight: float) -> None:
        trained = self._trained(engine, request)
        if trained is not None:
            self.shifts.setdefault(engine, Shift()).learn(trained, good, weight)

    def _trained(self, engine: str, request: ChatRequest) -> float | None:
        """An engine's head; without one its own calibration's prior; nothing for a request that was not read."""
        known = self._read.get(_key(request)) if self._read else None
        if known is None:
            return None
        head = self._heads.get(engine)
        if head is not None:
            return known[head]
        return self.prior(engine, self.features(request)) if self.calibrated(engine) else None


def _key(request: ChatRequest) -> int:
    return hash((asked(request), request.response_format is not None, bool(request.tools)))
