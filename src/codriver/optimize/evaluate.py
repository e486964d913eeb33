"""How good is a file of a language model? Perplexity, and how far its predictions are from a reference's.

Measured in llama.cpp on the files themselves. The protocol is that of llama.cpp's own ``llama-perplexity``, so that
figures compare: the text in windows of 512 tokens, each read from an empty memory, the second half of each scored.
Sources: Jelinek et al. 1977 (perplexity); Kullback and Leibler 1951, per token as KL(reference ‖ candidate) in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.errors import BadConfigValue, BadModelFile

from .ggml import Floats
from .gguf_file import GgufFile
from .llama_runtime import PLAIN_CACHE, Cache, Context, LlamaModel

WINDOW = 512
_FIRST = WINDOW // 2
_ROWS = 64  # positions whose probabilities are worked out at once: 64 × a vocabulary of 152,000 are 39 MB
Progress = Callable[[int, int], None]
Pieces = list[list[int]]


@dataclass(frozen=True)
class Run:
    """How the work is done: on how many threads, who is told how much of it, and in what a candidate's keys and values
    are held.
    """

    threads: int = 2
    progress: Progress | None = None
    cache: Cache = PLAIN_CACHE

    def tell(self, done: int, of: int) -> None:
        if self.progress is not None:
            self.progress(done, of)


@dataclass(frozen=True)
class Fit:
    """``n`` tokens were scored. ``perplexity_error`` and ``kl_error``: the standard error of each. ``same_top``: the
    share of tokens on which reference and candidate agree. Without a reference ``kl`` and ``same_top`` are NaN.
    """

    n: int
    perplexity: float
    perplexity_error: float
    kl: float
    kl_error: float
    same_top: float


def evaluate(candidate: Path, reference: Path | None, text: str, windows: int, run: Run) -> Fit:
    """Errors: :class:`BadConfigValue` for a text shorter than one window; :class:`BadModelFile` naming a tensor of NaN
    or infinity; those of :class:`LlamaModel`.
    """
    with LlamaModel(candidate) as model:
        pieces = pieces_of(model, text, windows)
        if reference is None:
            return _scored(model, None, pieces, run)
        with LlamaModel(reference) as judge:
            if judge.vocabulary != model.vocabulary:
                raise BadConfigValue(
                    f"{candidate} has {model.vocabulary} tokens and {reference} {judge.vocabulary}: "
                    "they cannot be compared."
                )
            with judge.context(WINDOW, run.threads) as context:
                told = (log_softmax(context.logits(piece, _FIRST)[:-1]) for piece in pieces)
                return _scored(model, told, pieces, run)


def pieces_of(model: LlamaModel, text: str, windows: int) -> Pieces:
    """The text's first windows as token ids. Errors: :class:`BadConfigValue` for a text shorter than one."""
    ids = model.tokens(text)
    room = WINDOW - len(model.begin)
    count = min(windows, len(ids) // room)
    if count < 1:
        raise BadConfigValue(f"The text has {len(ids)} tokens; scoring needs {room} at least.")
    return [[*model.begin, *ids[at * room : (at + 1) * room]] for at in range(count)]


def predictions(file: Path, pieces: Pieces, threads: int) -> list[Floats]:
    """What ``file`` predicts, to compare others with: log-probabilities (positions, vocabulary) of each window."""
    with LlamaModel(file) as model, model.context(WINDOW, threads) as context:
        return [log_softmax(context.logits(piece, _FIRST)[:-1]) for piece in pieces]


def compare(candidate: Path, reference: Sequence[Floats], pieces: Pieces, run: Run) -> Fit:
    """As :func:`evaluate`, against predictions made before."""
    with LlamaModel(candidate) as model:
        return _scored(model, iter(reference), pieces, run)


def _scored(
    model: LlamaModel,
    reference: Iterator[Floats] | None,
    pieces: Pieces,
    run: Run,
) -> Fit:
    found = _Sums()
    with model.context(WINDOW, run.threads, cache=run.cache) as context:
        for number, piece in enumerate(pieces):
            found.add(context, piece, next(reference) if reference is not None else None)
            run.tell(number + 1, len(pieces))
    fit = found.fit()
    if not math.isfinite(fit.perplexity):
        refuse_odd(model.file)
    return fit


def refuse_odd(file: Path) -> None:
    """What a model whose predictions are no numbers has in it. Errors: :class:`BadModelFile`, always."""
    opened = GgufFile(file)
    for tensor in opened:
        opened.refuse_odd(tensor)
    raise BadModelFile(f"What {file} predicts is no number, though its weights are.")


class _Sums:
    def __init__(self) -> None:
        self._losses: list[Floats] = []
        self._far: list[Floats] = []
        self._same: list[Floats] = []

    def add(self, context: Context, piece: list[int], reference: Floats | None) -> None:
        follows = np.array(piece[_FIRST + 1 :])
        logits = context.logits(piece, _FIRST)[:-1]
        for at in range(0, len(follows), _ROWS):
            told = log_softmax(logits[at : at + _ROWS])
            self._losses.append(-told[np.arange(len(told)), follows[at : at + _ROWS]])
            if reference is not None:
                right = reference[at : at + _ROWS]
                self._far.append((np.exp(right) * (right - told)).sum(axis=1))
                self._same.append((right.argmax(axis=1) == told.argmax(axis=1)).astype(np.float32))

    def fit(self) -> Fit:
        loss, loss_error = _mean(self._losses)
        kl, kl_error = _mean(self._far) if self._far else (math.nan, math.nan)
        same = _mean(self._same)[0] if self._same else math.nan
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return Fit(sum(map(len, self._losses)), perplexity, perplexity * loss_error, kl, kl_error, same)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities (positions, vocabulary)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _mean(parts: list[Floats]) -> tuple[float, float]:
    values = np.concatenate(parts).astype(np.float64)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
