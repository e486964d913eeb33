"""What goes into each matrix of a language model, over a text: the sums that imatrix, AWQ and GPTQ are made of.

The model reads the text in llama.cpp. For each input the mean square of its columns is kept, and, where it is wanted,
the whole second moment ``XᵀX / n``; once for all matrices that share the input (query, key and value; gate and up).
The rule kept: the text is never the one that is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from codriver.core.errors import BadConfigValue

from .evaluate import WINDOW, Run
from .ggml import Floats
from .llama_runtime import LlamaModel, Taker

LEAST_WINDOWS = 4


@dataclass
class Inputs:
    """Of ``n`` tokens, by a weight's name."""

    n: int = 0
    _squares: dict[str, Floats] = field(default_factory=dict)
    _moments: dict[str, Floats] = field(default_factory=dict)
    _input_of: dict[str, str] = field(default_factory=dict)
    _first_of: dict[str, str] = field(default_factory=dict)
    _first_whole: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._input_of

    def importance(self, name: str) -> Floats:
        """The mean square of each column's input (width,): llama.cpp's *imatrix*."""
        found: Floats = self._squares[self._input_of[name]] / np.float32(self.n)
        return found

    def moment(self, name: str) -> Floats:
        """The second moment (width, width). Errors: ``KeyError`` where it was not wanted."""
        found: Floats = self._moments[self._input_of[name]] / np.float32(self.n)
        return found

    def add(self, weight: str, given: str, values: Floats, whole: bool) -> None:
        """What ``weight`` is multiplied with: ``values`` (tokens, width) of the input called ``given``."""
        self._input_of[weight] = given
        width = values.shape[1]
        # Matrices that share an input are counted once: by the first of them, or the first whose moment is wanted.
        if self._first_of.setdefault(given, weight) == weight:
            squares = self._squares.setdefault(given, np.zeros(width, np.float32))
            squares += np.einsum("tw,tw->w", values, values)
        if whole and self._first_whole.setdefault(given, weight) == weight:
            moment = self._moments.setdefault(given, np.zeros((width, width), np.float32))
            moment += values.T @ values


def read_inputs(
    model: Path,
    text: str,
    windows: int,
    run: Run,
    whole: Callable[[str], bool],
) -> Inputs:
    """``whole``: the weights whose input's second moment is kept, at 4 × width² bytes. Errors: :class:`BadConfigValue`
    for a text that is too short.
    """
    found = Inputs()

    def take(weight: str, given: str, values: Floats) -> None:
        found.add(weight, given, values, whole(weight))

    found.n = read_windows(model, text, windows, run, take)
    return found


def read_windows(model: Path, text: str, windows: int, run: Run, take: Taker) -> int:
    """How many tokens of the text were read, while ``take`` saw what goes into each matrix. Errors: as
    :func:`read_inputs`.
    """
    read = 0
    with LlamaModel(model) as loaded:
        ids = loaded.tokens(text)
        room = WINDOW - len(loaded.begin)
        if len(ids) < LEAST_WINDOWS * room:
            raise BadConfigValue(
                f"The calibration text has {len(ids)} tokens; {LEAST_WINDOWS * room} are needed, and more are better.",
                param="calibration",
            )
        pieces = spread(ids, room, min(windows, len(ids) // room))
        with loaded.context(WINDOW, run.threads, take) as context:
            for number, piece in enumerate(pieces):
                context.logits([*loaded.begin, *piece])
                read += len(loaded.begin) + len(piece)
                run.tell(number + 1, len(pieces))
    return read


def spread(ids: list[int], room: int, count: int) -> list[list[int]]:
    """``count`` windows from all over the text."""
    last = len(ids) - room
    return [ids[begin : begin + room] for begin in (last * number // max(1, count - 1) for number in range(count))]
