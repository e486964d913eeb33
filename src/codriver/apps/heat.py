"""The car's computer grows hot, or may take less power: the vehicle follows its target's table of actions.

A fanless box throttles sooner or later; what it does before is a choice (``optimize/targets/actions.py``): fewer
threads, a smaller model, no answers of its own so that the router asks the cloud, and periodic work less often. The
rules kept: no answer under way is cut; what cannot be read, or a model that does not load, changes nothing, and a
sentence in the log says so; a milder row is taken only once the harder one clearly stopped holding.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from codriver.catalogue import CatalogueConfig, resolve
from codriver.core.cadence import Cadence, Periodic
from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError, MissingFile
from codriver.engines.swapping import SwappingEngine
from codriver.observe.metrics import Metrics
from codriver.optimize.targets.actions import Action, Slack, State, action_of, row_for, steps_of
from codriver.optimize.targets.target import Target, find_target
from codriver.vehicle.sysfs import ROOT, hottest_c, power_w, temperature_c

from .engines import start_on_board
from .settings import HeatConfig, OnBoard

_log = logging.getLogger("codriver.apps")


@dataclass
class Governor:
    """``settings``: of the engine as it is with the first row; ``load``: starts one with others. ``at``: the row."""

    config: HeatConfig
    target: Target
    settings: OnBoard
    engine: SwappingEngine
    load: Callable[[OnBoard], Awaitable[Engine]]
    cadence: Cadence = field(default_factory=Cadence)
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = SYSTEM_CLOCK
    at: int = 0

    def __post_init__(self) -> None:
        self._loaded = self.settings
        self._failed: OnBoard | None = None
        self._blind = False

    async def run(self) -> None:
        """Until it is cancelled. An error that nobody thought of is logged, and the next look comes all the same: a car
        that stopped looking would overheat in silence.
        """
        while True:
            try:
                await self.step()
            except Exception:  # noqa: BLE001 - the loop of a service
                _log.exception("heat: a look at it failed")
            await self.clock.sleep(self.config.every_s)

    async def step(self) -> None:
        """Read, choose a row, and do what it says. Errors: none that a computer's state can cause."""
        try:
            state = read_state(self.config)
        except MissingFile as error:
            if not self._blind:
                _log.warning("heat cannot be read; nothing is changed", extra={"reason": error.message})
            self._blind = True
            return
        self._blind = False
        steps = steps_of(self.target)
        slack = Slack(self.config.hysteresis_c, self.config.hysteresis_share)
        before, self.at = self.at, row_for(self.target, state, self.at, slack)
        action = action_of(steps[self.at], _threads(self.settings))
        if before != self.at:
            told = {"step": action.name, "before": steps[before].name, "state": _words(state)}
            _log.warning("heat: another row of the table of actions holds", extra=told)
        self.metrics.heat(action.name, [one.name for one in steps], state.temperature_c)
        await self._do(action, state)

    async def _do(self, action: Action, state: State) -> None:
        self.cadence.factor = action.cadence
        held = f"{action.name} ({_words(state)})"
        if action.artifact == "none":
            self.engine.rest(f"it rests while the computer is {held}")
            return
        wanted = self._wanted(action)
        # While the one before still ends its answers the next look swaps: waiting here would miss a harder row.
        if wanted not in (self._loaded, self._failed) and self.engine.settled:
            await self._swap(wanted)
        self.engine.work(f"the computer is {held}: {self._limited()}" if self.at else "")

    def _limited(self) -> str:
        if self._loaded == self.settings:
            return "all is as it was"
        count = _threads(self._loaded)
        # Of a path the last part: the rest is a place on this machine's disk.
        return f"{Path(self._loaded.model).name} on {count} thread{'s' * (count > 1)}"

    async def _swap(self, wanted: OnBoard) -> None:
        try:
            await self.engine.swap(lambda: self.load(wanted))
        except CodriverError as error:
            # Tried once a change: a load that fails every few seconds would heat more than it saves.
            self._failed = wanted
            _log.error("heat: the model could not be loaded; the one in place stays", extra={"reason": error.message})
            return
        self._loaded, self._failed = wanted, None

    def _wanted(self, action: Action) -> OnBoard:
        all_of_them = action.threads == _threads(self.settings)
        wanted = self.settings if all_of_them else dataclasses.replace(self.settings, threads=action.threads)
        if action.artifact == "smaller" and self.config.smaller:
            # A projector and a kept prefix belong to the model that they were made with; the prefix is read anew.
            wanted = dataclasses.replace(wanted, model=self.config.smaller, mmproj="")
        return wanted


def governor(
    config: HeatConfig, settings: OnBoard, engine: SwappingEngine, catalogue: CatalogueConfig, cadence: Cadence
) -> Governor:
    """Errors, before anything is served: those of ``find_target`` and ``steps_of``; :class:`BadConfigValue` where the
    target does not say from which temperature it throttles; :class:`MissingFile` for heat that cannot be read, or a
    smaller model that is not here.
    """
    target = find_target(config.target)
    steps = steps_of(target)
    if config.power_file is None or config.temperature_file is not None:
        target.need("power.throttle_c")
    if config.power_file is not None:
        target.need("power.budget_w")
    read_state(config)
    if config.smaller:
        resolve(config.smaller, catalogue.catalogue(), catalogue.store())
    elif wants := [one.name for one in steps if one.artifact == "smaller"]:
        _log.warning("heat.smaller names no model: the vehicle's own stays", extra={"rows": wants})

    async def load(wanted: OnBoard) -> Engine:
        return paced(await start_on_board(wanted, catalogue, "vehicle"), cadence)

    return Governor(config, target, settings, engine, load, cadence)


def paced(engine: Engine, cadence: Cadence) -> Engine:
    """The engine with its own periodic work, if it has some, at this cadence."""
    if isinstance(engine, Periodic):
        engine.cadence = cadence
    return engine


def read_state(config: HeatConfig) -> State:
    """Errors: :class:`MissingFile` with what cannot be read."""
    power = power_w(config.power_file) if config.power_file is not None else None
    if config.temperature_file is not None:
        return State(temperature_c(config.temperature_file), power)
    found = hottest_c()
    if math.isnan(found) and power is None:
        raise MissingFile(
            f"No temperature can be read: {ROOT}/class/thermal has no zone that tells a likely one. Name a file with "
            "heat.temperature_file or heat.power_file, or leave heat.target empty.",
            param="heat.temperature_file",
        )
    return State(None if math.isnan(found) else found, power)


def _threads(settings: OnBoard) -> int:
    return settings.threads or max(1, len(os.sched_getaffinity(0)) - 1)


def _words(state: State) -> str:
    told = [] if state.temperature_c is None else [f"{state.temperature_c:.0f} °C"]
    told += [] if state.power_w is None else [f"{state.power_w:.1f} W"]
    return ", ".join(told)
