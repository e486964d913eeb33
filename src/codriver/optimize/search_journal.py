"""Optuna's part in a search: it proposes, is told, and writes each trial to a journal before the next begins."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from .search_space import DAMPINGS, KINDS, Proposal

T = TypeVar("T")
_RECORD = "record"
_FIRST = 8  # proposals before what was learned counts


class Journal:
    """``name``: the search's; the same name goes on with the same trials. ``recipes``: their names."""

    def __init__(self, folder: Path, name: str, recipes: Sequence[str], seed: int = 0) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._recipes = list(recipes)
        self._asked: dict[int, optuna.Trial] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(folder / "search.journal"))),
                sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=_FIRST),
                study_name=name,
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
        if not self._study.trials:
            for recipe in self._recipes:
                self._study.enqueue_trial({"recipe": recipe, "kinds": "all", "damping": 0.1, "share": 1.0})
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            # An interrupt came in between: it is done first.
            self._study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                self._study.enqueue_trial(trial.params)

    def records(self, kind: type[T]) -> list[T]:
        """What was told before."""
        done = self._study.get_trials(states=(TrialState.COMPLETE,))
        return [msgspec.json.decode(trial.user_attrs[_RECORD], type=kind) for trial in done]

    def propose(self) -> Proposal:
        trial = self._study.ask()
        self._asked[trial.number] = trial
        recipe = trial.suggest_categorical("recipe", self._recipes)
        kinds = trial.suggest_categorical("kinds", list(KINDS))
        damping = trial.suggest_categorical("damping", DAMPINGS)
        return Proposal(trial.number, recipe, kinds, damping, trial.suggest_float("share", 0.0, 1.0))

    def tell(self, proposal: Proposal, record: object, values: tuple[float, float], broken: Sequence[float]) -> None:
        """``values``: to be small. ``broken``: above 0 where a requirement is missed."""
        trial = self._asked.pop(proposal.number)
        trial.set_user_attr(_RECORD, msgspec.json.encode(record).decode())
        for number, over in enumerate(broken):
            trial.set_constraint(str(number), over)
        self._study.tell(trial, list(values))
