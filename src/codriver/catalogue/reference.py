"""What a user writes where a model is wanted: a catalogue name, ``file:PATH``, or the path of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from codriver.core.errors import MissingFile

from .catalogue import Catalogue
from .entry import CatalogueEntry
from .store import Store, hash_file


@dataclass(frozen=True)
class ModelFile:
    """A file on this machine. ``entry`` is None for a file of the user's own."""

    name: str
    path: Path
    entry: CatalogueEntry | None = None

    @cached_property
    def sha256(self) -> str:
        """The pinned hash, or that of the file: then the first use reads all of it (about a second per gigabyte)."""
        return self.entry.sha256 if self.entry is not None else hash_file(self.path)


def resolve(reference: str, catalogue: Catalogue, store: Store) -> ModelFile:
    """The file that ``reference`` means; a catalogue entry's is the pinned one, byte for byte.

    Raises ``MissingFile`` (not pulled, or no such path), ``ChecksumMismatch`` (changed since it was pulled) and
    ``UnknownEntry`` (neither a path nor a known name).
    """
    if reference in catalogue.names():
        entry = catalogue.entry(reference)
        return ModelFile(entry.name, store.checked(entry), entry)
    if reference.startswith("file:"):
        return _own(reference.removeprefix("file:").removeprefix("//"))
    if reference.endswith(".gguf") or reference.startswith(("/", "./", "../", "~")):
        return _own(reference)
    entry = catalogue.entry(reference)  # raises, with the nearest names
    return ModelFile(entry.name, store.checked(entry), entry)


def _own(text: str) -> ModelFile:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise MissingFile(f"There is no model file {path}. Check the path, or see: codriver models list", param=text)
    return ModelFile(path.stem, path)
