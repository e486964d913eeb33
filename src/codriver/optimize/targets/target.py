"""A car computer as figures: what it has, what it may use, what it can run, and where each figure was read.

A profile is TOML, checked by ``core.config``: unknown keys and bad values are errors that name the key. Some
come with the package (``targets/*.toml``), ``host`` is measured on this machine (``codriver targets measure``), and a
file of the user's own is named by its path. The rules kept: every figure of a shipped profile names its source in
``[about.sources]``; what could not be sourced is 0 and says so in ``[about.missing]``, and is never guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from codriver.catalogue.store import default_root
from codriver.core.config import load, setting
from codriver.core.errors import BadConfigValue, MissingFile, UnknownEntry

HOST = "host"


@dataclass(frozen=True)
class About:
    soc: str = setting("", "What it is, as its maker calls it.")
    note: str = setting("", "What a reader must know before believing the figures.")
    sources: dict[str, str] = setting({}, "Where each figure was read: the key of the figure, and an address.")
    missing: dict[str, str] = setting({}, "Figures that are left out: the key, and why.")


@dataclass(frozen=True)
class Memory:
    total_gb: float = setting(0.0, "Memory in GB (10^9 bytes); 0 when not known.", least=0)
    usable_gb: float = setting(0.0, "What programs can have of it; 0 when not known.", least=0)
    bandwidth_gbps: float = setting(0.0, "Bandwidth in GB/s: the bus's for a data sheet, a read's for host.", least=0)


@dataclass(frozen=True)
class Cpu:
    cores: int = setting(0, "Cores that run applications; 0 when not known.", least=0)
    ghz: float = setting(0.0, "Highest clock in GHz; 0 when not known.", least=0)
    int8_ops_per_cycle: float = setting(
        0.0, "Multiplications and additions of int8 that one core does in a cycle; 0 when not known.", least=0
    )
    int8_gops: float = setting(
        0.0, "10^9 int8 operations a second of all cores; 0: cores × ghz × int8_ops_per_cycle.", least=0
    )
    fp16_gflops: float = setting(0.0, "10^9 fp16 operations a second of all cores, where measured.", least=0)
    fp32_gflops: float = setting(0.0, "10^9 fp32 operations a second of all cores, where measured.", least=0)
    flags: tuple[str, ...] = setting((), "What its instruction set has beyond the basic one.")

    @property
    def peak_gops(self) -> float:
        return self.int8_gops or self.cores * self.ghz * self.int8_ops_per_cycle


@dataclass(frozen=True)
class Accelerator:
    kind: str = setting("", "What it is.")
    int8_tops: float = setting(0.0, "10^12 int8 operations a second; 0 when not known.", least=0)
    fp8_tflops: float = setting(0.0, "10^12 fp8 operations a second; 0 when not known.", least=0)
    fp16_tflops: float = setting(0.0, "10^12 fp16 operations a second; 0 when not known.", least=0)


@dataclass(frozen=True)
class Power:
    """The thermal model's parameters (``thermal.py``). Resistance and capacity belong to the cooling, not to the chip:
    those of your box are yours to measure (``codriver targets sustain``).
    """

    budget_w: float = setting(0.0, "Power that it may take for long; 0 when not known.", least=0)
    idle_w: float = setting(0.0, "Power without a load; 0 when not known.", least=0)
    throttle_c: float = setting(0.0, "Temperature from which it slows down; 0 when not known.", least=0)
    resistance_k_per_w: float = setting(0.0, "Thermal resistance to the air; 0 when not known.", least=0)
    capacity_j_per_k: float = setting(0.0, "Heat capacity; 0 when not known.", least=0)


@dataclass(frozen=True)
class Runtimes:
    usable: tuple[str, ...] = setting(("llama_cpp",), "Engines of Codriver that run there.")
    why_not: dict[str, str] = setting(
        {}, "Runtimes that cannot be used or checked from here: the name, and what is missing."
    )


@dataclass(frozen=True)
class Step:
    """One row of the table of actions: it holds when the temperature is within ``margin_c`` of throttling, or the power
    that may be taken is at most ``power_share`` of the budget.
    """

    name: str = setting("", "What the row is called.")
    margin_c: float = setting(0.0, "Degrees below throttling from which it holds; below 0: never.")
    power_share: float = setting(0.0, "Share of the power budget up to which it holds.", least=0, most=1)
    artifact: str = setting("full", "Which artifact answers: full, smaller, or none.")
    threads_share: float = setting(1.0, "Share of the threads that may be used.", least=0, most=1)
    cadence: float = setting(1.0, "Periodic work is done every so many of its periods; 0: not at all.", least=0)


@dataclass(frozen=True)
class Actions:
    steps: tuple[dict[str, Any], ...] = setting((), "Rows from the mildest to the hardest; empty: the usual table.")


@dataclass(frozen=True)
class Target:
    """A profile. ``name``: a file's without its ending."""

    about: About
    memory: Memory
    cpu: Cpu
    accelerator: Accelerator
    power: Power
    runtimes: Runtimes
    actions: Actions
    name: str = ""

    def figures(self) -> Iterator[tuple[str, float]]:
        """Every figure that the profile has, as ``("memory.total_gb", 16.0)``."""
        for section in ("memory", "cpu", "accelerator", "power"):
            for field in dataclasses.fields(getattr(self, section)):
                value = getattr(getattr(self, section), field.name)
                if isinstance(value, (int, float)) and value:
                    yield f"{section}.{field.name}", float(value)

    def why_not(self, runtime: str) -> str | None:
        """Why a runtime cannot be used on it, as a sentence; ``None`` when it can."""
        if runtime in self.runtimes.usable:
            return None
        return self.runtimes.why_not.get(runtime, "the profile does not name it")

    def need_runtime(self, runtime: str) -> None:
        """Errors: :class:`BadConfigValue` with what is missing."""
        if (reason := self.why_not(runtime)) is not None:
            raise BadConfigValue(f"The target {self.name} cannot be served by {runtime}: {reason}.", param="target")

    def need(self, key: str) -> float:
        """A figure that something depends on. Errors: :class:`BadConfigValue` naming the key and why it is missing."""
        section, _, name = key.partition(".")
        value = float(getattr(getattr(self, section), name))
        if not value:
            why = self.about.missing.get(key, "the profile does not have it")
            raise BadConfigValue(f"The target {self.name} has no '{key}': {why}.", param=key)
        return value


@dataclass(frozen=True)
class _File:
    """What a profile's file holds."""

    about: About
    memory: Memory
    cpu: Cpu
    accelerator: Accelerator
    power: Power
    runtimes: Runtimes
    actions: Actions


def shipped() -> list[str]:
    """The names of the profiles that come with the package."""
    found = (entry.name for entry in files("codriver.optimize.targets").iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def home() -> Path:
    """Where what was measured on this machine is kept."""
    return default_root() / "targets"


def find_target(name: str) -> Target:
    """A shipped profile, ``host``, or a TOML file by its path. Errors: :class:`MissingFile` (``host`` before it was
    measured, a path where nothing is), :class:`UnknownEntry`, and those of ``core.config.load``.
    """
    if name == HOST:
        file = home() / "host.toml"
        if not file.exists():
            raise MissingFile("This machine was not measured yet: codriver targets measure.")
        return read_target(file, HOST)
    if name.endswith(".toml") or "/" in name:
        file = Path(name)
        # What is called host is this machine, and a file that somebody gave that name is not.
        return read_target(file, file.name if file.stem == HOST else file.stem)
    if name not in shipped():
        raise UnknownEntry(f"There is no target '{name}'. Known: {', '.join([HOST, *shipped()])}, or a TOML file.")
    return read_target(Path(str(files("codriver.optimize.targets").joinpath(f"{name}.toml"))), name)


def read_target(file: Path, name: str) -> Target:
    """Errors: those of ``core.config.load``: a missing file, an unknown key, a bad value."""
    made = load(_File, file)
    return Target(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)}, name=name)
