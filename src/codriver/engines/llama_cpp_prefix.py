"""The declared prefix (system prompt and tools): computed once, kept in every slot, and on disk across restarts.

A file's name is a digest of everything its content depends on: model file, llama.cpp build, context and KV settings,
the prefix's tokens. Beside it lies a seal with the file's own sha256. The rule kept here: a file that is cut, damaged,
of another build or of another prefix is never loaded; it is deleted and computed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from codriver.core.errors import EngineUnavailable

from .llama_cpp_server import LlamaServer
from .llama_cpp_state import State, hold, restore, save

_SUFFIX, _SEAL = ".kv", ".seal"
_FILE = f"prefix{_SUFFIX}"


class Seal(msgspec.Struct, frozen=True):
    """What is known of a kept file: its key, size and sha256, and how many prefix tokens it holds."""

    key: str
    sha256: str
    bytes: int
    tokens: int


@dataclass(frozen=True)
class PrefixState:
    """``tokens`` in the first ``slots`` slots, saved as ``state`` (none: it could not be saved);
    ``restored``: from disk, nothing was computed.
    """

    tokens: int = 0
    state: State | None = None
    slots: int = 1
    restored: bool = False


class PrefixFolder:
    """Kept prefixes on disk, at most ``keep`` of them; the one used longest ago goes first."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, key: str, tokens: int, into: Path) -> State | None:
        """Copy a sound kept prefix to ``into``; an unsound one is deleted. The copy is what is checked."""
        path, seal_path = self._paths(key)
        try:
            seal = msgspec.json.decode(seal_path.read_bytes(), type=Seal)
            if seal.key == key and seal.tokens == tokens and path.stat().st_size == seal.bytes:
                shutil.copyfile(path, into)
                if _sha256(into) == seal.sha256:
                    os.utime(path)
                    return State.of(into, tokens)
            self.drop(key)
        except msgspec.DecodeError:
            self.drop(key)
        except OSError:
            pass  # none is kept, or there is no room for the copy
        into.unlink(missing_ok=True)
        return None

    def adopt(self, source: Path, key: str, tokens: int) -> None:
        """Keep a copy of a freshly written file under its key. The file comes first, its seal last."""
        path, seal_path = self._paths(key)
        seal = Seal(key, _sha256(source), source.stat().st_size, tokens)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            shutil.copyfile(source, draft)
            draft.replace(path)
            draft.write_bytes(msgspec.json.encode(seal))
            draft.replace(seal_path)
        finally:
            draft.unlink(missing_ok=True)
        self._prune()

    def drop(self, key: str) -> None:
        for path in self._paths(key):
            with contextlib.suppress(OSError):
                path.unlink()

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / (key + _SUFFIX), self.folder / (key + _SEAL)

    def _prune(self) -> None:
        kept = sorted(self.folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[self._keep :]:
            self.drop(path.stem)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prefix_key(model: Path, settings: list[Any], tokens: list[int]) -> str:
    """A name for the state of ``tokens`` under this model file (size, time of change, header) and ``settings``."""
    status = model.stat()
    with model.open("rb") as file:
        head = hashlib.sha256(file.read(1 << 16)).hexdigest()
    facts = [status.st_size, status.st_mtime_ns, head, settings, tokens]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]


async def warm(
    server: LlamaServer, tokens: list[int], slots: int, kept: tuple[PrefixFolder, str] | None
) -> PrefixState:
    """Put the prefix into every slot, from disk where it is kept, else computed once and saved.

    Where it cannot be saved, only slot 0 holds it. Errors: :class:`EngineUnavailable`.
    """
    path = server.slot_folder / _FILE
    if kept and (fetched := kept[0].fetch(kept[1], len(tokens), path)):
        if await restore(server, fetched, range(slots)):
            return PrefixState(len(tokens), fetched, slots, restored=True)
        kept[0].drop(kept[1])
    await hold(server, 0, tokens, [])
    try:
        state = await save(server, 0, _FILE)
    except (EngineUnavailable, OSError):
        return PrefixState(len(tokens))
    if kept:
        with contextlib.suppress(OSError):  # computed again at the next start, then
            kept[0].adopt(path, kept[1], state.tokens)
    everywhere = await restore(server, state, range(1, slots))
    return PrefixState(state.tokens, state, slots if everywhere else 1)
