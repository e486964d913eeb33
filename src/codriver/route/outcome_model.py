"""P(this engine's answer is good | request), per engine, from a sentence embedding and what is cheap to read.

A request is its forms, its hashed words and the embedding of its start. A linear discriminant turns these into
probabilities of topics (subjects, known only in training). Ridge regressions give a first opinion: how hard the request
is for everybody, and how much better or worse it suits each engine. Boosted trees of each engine turn opinions, forms
and the embedding's main directions into log-odds, and a logistic curve (Platt 1999) makes a calibrated probability of
them. Inference is NumPy alone and takes a millisecond. The file is JSON with arrays in base64, some hundred kilobytes;
nothing in it is executed.

Limits: an engine without a head is not judged. The rule kept: a file of another reading of requests is refused, because
weights on other features are worse than none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from codriver.core.errors import BadConfigValue, MissingFile

from .reading import BUCKETS, FORMS, READING, Reading

Floats = NDArray[np.float32]
Numbers = NDArray[Any]


class Packed(msgspec.Struct, frozen=True):
    """A matrix, row by row. ``kind``: NumPy's name of its little-endian numbers."""

    rows: int
    columns: int
    data: bytes
    kind: Literal["<f2", "<f4", "<u1", "<u2"] = "<f2"

    @classmethod
    def of(cls, matrix: Numbers, kind: Literal["<f2", "<f4", "<u1", "<u2"] = "<f2") -> Packed:
        whole = np.atleast_2d(matrix)
        return cls(whole.shape[0], whole.shape[1], whole.astype(kind).tobytes(), kind)

    def matrix(self) -> Floats:
        """Raises :class:`ValueError` where sizes do not fit or a number is none."""
        found = np.frombuffer(self.data, self.kind).reshape(self.rows, self.columns).astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError("a matrix holds what is no number")
        return found

    def indices(self) -> NDArray[np.int64]:
        return np.frombuffer(self.data, self.kind).reshape(self.rows * self.columns).astype(np.int64)


class Trees(msgspec.Struct, frozen=True):
    """Boosted trees, all nodes in a row. A leaf's children are itself; ``roots``: a node per tree."""

    baseline: float
    depth: int
    roots: Packed
    left: Packed
    right: Packed
    feature: Packed
    threshold: Packed
    value: Packed


class Head(msgspec.Struct, frozen=True):
    """One engine. ``slope`` and ``offset`` make a probability of its trees' log-odds; ``n``, ``rate``, ``brier`` and
    ``ece`` tell how many outcomes it learned from, how many were good, and how well it did on those it had not seen.
    """

    slope: float
    offset: float
    n: int
    rate: float
    brier: float
    ece: float
    trees: Trees


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``form_means`` and ``form_scales`` standardise the forms; ``topic_weights`` has a row per feature and a column
    per topic; ``opinion_weights`` a row per feature and topic, and ``SHARED`` columns for all and for each head;
    ``directions`` a row per dimension of the embedding.
    """

    reading: int
    embedder: str
    dimensions: int
    form_means: list[float]
    form_scales: list[float]
    topics: list[str]
    topic_weights: Packed
    topic_offsets: list[float]
    opinion_weights: Packed
    opinion_offsets: list[float]
    directions: Packed
    heads: dict[str, Head]


class Forest:
    """Trees ready to be walked, all at once. Raises :class:`ValueError` where a node leads nowhere."""

    def __init__(self, trees: Trees, width: int) -> None:
        self._baseline, self._depth = trees.baseline, trees.depth
        self._roots, self._left, self._right = (part.indices() for part in (trees.roots, trees.left, trees.right))
        self._feature = trees.feature.indices()
        self._threshold, self._value = (part.matrix().reshape(-1) for part in (trees.threshold, trees.value))
        count = len(self._value)
        parts = (self._left, self._right, self._feature, self._threshold)
        inside = all(part.max(initial=0) < count for part in (self._roots, self._left, self._right))
        if not 0 <= trees.depth < 64 or any(len(part) != count for part in parts) or not inside:
            raise ValueError("the nodes of a tree do not fit together")
        if self._feature.max(initial=0) >= width:
            raise ValueError("a tree asks for a feature that is not there")

    def log_odds(self, rows: Floats) -> Floats:
        """``rows``: a row of tree features per request."""
        node = np.broadcast_to(self._roots, (len(rows), len(self._roots)))
        at = np.arange(len(rows))[:, None]
        for _ in range(self._depth):
            below = rows[at, self._feature[node]] <= self._threshold[node]
            node = np.where(below, self._left[node], self._right[node])
        found: Floats = self._baseline + self._value[node].sum(axis=1)
        return found


class OutcomeModel:
    """A :class:`ModelFile` ready to judge. Raises :class:`ValueError` where its parts do not fit together."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self._means = np.array(file.form_means, np.float32)
        self._scales = np.array(file.form_scales, np.float32)
        self._topic_weights = file.topic_weights.matrix()
        self._topic_offsets = np.array(file.topic_offsets, np.float32)
        self._opinion_weights = file.opinion_weights.matrix()
        self._opinion_offsets = np.array(file.opinion_offsets, np.float32)
        self._directions = file.directions.matrix()
        width, opinions = len(FORMS) + BUCKETS + file.dimensions, SHARED * (1 + len(file.heads))
        fits = (
            len(self._means) == len(self._scales) == len(FORMS)
            and self._topic_weights.shape == (width, len(file.topics))
            and len(self._topic_offsets) == len(file.topics)
            and self._opinion_weights.shape == (width + len(file.topics), opinions)
            and len(self._opinion_offsets) == opinions
            and self._directions.shape[0] == file.dimensions
        )
        if not fits:
            raise ValueError("the parts of the model do not fit together")
        seen = 2 * SHARED + len(FORMS) + self._directions.shape[1]
        self._forests = [Forest(head.trees, seen) for head in file.heads.values()]

    def good(self, reading: Reading, embedding: Floats, heads: Collection[str] | None = None) -> dict[str, float]:
        """Probability per head, or of those in ``heads``. ``embedding``: unit length, ``dimensions`` long."""
        wanted = [name for name in self.file.heads if heads is None or name in heads]
        judged = self.judge(self.rows([reading], embedding[None]), wanted)[0]
        return dict(zip(wanted, judged.tolist(), strict=True))

    def rows(self, readings: list[Reading], embeddings: Floats) -> Floats:
        forms = np.array([reading.forms for reading in readings], np.float32)
        return features((forms - self._means) / self._scales, readings, embeddings)

    def judge(self, rows: Floats, heads: Collection[str] | None = None) -> Floats:
        """Probabilities, a row per row of features and a column per head, or per one of ``heads``."""
        topics = softmax(rows @ self._topic_weights + self._topic_offsets)
        opinions = np.hstack([rows, topics * TOPIC_SCALE]) @ self._opinion_weights + self._opinion_offsets
        columns = []
        for number, ((name, head), forest) in enumerate(zip(self.file.heads.items(), self._forests, strict=True)):
            if heads is not None and name not in heads:
                continue
            odds = forest.log_odds(tree_features(rows, opinions, number, self._directions))
            columns.append(1 / (1 + np.exp(-np.clip(head.slope * odds + head.offset, -30, 30))))
        found: Floats = np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0), np.float32)
        return found


def tree_features(rows: Floats, opinions: Floats, head: int, directions: Floats) -> Floats:
    """What a head's trees see: the opinions of all and its own, the forms, the embedding's main directions."""
    own = SHARED * (1 + head)
    parts = [
        opinions[:, :SHARED],
        opinions[:, own : own + SHARED],
        rows[:, : len(FORMS)],
        rows[:, len(FORMS) + BUCKETS :] @ directions,
    ]
    return np.hstack(parts)


def features(forms: Floats, readings: list[Reading], embeddings: Floats) -> Floats:
    """Standardised forms, hashed words, embedding: a row per request."""
    words = np.zeros((len(readings), BUCKETS), np.float32)
    for row, reading in zip(words, readings, strict=True):
        row[list(reading.words)] = list(reading.words.values())
    return np.hstack([np.clip(forms, -4, 4) * FORM_SCALE, words * WORD_SCALE, embeddings])


# How strongly a block speaks under one ridge penalty: the square root of its inverse penalty.
FORM_SCALE = np.float32(0.1)
WORD_SCALE = np.float32(0.5)
TOPIC_SCALE = np.float32(6.0)
# Opinions of one kind: by ridges of two penalties, and by the topics' means.
SHARED = 3


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
