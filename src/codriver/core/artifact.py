"""What optimize makes, fleet moves and engines load: files with their hashes, and what was measured of them.

An artifact is a folder with ``artifact.json`` beside its files. The rules kept: the manifest is written last, so that a
folder without one is no artifact; nothing without a measured card is one either.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from .errors import BadModelFile, MissingFile
from .writing import writing

MANIFEST = "artifact.json"
_VERSION = 1
_PIECE_BYTES = 1 << 20


class ArtifactFile(msgspec.Struct, frozen=True):
    """``name`` within the folder; ``format`` as its engine knows it (``gguf``, ``onnx``)."""

    name: str
    format: str
    size_bytes: int
    sha256: str


class Measured(msgspec.Struct, frozen=True):
    """One figure of the card. ``n``: observations; ``low`` and ``high``: its 95 % interval, where it has one.
    ``samples``: the observations themselves in their order, where they are kept.
    """

    metric: str
    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    note: str = ""
    samples: tuple[float, ...] = ()

    @property
    def predicted(self) -> bool:
        """Whether a model of the target says so, and nobody observed it: the note tells for what, and how wrong."""
        return self.note.startswith("predicted")


class Artifact(msgspec.Struct, frozen=True):
    """``target``: the profile that it was made for. ``lineage``: what it was made from and how, in order. ``licence``:
    that of the weights, as their source states it.
    """

    name: str
    files: tuple[ArtifactFile, ...]
    bits_per_weight: float
    target: str
    lineage: tuple[str, ...]
    licence: str
    card: tuple[Measured, ...]
    version: int = _VERSION


def sha256_of(file: Path) -> str:
    """Errors: ``OSError``."""
    sums = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            sums.update(piece)
    return sums.hexdigest()


def save_artifact(artifact: Artifact, folder: Path) -> Path:
    """Write the manifest, whole or not at all. Errors: ``ValueError`` for one without a measured card; those of
    ``writing``.
    """
    if not artifact.card:
        raise ValueError("an artifact needs a measured card")
    file = folder / MANIFEST
    part = file.with_name(file.name + ".part")
    with writing(file, part):
        part.write_bytes(msgspec.json.format(msgspec.json.encode(artifact), indent=1) + b"\n")
        part.replace(file)
    return file


def load_artifact(folder: Path, check: bool = True) -> Artifact:
    """``check``: hash the files. Errors: :class:`MissingFile`, :class:`BadModelFile` naming the file."""
    try:
        artifact = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Artifact)
    except FileNotFoundError:
        raise MissingFile(f"{folder} is no artifact: it has no {MANIFEST}.") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadModelFile(f"The manifest {folder / MANIFEST} is not valid: {error}.") from error
    for file in artifact.files:
        path = folder / file.name
        if "/" in file.name or file.name in ("", ".", ".."):
            raise BadModelFile(f"The manifest {folder / MANIFEST} names a file outside its folder: {file.name[:80]!r}.")
        if not path.is_file():
            raise MissingFile(f"The artifact {folder} lacks its file {file.name}.")
        if path.stat().st_size != file.size_bytes or (check and sha256_of(path) != file.sha256):
            raise BadModelFile(f"The file {path} is not the one that was measured: its sha256 differs.")
    return artifact
