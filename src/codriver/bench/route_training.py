"""Trains and judges quality models from recorded outcomes: the public sets, or a file of one's own.

The model that ships has a head for each recorded model, and two that stand for an engine of which nothing else is
known: ``vehicle`` learned from those that were the weak one, ``cloud`` from those that were the strong one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from codriver.core.errors import BadConfigValue, MissingFile
from codriver.route.evaluate import SHARES
from codriver.route.fit import Examples, fit_model
from codriver.route.outcome_model import OutcomeModel
from codriver.route.reading import read_text

from .drive_inputs import data_folder
from .folds import group_of
from .outcome_sets import EMBEDDER, Embed, cached_embeddings, examples_of, outcome_sets
from .route_systems import category_mean, cross_fit, fit_figures, ranking

Told = Callable[[str], None]


class OwnOutcome(msgspec.Struct, frozen=True):
    """One line of a file: an engine answered a prompt, and the answer was good or not."""

    prompt: str
    engine: str
    good: bool
    topic: str = "any"


def train_from(file: Path | None, told: Told, embed: Embed | None = None) -> OutcomeModel:
    """Errors: :class:`MissingFile`, :class:`BadConfigValue` naming the file's line, or an engine with too little."""
    wanted = read_outcomes(file) if file is not None else None
    embed = embed or cached_embeddings(told)
    return fit_model(
        own_examples(wanted, embed) if wanted is not None else shipped_examples(data_folder(), embed), EMBEDDER
    )


def shipped_examples(folder: Path, embed: Embed) -> Examples:
    sets = outcome_sets(folder)
    found = examples_of(sets, embed)
    pooled = {
        "vehicle": np.concatenate([each.weak_good() for each in sets]),
        "cloud": np.concatenate([each.strong_good() for each in sets]),
    }
    return Examples(found.readings, found.embeddings, found.topics, found.groups, {**pooled, **found.good})


def read_outcomes(file: Path) -> list[OwnOutcome]:
    """Errors: :class:`MissingFile`, :class:`BadConfigValue` naming the line."""
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise MissingFile(f"The file of outcomes {file} does not exist.", param="outcomes") from None
    except OSError as error:
        raise BadConfigValue(
            f"The file of outcomes {file} cannot be read: {error.strerror}.", param="outcomes"
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(msgspec.json.decode(line, type=OwnOutcome))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            told = f"Line {number} of {file} is no outcome: {error}."
            raise BadConfigValue(told, param="outcomes") from error
    if not found:
        raise BadConfigValue(f"The file of outcomes {file} is empty.", param="outcomes")
    return found


def own_examples(outcomes: list[OwnOutcome], embed: Embed) -> Examples:
    """A row per prompt, a column per engine; an engine asked twice counts as good by its mean."""
    prompts = list(dict.fromkeys(one.prompt for one in outcomes))
    row = {prompt: number for number, prompt in enumerate(prompts)}
    topics = {one.prompt: one.topic for one in outcomes}
    total: dict[str, np.ndarray] = {}
    count: dict[str, np.ndarray] = {}
    for one in outcomes:
        for sums, value in ((total, float(one.good)), (count, 1.0)):
            sums.setdefault(one.engine, np.zeros(len(prompts)))[row[one.prompt]] += value
    readings = [read_text(prompt) for prompt in prompts]
    return Examples(
        readings,
        embed([reading.start for reading in readings]),
        [topics[prompt] for prompt in prompts],
        np.array([group_of(prompt) for prompt in prompts], np.int64),
        {name: np.where(count[name] > 0, total[name] / np.maximum(count[name], 1), np.nan) for name in total},
    )


def evaluate_sets(most: int | None, told: Told, embed: Embed | None = None) -> str:
    """The figures of every set, a line each. Errors: :class:`MissingFile`."""
    embed = embed or cached_embeddings(told)
    lines = []
    for each in outcome_sets(data_folder(), most):
        fitted = cross_fit(each, examples_of([each], embed), EMBEDDER)
        ours, category = ranking(each, fitted.scores), ranking(each, category_mean(each))
        calls = ", ".join(f"{ours.cost_at(part):.2f} at {part:.0%}" for part in SHARES)
        weak, strong = fit_figures(fitted.weak, each.weak_good()), fit_figures(fitted.strong, each.strong_good())
        lines.append(
            f"{each.name} ({len(each.outcomes)} questions, 5 folds): APGR {ours.area():.3f} (category mean "
            f"{category.area():.3f}); calls {calls} of the gap; ECE {weak['ece']:.3f} / {strong['ece']:.3f}, "
            f"Brier {weak['brier']:.3f} / {strong['brier']:.3f} (weak / strong)"
        )
    return "\n".join(lines)
