"""A llama of two layers, cut out of a real one: with a real tokenizer, and small enough to be rounded in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codriver.optimize.gguf_file import Changes, GgufFile, rewrite

LAYERS = 2


@pytest.fixture(scope="session")
def short_model(model_file: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = GgufFile(model_file("smollm2.gguf"))
    later = frozenset(t.name for t in source if t.name.startswith("blk.") and int(t.name.split(".")[1]) >= LAYERS)
    file = tmp_path_factory.mktemp("short") / "short.gguf"
    rewrite(source, file, Changes({}, {"llama.block_count": LAYERS}, later), source.raw)
    return file


@pytest.fixture(scope="session")
def sentences() -> str:
    """Words enough for a few windows of 512 tokens, none of them from a licensed text."""
    who = ("The driver", "A passenger", "The navigation", "An engineer", "The old mechanic", "My neighbour")
    does = ("asks for", "forgets", "repairs", "looks at", "writes about", "waits for")
    what = (
        "the window",
        "a charging station",
        "the tyre pressure",
        "two maps of the north",
        "a quiet road",
        "the radio",
    )
    when = ("in the morning", "after the rain", "before the tunnel", "every second week", "at 21 degrees", "by mistake")
    told = [
        f"{who[a]} {does[b]} {what[c]} {when[(a + b + 2 * c) % 6]}."
        for a in range(6)
        for b in range(6)
        for c in range(6)
    ]
    return " ".join(told[(7 * at) % len(told)] for at in range(9 * len(told)))
