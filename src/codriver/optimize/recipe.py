"""A recipe: passes that change a model one after the other, before its weights are rounded.

A pass is a frozen dataclass whose fields are its settings; it reads one model file and writes another of the same
format, in plain types (F32, F16 in GGUF). In TOML::

    seed = 7

    [[pass]]
    use = "prune-blocks"
    share = 0.1

The rules kept: the same file, recipe, text and seed give the same result; a pass that was finished is not done again
after an interrupt, and one that was not goes on from what it left in its scratch folder.
"""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from codriver.core.artifact import sha256_of
from codriver.core.config import build
from codriver.core.errors import BadConfigValue, MissingFile
from codriver.core.registry import Registry

from .evaluate import Run

_HERE = "codriver.optimize.passes"
_TRAINING = ("distil", "lora-recover", "qat")
PASSES = Registry(
    "pass",
    "codriver.passes",
    {
        "awq": f"{_HERE}.awq:Awq",
        "cross-layer-equalise": "codriver.optimize.vision.equalise:Equalise",
        "distil": f"{_HERE}.distil:Distil",
        "dynamic-int8": "codriver.optimize.vision.static:DynamicInt8",
        "fold": "codriver.optimize.vision.prepare:Fold",
        "fp8": f"{_HERE}.fp8:Fp8",
        "lora-recover": f"{_HERE}.lora_recover:LoraRecover",
        "nearest": f"{_HERE}.nearest:Nearest",
        "prune-blocks": f"{_HERE}.prune_blocks:PruneBlocks",
        "prune-channels": f"{_HERE}.prune_channels:PruneChannels",
        "prune-heads": f"{_HERE}.prune_heads:PruneHeads",
        "qat": f"{_HERE}.qat:Qat",
        "rotate": f"{_HERE}.rotate:Rotate",
        "smooth": f"{_HERE}.smooth:Smooth",
        "sparsify": f"{_HERE}.sparsify:Sparsify",
        "static-int8": "codriver.optimize.vision.static:StaticInt8",
    },
    needs={name: (("torch",), "optimize-torch") for name in _TRAINING},
)


@dataclass(frozen=True)
class Workshop:
    """What a pass may use. ``text`` shows what goes into a language model, ``pictures`` what goes into a vision model.
    ``scratch`` is a folder of the pass's own, kept until the pass is finished. ``run`` names a step that begins.
    ``reference`` is the model that the recipe's first pass was given.
    """

    scratch: Path
    run: Callable[[str], Run]
    text: str = ""
    pictures: Sequence[Path] = ()
    seed: int = 0
    reference: Path | None = None


class Pass(Protocol):
    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        """Write ``target`` from ``source``; what was done, as a phrase for the lineage. Errors name file and tensor."""


@dataclass(frozen=True)
class Recipe:
    """``passes`` with the names that they go by, in order."""

    passes: tuple[tuple[str, Pass], ...] = ()
    seed: int = 0

    def run(self, source: Path, work: Path, shop: Workshop) -> tuple[Path, tuple[str, ...]]:
        """The last pass's file, in ``work``, and what each pass did. ``source`` itself for a recipe without passes.
        ``shop``: its scratch folder, seed and reference are set here.
        """
        if not self.passes:
            return source, ()
        made, told = source, []
        key = f"{sha256_of(source)} {self.seed} {_hash(shop.text)} {[str(file) for file in shop.pictures]}"
        for name, one in self.passes:
            key = _hash(f"{key} {name} {one!r}")
            file = work / f"{name}-{key[:16]}{source.suffix}"
            note = file.with_suffix(".told")
            if not file.exists():
                scratch = file.with_suffix(".scratch")
                scratch.mkdir(parents=True, exist_ok=True)
                part = scratch / f"made{source.suffix}"
                own = replace(shop, scratch=scratch, seed=self.seed, reference=source)
                note.write_text(one.apply(made, part, own))
                part.replace(file)
                shutil.rmtree(scratch)
            made = file
            told.append(f"{name}: {note.read_text()}")
        return made, tuple(told)


NO_PASSES = Recipe()


def load_recipe(file: Path) -> Recipe:
    """Errors: :class:`MissingFile`; :class:`BadConfigValue`, :class:`UnknownConfigKey` and :class:`UnknownEntry` naming
    the key or the pass.
    """
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFile(f"The recipe {file} does not exist.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfigValue(f"The recipe {file} is not valid TOML: {error}.") from None
    return recipe_of(told, str(file))


def recipe_of(told: Mapping[str, Any], called: str) -> Recipe:
    """From a table as TOML has it. Errors: as :func:`load_recipe`; ``called`` names the recipe in them."""
    seed, tables = told.get("seed", 0), told.get("pass", [])
    strays = sorted(set(told) - {"seed", "pass"})
    if strays or not isinstance(seed, int) or not isinstance(tables, list):
        what = f"it does not know '{strays[0]}'" if strays else "'seed' is a whole number, and 'pass' a list of tables"
        raise BadConfigValue(f"The recipe {called} is not valid: {what}.", param="recipe")
    return Recipe(tuple(_pass(table, called) for table in tables), seed)


def _pass(table: Any, called: str) -> tuple[str, Pass]:
    if not isinstance(table, dict) or not isinstance(table.get("use"), str):
        raise BadConfigValue(f'A pass of the recipe {called} does not say which: use = "NAME".', param="use")
    name = table["use"]
    settings = {key: value for key, value in table.items() if key != "use"}
    made: Pass = build(PASSES.load(name), settings, name)
    return name, made


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
