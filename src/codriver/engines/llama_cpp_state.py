"""Computed states in llama.cpp's slots: which tokens two prompts share, cutting a slot back to them, saving, restoring.

Measured on SmolLM2-135M with two cores: 186 tokens took 650 ms and more to compute, 7 ms to save and 3 ms to restore
(4.3 MB); 32 tokens 158, 2.3 and 1.4 ms; 1,024 tokens 4,300, 23 and 11 ms (24 MB). The rule kept here: only a file that
is as it was written is loaded. llama.cpp refuses most damaged ones, but one that is cut can end the whole process by an
assertion, and it does not see changed numbers at all.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codriver.core.errors import EngineUnavailable

from .llama_cpp_server import LlamaServer


@dataclass(frozen=True)
class State:
    """``tokens`` computed tokens in a file of the slot folder; ``stamp``: whether it was written to since."""

    file: str
    tokens: int
    stamp: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path, tokens: int) -> State:
        """Of a file that has just been written. Errors: ``OSError``."""
        return cls(path.name, tokens, _stamp(path))


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_ctime_ns


async def shared_tokens(server: LlamaServer, bodies: tuple[dict[str, Any], dict[str, Any]]) -> list[int]:
    """The tokens that the prompts of two chat requests begin with in common. Errors: :class:`EngineUnavailable`."""
    lists = []
    for body in bodies:
        text = (await server.call("POST", "/apply-template", body))["prompt"]
        question = {"content": text, "add_special": True, "parse_special": True}
        lists.append((await server.call("POST", "/tokenize", question))["tokens"])
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*lists, strict=False))
    return [int(token) for token, _ in pairs]


async def hold(server: LlamaServer, slot: int, tokens: list[int], lora: list[dict[str, Any]]) -> None:
    """Make the slot hold these tokens and no more; what of them it holds already is not computed again, but the last.

    Errors: :class:`EngineUnavailable`.
    """
    body = {"prompt": tokens, "n_predict": 0, "id_slot": slot, "cache_prompt": True, "lora": lora}
    await server.call("POST", "/completion", body)


async def save(server: LlamaServer, slot: int, name: str) -> State:
    """Write what the slot holds to a file of that name in the slot folder. No part of one is left.

    Errors: :class:`EngineUnavailable`, ``OSError``.
    """
    path = server.slot_folder / name
    try:
        done = await server.call("POST", f"/slots/{slot}?action=save", {"filename": name})
        return State.of(path, int(done["n_saved"]))
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


async def restore(server: LlamaServer, state: State, slots: Iterable[int]) -> bool:
    """Load a saved state into ``slots``; False when it is not as it was written, or llama.cpp will not have it."""
    for slot in slots:
        try:
            if _stamp(server.slot_folder / state.file) != state.stamp:
                return False
            done = await server.call("POST", f"/slots/{slot}?action=restore", {"filename": state.file})
        except (EngineUnavailable, OSError):
            return False
        if done["n_restored"] != state.tokens:
            return False
    return True
