"""The declared prefix (system prompt and tools): computed once, kept in every slot, and on disk across restarts.

A file's name is a digest of everything its content depends on: model file, llama.cpp build, context and KV settings,
the prefix's tokens. Beside it lies a seal with the file's own sha256. The rule kept here: a file that is cut, damaged,
of another build or of another prefix is never loaded; it is deleted and computed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from codriver.core.errors import EngineUnavailable

from .llama_cpp_server import LlamaServer

_SUFFIX, _SEAL = ".kv", ".seal"


class Seal(msgspec.Struct, frozen=True):
    """What is known of a kept file: its key, size and sha256, and how many prefix tokens it holds."""

    key: str
    sha256: str
    bytes: int
    tokens: int


@dataclass(frozen=True)
class PrefixState:
    """``tokens`` in every slot, saved as ``file`` in the slot folder; ``restored``: from disk, nothing was computed."""

    tokens: int = 0
    file: str = ""
    restored: bool = False


class PrefixFolder:
    """Kept prefixes on disk, at most ``keep`` of them; the one used longest ago goes first."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, key: str, tokens: int) -> str | None:
        """The file name of a sound kept prefix; an unsound one is deleted."""
        path, seal_path = self._paths(key)
        try:
            seal = msgspec.json.decode(seal_path.read_bytes(), type=Seal)
            sound = seal.key == key and seal.tokens == tokens and path.stat().st_size == seal.bytes
            if sound and _sha256(path) == seal.sha256:
                os.utime(path)
                return path.name
        except (OSError, msgspec.DecodeError):
            pass
        self.drop(key)
        return None

    def adopt(self, written: str, key: str, tokens: int) -> str:
        """Take a freshly written file in under its key; its name then. The file comes first, its seal last."""
        source = self.folder / written
        path, seal_path = self._paths(key)
        seal = Seal(key, _sha256(source), source.stat().st_size, tokens)
        source.replace(path)
        draft = seal_path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_bytes(msgspec.json.encode(seal))
        draft.replace(seal_path)
        self._prune()
        return path.name

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


async def prefix_tokens(server: LlamaServer, bodies: tuple[dict[str, Any], dict[str, Any]]) -> list[int]:
    """The tokens that two conversations with nothing but the prefix in common share."""
    lists = []
    for body in bodies:
        text = (await server.call("POST", "/apply-template", body))["prompt"]
        question = {"content": text, "add_special": True, "parse_special": True}
        lists.append((await server.call("POST", "/tokenize", question))["tokens"])
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*lists, strict=False))
    return [int(token) for token, _ in pairs]


async def warm(
    server: LlamaServer, tokens: list[int], slots: int, kept: tuple[PrefixFolder, str] | None
) -> PrefixState:
    """Put the prefix into every slot, from disk where it is kept, else computed once and saved."""
    folder, key = kept or (PrefixFolder(server.slot_folder, 1), "prefix")
    if name := folder.find(key, len(tokens)):
        if await restore(server, name, range(slots), len(tokens)):
            return PrefixState(len(tokens), name, restored=True)
        folder.drop(key)
    body = {"prompt": tokens, "n_predict": 0, "id_slot": 0, "cache_prompt": True}
    await server.call("POST", "/completion", body)
    draft = f"{key}.{os.getpid()}.tmp"
    try:
        saved = int((await server.call("POST", "/slots/0?action=save", {"filename": draft}))["n_saved"])
        name = folder.adopt(draft, key, saved)
    finally:
        with contextlib.suppress(OSError):
            (folder.folder / draft).unlink()
    await restore(server, name, range(1, slots), saved)
    return PrefixState(saved, name)


async def restore(server: LlamaServer, name: str, slots: Iterable[int], tokens: int) -> bool:
    """Load the saved prefix into ``slots``; False when llama.cpp will not have it."""
    for slot in slots:
        try:
            done = await server.call("POST", f"/slots/{slot}?action=restore", {"filename": name})
        except EngineUnavailable:
            return False
        if done["n_restored"] != tokens:
            return False
    return True
