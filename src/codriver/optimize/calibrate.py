"""What goes into each matrix of a language model, over a text: the sums that imatrix, AWQ and GPTQ are made of.

The model reads the text in llama.cpp. For each input the mean square of its columns is kept, and, where it is wanted,
the whole second moment ``XᵀX / n``, or what went in itself while that takes less room; once for all matrices that share
the input (query, key and value; gate and up). The rule kept: the text is never the one that is scored.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from codriver.core.errors import BadConfigValue

from .evaluate import WINDOW, Run
from .ggml import Floats
from .llama_runtime import LlamaModel, Results, Taker

LEAST_WINDOWS = 4
_ALL = slice(None)
_MOMENT_BYTES = 2_000_000_000


@dataclass
class Inputs:
    """Of ``n`` tokens, by a weight's name."""

    n: int = 0
    _squares: dict[str, Floats] = field(default_factory=dict)
    _rows: dict[str, list[Floats]] = field(default_factory=dict)
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

    def packed(self) -> bytes:
        """Without moments, for :meth:`unpacked`."""
        made = io.BytesIO()
        np.savez(made, **{name: self.importance(name) for name in self._input_of})  # type: ignore[arg-type]  # the stub takes a name for a flag
        return made.getvalue()

    @classmethod
    def unpacked(cls, file: Path) -> Inputs:
        found = cls(n=1)
        with np.load(file, allow_pickle=False) as arrays:
            found._squares = dict(arrays)
        found._input_of = {name: name for name in found._squares}
        return found

    def width(self, name: str) -> int:
        return len(self._squares[self._input_of[name]])

    def moment(self, name: str, columns: slice = _ALL) -> Floats:
        """The second moment (width, width), or of some columns. Errors: ``KeyError`` where it was not wanted."""
        given = self._input_of[name]
        if given in self._rows:
            rows = np.concatenate([part[:, columns] for part in self._rows[given]])
            found: Floats = rows.T @ rows
        else:
            found = self._moments[given][columns, columns]
        return found / np.float32(self.n)

    def loss(self, name: str, off: Floats) -> float:
        """The mean square of what weights that are ``off`` (rows, width) do to the output. Errors as :meth:`moment`."""
        given = self._input_of[name]
        if given in self._rows:
            return sum(float(np.square(off @ part.T).sum(dtype=np.float64)) for part in self._rows[given]) / self.n
        return float(np.einsum("rc,rc->", off @ self._moments[given], off)) / self.n

    def add(self, weight: str, given: str, values: Floats, whole: bool) -> None:
        """What ``weight`` is multiplied with: ``values`` (tokens, width) of the input called ``given``."""
        self._input_of[weight] = given
        width = values.shape[1]
        # Matrices that share an input are counted once: by the first of them, or the first whose moment is wanted.
        if self._first_of.setdefault(given, weight) == weight:
            squares = self._squares.setdefault(given, np.zeros(width, np.float32))
            squares += np.einsum("tw,tw->w", values, values)
        if whole and self._first_whole.setdefault(given, weight) == weight:
            self._keep(given, values)

    def _keep(self, given: str, values: Floats) -> None:
        """Fewer rows than columns take less room than the moment, and say as much."""
        width = values.shape[1]
        if given not in self._moments:
            rows = self._rows.setdefault(given, [])
            if sum(map(len, rows)) + len(values) <= width:
                rows.append(values.copy())
                return
            self._moments[given] = np.zeros((width, width), np.float32)
            for part in self._rows.pop(given):
                self._moments[given] += part.T @ part
        self._moments[given] += values.T @ values


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

    found.n = read_windows(model, text, windows, run, (take, None))
    return found


class _Enough(Exception):
    """What was wanted of a window has been seen: the rest of it need not be read."""


def read_moments(model: Path, text: str, windows: int, run: Run, names: frozenset[str]) -> Inputs:
    """Of ``names`` alone, with their second moments; each window is read no further than to the last of them. Errors:
    as :func:`read_inputs`.
    """
    found, left, wanted = Inputs(), set(names), set(names)

    def take(weight: str, given: str, values: Floats) -> None:
        nonlocal left, wanted
        if weight not in wanted:
            return
        if weight not in left:  # the next window: what the first had not will not come
            wanted -= left
            left = set(wanted)
        found.add(weight, given, values, True)
        left.discard(weight)
        if not left:
            left = set(wanted)
            raise _Enough

    found.n = read_windows(model, text, windows, run, (take, None))
    return found


def read_windows(model: Path, text: str, windows: int, run: Run, takers: tuple[Taker | None, Results | None]) -> int:
    """Have the model read ``windows`` from all over the text, and show the takers what they want; how many tokens that
    were. Errors: :class:`BadConfigValue` for a text that is too short.
    """
    with LlamaModel(model) as loaded:
        ids = loaded.tokens(text)
        room = WINDOW - len(loaded.begin)
        if len(ids) < LEAST_WINDOWS * room:
            raise BadConfigValue(
                f"The calibration text has {len(ids)} tokens; {LEAST_WINDOWS * room} are needed, and more are better.",
                param="calibration",
            )
        pieces = spread(ids, room, min(windows, len(ids) // room))
        with loaded.context(WINDOW, run.threads, takers) as context:
            for number, piece in enumerate(pieces):
                with suppress(_Enough):
                    context.logits([*loaded.begin, *piece])
                run.tell(number + 1, len(pieces))
        return len(pieces) * (len(loaded.begin) + room)


Read = Callable[[frozenset[str]], Inputs]


def moment_bytes(width: int, tokens: int) -> int:
    """What the second moment of that many tokens takes, at most."""
    return 4 * width * min(width, tokens)


class MomentsAhead:
    """What goes into matrices, with its second moment, read for as many of them at once as there is memory for, in the
    order of ``sizes``: what each takes, in bytes, of all texts. Each of ``reads`` reads one text, with the moments of
    the names that it is given.
    """

    def __init__(self, sizes: Mapping[str, int], *reads: Read) -> None:
        self._sizes, self._reads = dict(sizes), reads
        self._known: frozenset[str] = frozenset()
        self._inputs: tuple[Inputs, ...] = ()

    def inputs(self, name: str) -> tuple[Inputs, ...]:
        """Of each text, with ``name`` in it if anything goes into that. Errors: those of :func:`read_inputs`."""
        if name not in self._known:
            self._inputs = ()  # of the batch before: its memory is free before more is taken
            names = list(self._sizes)
            self._known = frozenset(self._batch(names[names.index(name) :]))
            self._inputs = tuple(read(self._known) for read in self._reads)
        return self._inputs

    def moment(self, name: str) -> Floats:
        """(width, width), over the first text. Errors: as :meth:`inputs`."""
        return self.inputs(name)[0].moment(name)

    def _batch(self, names: list[str]) -> list[str]:
        room, taken = _MOMENT_BYTES, list[str]()
        for name in names:
            # Too much where matrices share an input, never too little.
            room -= self._sizes[name]
            if taken and room < 0:
                break
            taken.append(name)
        return taken


def spread(ids: list[int], room: int, count: int) -> list[list[int]]:
    """``count`` windows from all over the text."""
    last = len(ids) - room
    return [ids[begin : begin + room] for begin in (last * number // max(1, count - 1) for number in range(count))]
