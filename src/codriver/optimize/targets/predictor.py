"""Figures of a file that nobody measured: for a car computer that is not here, or before the file is written.

The roofline is that of ``predict.py``. The rule kept: every row says that it is predicted, and how wrong the model was
on this machine on files that it had not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from codriver.core.artifact import Measured
from codriver.core.errors import MissingFile

from ..requirement import Requirement
from .host import machine_name
from .predict import (
    METRICS,
    Calibration,
    Fitted,
    Layout,
    Rates,
    elsewhere,
    here,
    layout_of,
    load_calibration,
    memory_bytes,
    prompt_s,
    token_s,
)
from .target import HOST, Target


@dataclass(frozen=True)
class Predictor:
    """What stands in for measuring on ``target``. ``known``: whether its arithmetic is; where it is not, only memory
    bounds what is written.
    """

    target: str
    rates: Rates
    known: bool
    calibration: Calibration

    def rows(self, layout: Layout, prompts: Sequence[int]) -> list[Measured]:
        """Rows of a card, each marked as predicted, with the largest error on this machine. No time to a first token
        where the target's arithmetic is not known.
        """
        fitted = _scaled(self.calibration.fitted, self.rates, self.known)
        asked = prompts if self.known else ()
        found = [
            self._row(f"ttft_ms@{n}", 1e3 * prompt_s(layout, self.rates, fitted, n), "ms", "ttft_ms") for n in asked
        ]
        written = self._row("decode_tps", 1 / token_s(layout, self.rates, fitted), "tokens/s", "decode_tps")
        if not self.known:
            told = f"predicted for {self.target}: what its memory allows, and no more than that"
            written = msgspec.structs.replace(written, low=None, high=None, note=told)
        longest = max(prompts, default=512)
        return [*found, written, self._row("rss", memory_bytes(layout, fitted, longest + 32), "bytes", "rss")]

    def timing(self, file: Path, threads: int, runs: int, prompts: Sequence[int]) -> list[Measured]:
        """In the place of ``latency.measure``."""
        return self.rows(layout_of(file), prompts)

    def __str__(self) -> str:
        errors = ", ".join(f"{metric} ±{100 * self.calibration.error(metric):.0f} %" for metric in METRICS)
        return f"predicted for {self.target} from {self.calibration.started}'s calibration, error on the host: {errors}"

    def _row(self, metric: str, value: float, unit: str, of: str) -> Measured:
        error = self.calibration.error(of)
        told = f"predicted for {self.target}, error on the host ±{100 * error:.0f} %"
        return Measured(metric, value, unit, 0, value / (1 + error), value * (1 + error), told)


def predict(file: Path, target: Target, prompts: Sequence[int]) -> list[Measured]:
    """As :meth:`Predictor.rows`. Errors: those of :func:`predictor_of`."""
    return predictor_of(target).rows(layout_of(file), prompts)


def predictor_of(target: Target) -> Predictor:
    """Errors: :class:`MissingFile` without a calibration; ``BadConfigValue`` where the target lacks what is needed."""
    figures, calibration = load_calibration()
    rates, known = (here(figures), True) if target.name == HOST else elsewhere(target, figures)
    return Predictor(target.name, rates, known, calibration)


def predictor_for(target: Target, requirements: Sequence[Requirement]) -> Predictor:
    """Of a target that is not this machine. Errors, before anything long begins: those of :func:`predictor_of`, and
    ``BadConfigValue`` for a target that llama.cpp does not serve, or that lacks a figure on which a requirement
    depends.
    """
    target.need_runtime("llama_cpp")
    found = predictor_of(target)
    if not found.known and any(one.metric in ("ttft_ms", "decode_tps") for one in requirements):
        target.need("cpu.int8_ops_per_cycle")
    return found


def predictor_here(threads: int) -> Predictor | None:
    """Of this machine, where it was calibrated with as many threads; ``None`` elsewhere: nothing is guessed."""
    try:
        figures, calibration = load_calibration()
    except MissingFile:
        return None
    if calibration.machine != machine_name() or calibration.threads != threads:
        return None
    return Predictor(HOST, here(figures), True, calibration)


def _scaled(fitted: Fitted, rates: Rates, known: bool) -> Fitted:
    longer = rates.overhead if known else 0.0
    return Fitted(fitted.prompt_s * longer, fitted.token_s * longer, fitted.memory_bytes)
