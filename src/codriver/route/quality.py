"""How likely is this engine's answer to be good? Learned per engine from outcomes, in pure Python and microseconds.

Two logistic models per engine. The *prior* reads the request alone (hashed words of the last user message and system
prompt, length, digits, listed options, asked format) and says whether a draft is worth making. The *gate* reads the
draft's token log-probabilities as well and says whether the draft is good enough. Both give calibrated probabilities
as far as their training sample goes; ``Fit`` says how far (Brier score by cross-validation, beside the score of
always saying the base rate).

Sources: logistic regression with AdaGrad (Duchi et al. 2011); feature hashing (Weinberger et al. 2009); token
log-probability as a confidence signal for cascades (Gupta et al. 2024, arXiv:2404.10136).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.errors import BadConfigValue, MissingFile
from codriver.core.messages import ChatRequest, TokenLogprob

from .words import Slots, parts, runs

# Raise it whenever features change their meaning: weights learnt on other features are worse than none.
FEATURES = 1
_BUCKETS = 1 << 14
_MOST_CHARS = 1 << 16
_MOST_WORDS = 128
_LOOKED_AT_CHARS = 256
_WORD_START = zlib.crc32(b"w:")

Features = dict[int, float]
# The first slots are reserved for features with a name; hashed words come after them.
_NAMED = ("bias", "length", "digits", "options", "schema", "tools", "mean", "least", "first", "margin", "tokens")
_SLOT = {name: index for index, name in enumerate(_NAMED)}


@dataclass(slots=True)
class Draft:
    """Evidence about a draft so far: its tokens' log-probabilities (natural log) and the gap to the runner-up."""

    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def add(self, tokens: Sequence[TokenLogprob]) -> None:
        for token in tokens:
            self.logprobs.append(token.logprob)
            others = [top.logprob for top in token.top_logprobs if top.token != token.token]
            if others:
                self.margins.append(min(10.0, token.logprob - max(others)))

    def mean_probability(self) -> float:
        """Geometric mean of the tokens' probabilities: an uncalibrated confidence; 0.5 without tokens."""
        return math.exp(sum(self.logprobs) / len(self.logprobs)) if self.logprobs else 0.5


def request_features(request: ChatRequest) -> Features:
    """Sparse features of a request; some 20 µs for a question of 50 words."""
    asked = next((m.text() for m in reversed(request.messages) if m.role == "user"), request.prompt or "")
    system = next((m.text() for m in request.messages if m.role in ("system", "developer")), "")
    read = asked[:_MOST_CHARS]
    words = _words(read.lower())
    schema = request.response_format
    features: Features = {
        _SLOT["bias"]: 1.0,
        _SLOT["length"]: math.log1p(len(asked)) / 6.0,
        _SLOT["digits"]: min(1.0, sum(map(str.isdigit, words)) / 4),
        _SLOT["options"]: float(sum(map(_is_option, read.split("\n"))) >= 2),
        _SLOT["schema"]: float(schema is not None and schema.type != "text"),
        _SLOT["tools"]: float(bool(request.tools)),
    }
    weight = 1 / math.sqrt(len(words) or 1)
    for slot in map(_WORD_SLOTS.__getitem__, words):
        features[slot] = features.get(slot, 0.0) + weight
    features[_hashed("s:" + system)] = 1.0
    if schema is not None and schema.json_schema is not None:
        features[_hashed("f:" + ",".join(sorted(schema.json_schema.schema.get("properties", {}))))] = 1.0
    return features


def draft_features(draft: Draft) -> Features:
    """Dense features of a draft so far."""
    if not draft.logprobs:
        return {}
    return {
        _SLOT["mean"]: max(-6.0, sum(draft.logprobs) / len(draft.logprobs)),
        _SLOT["least"]: max(-6.0, min(draft.logprobs)) / 2,
        _SLOT["first"]: max(-6.0, draft.logprobs[0]) / 2,
        _SLOT["margin"]: sum(draft.margins) / len(draft.margins) / 4 if draft.margins else 0.0,
        _SLOT["tokens"]: math.log1p(len(draft.logprobs)) / 4,
    }


def _words(text: str) -> list[str]:
    """The first words and numbers of ``text``."""
    words: list[str] = []
    at = 0
    while at < len(text) and len(words) < _MOST_WORDS:
        # Never to within a word: a space ends each piece, or the text does.
        end = text.find(" ", at + _LOOKED_AT_CHARS)
        piece = text[at : end if end >= 0 else None]
        words += parts(runs(piece))
        at = end if end >= 0 else len(text)
    return words[:_MOST_WORDS]


def _is_option(line: str) -> bool:
    """True for a line of a list of choices: ``B) the second`` or ``B. the second``."""
    start = line.lstrip()[:3]
    return len(start) == 3 and start[0] in "ABCDE" and start[1] in ".)" and start[2].isspace()


_WORD_SLOTS = Slots(lambda word: len(_NAMED) + zlib.crc32(word.encode(), _WORD_START) % (_BUCKETS - len(_NAMED)))


def _hashed(text: str) -> int:
    return len(_NAMED) + zlib.crc32(text.encode()) % (_BUCKETS - len(_NAMED))


class Logistic(msgspec.Struct):
    """Sparse logistic regression. ``weights``: feature slot → weight."""

    weights: dict[int, float] = {}

    def probability(self, features: Mapping[int, float]) -> float:
        weight_of, score = self.weights.get, 0.0
        for slot, value in features.items():
            score += weight_of(slot, 0.0) * value
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))

    @classmethod
    def fit(cls, samples: Sequence[tuple[Features, bool]], epochs: int = 30, word_decay: float = 0.02) -> Logistic:
        """AdaGrad over ``samples`` in a fixed order. Hashed words are pulled to zero (L2) far more than named features,
        because a calibration run has hundreds of samples and thousands of words."""
        weights: dict[int, float] = {}
        squares: dict[int, float] = {}
        model = cls(weights)
        for _ in range(epochs):
            for features, label in samples:
                error = model.probability(features) - label
                for slot, value in features.items():
                    weight = weights.get(slot, 0.0)
                    decay = 1e-4 if slot < len(_NAMED) else word_decay
                    gradient = error * value + decay * weight
                    squares[slot] = squares.get(slot, 1e-6) + gradient * gradient
                    weights[slot] = weight - 0.3 * gradient / math.sqrt(squares[slot])
        return model


class Fit(msgspec.Struct, frozen=True):
    """How good a calibration is. ``brier``: mean squared error of the gate's probability, 5-fold; ``brier_base`` that
    of always saying ``base_rate``.
    """

    n: int
    base_rate: float
    brier: float
    brier_base: float


class Calibration(msgspec.Struct):
    """What a car knows of one engine: two models and how well they fit. ``features`` is the version of the features
    that their weights belong to.
    """

    model: str
    prior: Logistic
    gate: Logistic
    fit: Fit
    features: int = FEATURES


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answered request with a known verdict."""

    request: Features
    draft: Features
    good: bool


def calibrate(model: str, outcomes: Sequence[Outcome]) -> Calibration:
    """Fit both models on ``outcomes`` (at least 20, or :class:`BadConfigValue`)."""
    if len(outcomes) < 20:
        raise BadConfigValue(f"A calibration needs at least 20 outcomes; there are {len(outcomes)}.")
    gate_samples = [({**o.request, **o.draft}, o.good) for o in outcomes]
    rate = sum(o.good for o in outcomes) / len(outcomes)
    squared = 0.0
    for fold in range(5):
        held_out = Logistic.fit([s for i, s in enumerate(gate_samples) if i % 5 != fold])
        squared += sum((held_out.probability(f) - good) ** 2 for f, good in gate_samples[fold::5])
    return Calibration(
        model=model,
        prior=Logistic.fit([(o.request, o.good) for o in outcomes]),
        gate=Logistic.fit(gate_samples),
        fit=Fit(len(outcomes), rate, squared / len(outcomes), rate * (1 - rate)),
    )


class Quality:
    """Calibrations by engine id. An engine without one: prior 0.5, gate = the tokens' geometric mean probability."""

    def __init__(self, calibrations: Mapping[str, Calibration] | None = None) -> None:
        self._by_engine = dict(calibrations or {})
        self._latest: tuple[ChatRequest, Features] | None = None

    def features(self, request: ChatRequest) -> Features:
        """The request's features, worked out once for the plan and its gate; none while no engine is calibrated."""
        if not self._by_engine:
            return {}
        if self._latest is None or self._latest[0] is not request:
            self._latest = (request, request_features(request))
        return self._latest[1]

    def learn(self, engine: str, calibration: Calibration) -> None:
        self._by_engine[engine] = calibration

    def calibrated(self, engine: str) -> bool:
        return engine in self._by_engine

    async def read(self, request: ChatRequest, deadline: Deadline) -> None:
        """Look at a request before it is planned. Here there is nothing to look with."""

    def expected(self, engine: str, request: ChatRequest) -> float | None:
        """Probability of a good answer from what was read of the request; None where nothing was."""
        return None

    def judged(self, engine: str, request: ChatRequest, confidence: float) -> None:
        """A gate found a draft to be good with this probability."""

    def corrected(self, engine: str, request: ChatRequest, good: bool) -> None:
        """A user said whether an answer was good."""

    def prior(self, engine: str, features: Features) -> float:
        known = self._by_engine.get(engine)
        return known.prior.probability(features) if known else 0.5

    def confidence(self, engine: str, features: Features, draft: Draft) -> float:
        known = self._by_engine.get(engine)
        if known is None:
            return draft.mean_probability()
        return known.gate.probability({**features, **draft_features(draft)})


def load_calibration(file: Path) -> Calibration:
    """Errors: :class:`MissingFile`, :class:`BadConfigValue` naming the file."""
    try:
        calibration = msgspec.json.decode(file.read_bytes(), type=Calibration, strict=False)
    except FileNotFoundError:
        raise MissingFile(f"The calibration file {file} does not exist.") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadConfigValue(f"The calibration file {file} is not valid: {error}.") from error
    if calibration.features != FEATURES:
        raise BadConfigValue(f"The calibration file {file} is of another version of Codriver: calibrate again.")
    return calibration


def save_calibration(calibration: Calibration, file: Path) -> None:
    """Written whole or not at all."""
    temporary = file.with_name(file.name + ".part")
    temporary.write_bytes(msgspec.json.encode(calibration))
    temporary.replace(file)
