"""Recorded outcomes of a weak and a strong model as sets that a router is trained and judged on.

Embeddings of their questions are kept in the user's cache, by the text embedded, so that a second run is quick. The
rule kept: folds follow the question's text without its options, so that no question is in training and test at once,
also where one set holds another's question.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codriver.catalogue import Catalogue, Store
from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.messages import EmbedRequest
from codriver.route.fit import Examples
from codriver.route.reading import Reading, read_text

from . import datasets
from .datasets import Outcome
from .folds import FOLDS, group_of

EMBEDDER = "all-minilm-l6-v2-int8"
TOKENIZER = "all-minilm-l6-v2-tokenizer"
_BATCH = 256
Floats = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats]


@dataclass(frozen=True)
class OutcomeSet:
    """One question set that a ``weak`` and a ``strong`` model answered."""

    name: str
    weak: str
    strong: str
    outcomes: tuple[Outcome, ...]

    def part(self, most: int | None, seed: int = 1) -> OutcomeSet:
        if most is None or most >= len(self.outcomes):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.outcomes)), most))
        return OutcomeSet(self.name, self.weak, self.strong, tuple(self.outcomes[i] for i in chosen))

    def weak_good(self) -> NDArray[np.float64]:
        return np.array([one.weak_ok for one in self.outcomes], float)

    def strong_good(self) -> NDArray[np.float64]:
        return np.array([one.strong_ok for one in self.outcomes], float)

    def gains(self) -> NDArray[np.float64]:
        return self.strong_good() - self.weak_good()

    def categories(self) -> list[str]:
        return [one.category for one in self.outcomes]

    def groups(self) -> NDArray[np.int64]:
        return np.array([group_of(one.prompt) for one in self.outcomes], np.int64)

    def folds(self) -> NDArray[np.int64]:
        return self.groups() % FOLDS


def outcome_sets(folder: Path, most: int | None = None) -> tuple[OutcomeSet, ...]:
    """The three sets in ``folder/routing``, at most ``most`` questions of each. Errors: :class:`MissingFile`."""
    routing = folder / "routing"
    mixtral, gpt = "mixtral-8x7b-instruct", "gpt-4-1106-preview"
    found = (
        OutcomeSet("mmlu", mixtral, gpt, datasets.routellm_mmlu(routing / "routellm_mmlu")),
        OutcomeSet("gsm8k", mixtral, gpt, datasets.routellm_gsm8k(routing)),
        OutcomeSet("mmlu-pro", "phi-3-mini-4k-instruct", "gemini-1.5-pro", datasets.mmlu_pro(routing)),
    )
    return tuple(one.part(most) for one in found)


def examples_of(sets: Sequence[OutcomeSet], embed: Embed) -> Examples:
    """Training examples of ``sets`` together, with a column of verdicts per model."""
    readings = [reading_of(one) for each in sets for one in each.outcomes]
    good: dict[str, list[NDArray[np.float64]]] = {name: [] for each in sets for name in (each.weak, each.strong)}
    for each in sets:
        told = {each.weak: each.weak_good(), each.strong: each.strong_good()}
        for name, columns in good.items():
            columns.append(told.get(name, np.full(len(each.outcomes), np.nan)))
    return Examples(
        readings,
        embed([reading.start for reading in readings]),
        [f"{each.name}/{category}" for each in sets for category in each.categories()],
        np.concatenate([each.groups() for each in sets]),
        {name: np.concatenate(columns) for name, columns in good.items()},
    )


def reading_of(outcome: Outcome) -> Reading:
    return read_text(outcome.prompt)


class EmbeddingCache:
    """Embeddings by text, as the engine makes them in integers, in ``folder``. ``engine`` is asked for what is not
    there yet, in batches that are kept as they come: a run that was cut goes on where it was.
    """

    def __init__(self, folder: Path, engine: Callable[[], Engine], told: Callable[[str], None] = print) -> None:
        self._file = folder / f"{EMBEDDER}-integers.npz"
        self._engine = engine
        self._told = told
        self._known: dict[str, Floats] = {}
        if self._file.is_file():
            with np.load(self._file, allow_pickle=False) as kept:
                self._known = dict(zip(kept["keys"].tolist(), kept["vectors"].astype(np.float32), strict=True))

    def __call__(self, texts: Sequence[str]) -> Floats:
        keys = [hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:24] for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if missing:
            asyncio.run(self._fill(missing))
        return np.stack([self._known[key] for key in keys])

    async def _fill(self, missing: dict[str, str]) -> None:
        engine = self._engine()
        waiting = sorted(missing, key=lambda key: len(missing[key]))
        try:
            for start in range(0, len(waiting), _BATCH):
                part = waiting[start : start + _BATCH]
                request = EmbedRequest(input=[missing[key] or " " for key in part])
                found = await engine.embed(request, Deadline.never())
                self._known.update(zip(part, np.array(found.vectors, np.float32), strict=True))
                if (start // _BATCH) % 20 == 19:
                    self._keep()
                    self._told(f"embedded {start + len(part)} of {len(waiting)} questions")
        finally:
            self._keep()
            await engine.aclose()

    def _keep(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".part")
        with temporary.open("wb") as out:
            np.savez(out, keys=np.array(list(self._known)), vectors=np.stack(list(self._known.values())).astype("f2"))
        temporary.replace(self._file)


def embedding_engine(store: Store | None = None, catalogue: Catalogue | None = None, threads: int = 0) -> Engine:
    """The catalogue's sentence embedder. Errors: :class:`MissingFile` with the command that mends it,
    :class:`MissingExtra`.
    """
    from codriver.catalogue import resolve
    from codriver.engines.registry import ENGINES

    kind = ENGINES.load("onnx_runtime")
    from codriver.engines.onnx_runtime import OnnxConfig

    store, catalogue = store or Store(), catalogue or Catalogue.load()
    model, tokenizer = (resolve(name, catalogue, store).path for name in (EMBEDDER, TOKENIZER))
    engine: Engine = kind(OnnxConfig(model=model, tokenizer=tokenizer, threads=threads, truncate=True))
    return engine


def cached_embeddings(told: Callable[[str], None] = print) -> EmbeddingCache:
    """The user's cache, filled by the catalogue's embedder."""
    return EmbeddingCache(Store().root / "embeddings", embedding_engine, told)
