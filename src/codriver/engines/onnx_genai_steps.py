"""ONNX Runtime GenAI's generators, stepped together: one prompt piece or one token of each answer per step.

Offers what :class:`~.step_loop.StepLoop` drives. A generator holds the keys and values of one answer, so answers take
turns and are not computed as one batch. The rule kept here: nothing is computed for an answer that was cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class Wish:
    """What is asked of one answer: ``search`` as GenAI names it, most tokens, a JSON schema as text. ``tops`` is how
    many likely tokens are told at each place; ``None`` for no log-probabilities.
    """

    search: dict[str, Any]
    limit: int
    schema: str | None = None
    tops: int | None = None


@dataclass(frozen=True)
class Output:
    generated_ids: list[int]
    generated_log_probs: list[float]
    finish_reason: str | None
    tops: list[list[tuple[int, float]]]


@dataclass(eq=False)
class Handle:
    """One answer under way. ``unread``: the pieces of its prompt that were not read yet."""

    generator: Any
    wish: Wish
    unread: deque[Any]
    outputs: deque[Output] = field(default_factory=deque)
    made: int = 0
    over: bool = False

    def cancel(self) -> None:
        self.over = True

    def can_read(self) -> bool:
        return bool(self.outputs)

    def read(self) -> dict[int, Output]:
        return {0: self.outputs.popleft()}


class Generators:
    """``make`` opens a generator for what was wished and the prompt's length; ``ends``: tokens that end an answer."""

    def __init__(self, make: Callable[[Wish, int], Any], ends: frozenset[int], piece_tokens: int) -> None:
        self._make, self._ends, self._piece = make, ends, piece_tokens
        self._running: list[Handle] = []

    def add_request(self, number: int, ids: Any, wish: Wish) -> Handle:
        """Errors: ``RuntimeError`` or ``ValueError`` for settings that the runtime refuses."""
        pieces = [ids[at : at + self._piece] for at in range(0, len(ids), self._piece)]
        handle = Handle(self._make(wish, len(ids)), wish, deque(pieces))
        self._running.append(handle)
        return handle

    def has_non_finished_requests(self) -> bool:
        return bool(self._running)

    def step(self) -> None:
        """Errors: ``RuntimeError`` where the runtime fails."""
        self._running = [handle for handle in self._running if not handle.over]
        for handle in self._running:
            if handle.unread:
                handle.generator.append_tokens(handle.unread.popleft())
            else:
                self._one_token(handle)

    def _one_token(self, handle: Handle) -> None:
        generator, wish = handle.generator, handle.wish
        told = None if wish.tops is None else _log_softmax(np.asarray(generator.get_logits()).reshape(-1))
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
        handle.made += 1
        if token in self._ends:
            output = Output([], [], STOP, [])
        else:
            finish = LENGTH if handle.made >= wish.limit or generator.is_done() else None
            likely = [] if told is None else [_likeliest(told, token, wish.tops or 0)]
            output = Output([token], [] if told is None else [float(told[token])], finish, likely)
        handle.over = output.finish_reason is not None
        handle.outputs.append(output)


def _log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _likeliest(told: Any, chosen: int, count: int) -> list[tuple[int, float]]:
    """The ``count`` likeliest tokens, likeliest first."""
    if not count:
        return []
    found = np.argpartition(-told, count - 1)[:count]
    return [(int(at), float(told[at])) for at in sorted(found, key=lambda at: -told[at])]
