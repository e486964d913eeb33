"""A small world with something to learn: engines that are good at different things, and embeddings that tell which."""

from __future__ import annotations

import random

import numpy as np

from codriver.core.deadline import Deadline
from codriver.core.messages import Embeddings, EmbedRequest
from codriver.route.fit import Examples
from codriver.route.reading import read_text

DIMENSIONS = 8
WORDS = {
    "climate": "warm heat cool window seat fan degrees",
    "trivia": "king treaty river century element planet opera",
}


def prompt_of(topic: str, number: int) -> str:
    chance = random.Random(f"{topic}{number}")
    return f"Question {number}: " + " ".join(chance.choices(WORDS[topic].split(), k=6)) + "?"


def vector_of(text: str) -> np.ndarray:
    """Points one way for climate, another for trivia, with noise that depends on the text alone."""
    noise = np.random.default_rng(len(text) * 7919 + sum(map(ord, text))).normal(0, 0.3, DIMENSIONS)
    noise[0 if any(word in text for word in WORDS["climate"].split()) else 1] += 1.0
    return (noise / np.linalg.norm(noise)).astype(np.float32)


def embed(texts: object) -> np.ndarray:
    return np.stack([vector_of(text) for text in texts])  # type: ignore[attr-defined]


def world(count: int = 400, seed: int = 1) -> Examples:
    """A small specialist that knows climate (9 in 10) and little else (1 in 10); a generalist at 7 in 10 of both."""
    chance = random.Random(seed)
    topics = [chance.choice(list(WORDS)) for _ in range(count)]
    prompts = [prompt_of(topic, number) for number, topic in enumerate(topics)]
    small = [float(chance.random() < (0.9 if topic == "climate" else 0.1)) for topic in topics]
    large = [float(chance.random() < 0.7) for _ in topics]
    readings = [read_text(prompt) for prompt in prompts]
    return Examples(
        readings,
        embed([reading.start for reading in readings]),
        topics,
        np.arange(count, dtype=np.int64),
        {"small": np.array(small), "large": np.array(large)},
    )


class FakeEmbedder:
    """Embeds as the world does; ``error`` is raised instead, when set. ``calls`` counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = 0

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        self.calls += 1
        if self.error is not None:
            raise self.error
        texts = request.texts()
        return Embeddings([vector_of(text).tolist() for text in texts], 1, "fake")
