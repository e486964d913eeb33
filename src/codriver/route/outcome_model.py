"""P(this engine's answer is good | request), per engine, from a sentence embedding and what is cheap to read.

A request is its forms, its hashed words and the embedding of its start. A linear discriminant turns these into
probabilities of topics (subjects, seen only in training); one ridge regression per engine turns all of it into a score,
and a logistic curve (Platt 1999) into a probability. Inference is NumPy alone: a fifth of a millisecond. The file is
JSON with arrays of int8 in base64, some hundred kilobytes; nothing in it is executed.

Limits: an engine without a head is not judged. The rule kept: a file of another reading of requests is refused, because
weights on other features are worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from codriver.core.errors import BadConfigValue, MissingFile

from .reading import BUCKETS, FORMS, READING, Reading

Floats = NDArray[np.float32]


class Packed(msgspec.Struct, frozen=True):
    """A matrix in int8: ``data`` row by row, each column times its ``scales``."""

    rows: int
    columns: int
    scales: list[float]
    data: bytes

    @classmethod
    def of(cls, matrix: Floats) -> Packed:
        rows, columns = matrix.shape
        scales = np.maximum(np.abs(matrix).max(axis=0), 1e-12) / 127
        whole = np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8)
        return cls(rows, columns, [float(f"{scale:.6g}") for scale in scales], whole.tobytes())

    def matrix(self) -> Floats:
        """Raises :class:`ValueError` where sizes do not fit."""
        whole = np.frombuffer(self.data, np.int8).reshape(self.rows, self.columns)
        scales = np.array(self.scales, np.float32)
        if scales.shape != (self.columns,) or not np.isfinite(scales).all():
            raise ValueError("the scales do not fit the matrix")
        return whole.astype(np.float32) * scales


class Head(msgspec.Struct, frozen=True):
    """One engine. ``slope`` and ``offset`` make a probability of the score; ``n``, ``rate``, ``brier`` and ``ece`` tell
    how many outcomes it learned from, how many were good, and how well it did on those it had not seen.
    """

    slope: float
    offset: float
    n: int
    rate: float
    brier: float
    ece: float


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``form_means`` and ``form_scales`` standardise the forms; ``topic_weights`` has a row per feature and a column
    per topic; ``head_weights`` a row per feature and topic, and a column per head.
    """

    reading: int
    embedder: str
    dimensions: int
    form_means: list[float]
    form_scales: list[float]
    topics: list[str]
    topic_weights: Packed
    topic_offsets: list[float]
    heads: dict[str, Head]
    head_weights: Packed


class OutcomeModel:
    """A :class:`ModelFile` ready to judge. Raises :class:`ValueError` where its parts do not fit together."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self._means = np.array(file.form_means, np.float32)
        self._scales = np.array(file.form_scales, np.float32)
        self._topic_weights = file.topic_weights.matrix()
        self._topic_offsets = np.array(file.topic_offsets, np.float32)
        self._head_weights = file.head_weights.matrix()
        self._slopes = np.array([head.slope for head in file.heads.values()], np.float32)
        self._offsets = np.array([head.offset for head in file.heads.values()], np.float32)
        width = len(FORMS) + BUCKETS + file.dimensions
        fits = (
            len(self._means) == len(self._scales) == len(FORMS)
            and self._topic_weights.shape == (width, len(file.topics))
            and len(self._topic_offsets) == len(file.topics)
            and self._head_weights.shape == (width + len(file.topics), len(file.heads))
        )
        if not fits:
            raise ValueError("the parts of the model do not fit together")

    def good(self, reading: Reading, embedding: Floats) -> dict[str, float]:
        """Probability per head. ``embedding``: unit length, ``dimensions`` long."""
        forms = (np.array(reading.forms, np.float32) - self._means) / self._scales
        row = features(forms[None], [reading], embedding[None])
        probabilities = self.judge(row)[0]
        return dict(zip(self.file.heads, probabilities.tolist(), strict=True))

    def judge(self, rows: Floats) -> Floats:
        """Probabilities, a row per row of features and a column per head."""
        whole = np.hstack([rows, softmax(rows @ self._topic_weights + self._topic_offsets)])
        scores = whole @ self._head_weights * self._slopes + self._offsets
        found: Floats = 1 / (1 + np.exp(-np.clip(scores, -30, 30)))
        return found

    def standardised(self, forms: Floats) -> Floats:
        found: Floats = (forms - self._means) / self._scales
        return found


def features(forms: Floats, readings: list[Reading], embeddings: Floats) -> Floats:
    """Standardised forms, hashed words, embedding: a row per request."""
    words = np.zeros((len(readings), BUCKETS), np.float32)
    for row, reading in zip(words, readings, strict=True):
        row[list(reading.words)] = list(reading.words.values())
    return np.hstack([np.clip(forms, -4, 4) * FORM_SCALE, words * WORD_SCALE, embeddings])


# How strongly a block speaks under one ridge penalty: the square root of its inverse penalty.
FORM_SCALE = np.float32(0.1)
WORD_SCALE = np.float32(0.5)


def softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Floats = raised / raised.sum(axis=1, keepdims=True)
    return found


def load_model(file: Path) -> OutcomeModel:
    """Errors: :class:`MissingFile`, :class:`BadConfigValue` naming the file."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=ModelFile)
        if found.reading != READING:
            raise BadConfigValue(
                f"The quality model {file} is of another version of Codriver: make it anew with `codriver route train`."
            )
        return OutcomeModel(found)
    except FileNotFoundError:
        raise MissingFile(f"The quality model {file} does not exist: `codriver route train` makes one.") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise BadConfigValue(f"The quality model {file} is not valid: {error}.") from error


def save_model(model: OutcomeModel, file: Path) -> None:
    """Written whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".part")
    temporary.write_bytes(msgspec.json.encode(model.file) + b"\n")
    temporary.replace(file)


def described(heads: Mapping[str, Head]) -> str:
    """The heads in a line each."""
    return "\n".join(
        f"{name}: {head.n} outcomes, {head.rate:.3f} good, Brier {head.brier:.4f}, ECE {head.ece:.4f}"
        for name, head in heads.items()
    )
