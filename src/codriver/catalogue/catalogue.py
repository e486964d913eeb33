"""The entries a machine knows: those shipped in ``models.toml`` and the user's own.

A user's entry may repeat a shipped name only with the same sha256 (to give other sources, such as a mirror): a shipped
pin never changes silently.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from codriver.core.errors import BadConfigValue, MissingFile, UnknownConfigKey, UnknownEntry

from .entry import CatalogueEntry, parse_entry


def default_extra() -> Path:
    """The folder of the user's own entries: ``$CODRIVER_HOME/catalogue.d``, or one in the user's config folder."""
    if home := os.environ.get("CODRIVER_HOME"):
        return Path(home).expanduser() / "catalogue.d"
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "codriver" / "catalogue.d"


class Catalogue:
    """Pinned entries by name."""

    def __init__(self, entries: Mapping[str, CatalogueEntry]) -> None:
        self._entries = dict(entries)

    @classmethod
    def load(cls, extra: Path | None = None) -> Catalogue:
        """Shipped entries, then those of ``extra``: a TOML file, or a folder whose ``*.toml`` are read in name order.

        Without ``extra`` the user's own folder (:func:`default_extra`) is read where it exists.
        Raises ``MissingFile`` when ``extra`` does not exist; ``UnknownConfigKey``, ``BadConfigValue`` for the rest.
        """
        shipped = resources.files(__package__).joinpath("models.toml").read_text(encoding="utf-8")
        entries = {entry.name: entry for entry in _parse(shipped, "models.toml")}
        for path in _files(extra):
            for entry in _parse(_read(path), str(path)):
                known = entries.get(entry.name)
                if known is not None and known.sha256 != entry.sha256:
                    raise BadConfigValue(
                        f"{path}: the entry {entry.name!r} exists already with another sha256 ({known.sha256}). "
                        "Give yours another name.",
                        param="name",
                    )
                entries[entry.name] = entry
        return cls(entries)

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def __iter__(self) -> Iterator[CatalogueEntry]:
        return iter(self._entries.values())

    def entry(self, name: str) -> CatalogueEntry:
        """The entry called ``name``; ``UnknownEntry`` with the nearest names otherwise."""
        found = self._entries.get(name)
        if found is not None:
            return found
        near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known entries: {', '.join(self._entries)}."
        raise UnknownEntry(f"There is no catalogue entry called {name!r}. {hint}", param="name")


def _files(extra: Path | None) -> list[Path]:
    if extra is None:
        folder = default_extra()
        return sorted(folder.glob("*.toml")) if folder.is_dir() else []
    if extra.is_dir():
        return sorted(extra.glob("*.toml"))
    return [extra]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadConfigValue(f"{path} is not a UTF-8 text file: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        raise MissingFile(f"The catalogue file {path} cannot be read: {error.strerror}.") from error


def _parse(text: str, where: str) -> list[CatalogueEntry]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadConfigValue(f"{where} is not valid TOML: {error}.") from error
    for key in table:
        if key != "entry":
            raise UnknownConfigKey(f"{where}: unknown key {key!r}. Allowed: [[entry]] tables only.", param=key)
    rows = table.get("entry", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadConfigValue(f"{where}: write each entry as a [[entry]] table.", param="entry")
    entries = [parse_entry(row, where) for row in rows]
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise BadConfigValue(f"{where}: the name {entry.name!r} is used twice.", param="name")
        seen.add(entry.name)
    return entries
