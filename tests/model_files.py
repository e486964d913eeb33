"""Where tests find real weights: a folder of the user's, or the model catalogue, which fetches what is small.

``CODRIVER_TEST_MODELS`` names a folder with the files below; otherwise each comes from the catalogue's store
(``CODRIVER_HOME``) and is pulled once when it is missing and small. Nothing here is part of the repository.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from codriver.catalogue import Catalogue, Store, pull
from codriver.core.errors import CodriverError

ENTRIES = {
    "smollm2.gguf": "smollm2-135m-instruct-q4_1",
    "qwen.gguf": "qwen2.5-coder-1.5b-instruct-q4_k_m",
    "minilm.onnx": "all-minilm-l6-v2-int8",
    "minilm-tokenizer.json": "all-minilm-l6-v2-tokenizer",
}
LARGEST_PULL_BYTES = 200 << 20
_failed: dict[str, str] = {}


def find(name: str) -> tuple[Path | None, str]:
    """The file's path, or ``None`` and why there is none. A pull that failed is not tried again in the same run."""
    folder = os.environ.get("CODRIVER_TEST_MODELS")
    if folder and (own := Path(folder) / name).is_file():
        return own, ""
    if name not in ENTRIES:
        return None, f"needs the real weights {name} in the folder $CODRIVER_TEST_MODELS"
    if name in _failed:
        return None, _failed[name]
    entry, store = Catalogue.load().entry(ENTRIES[name]), Store()
    if store.state(entry) == "present":
        return store.path(entry), ""
    if entry.bytes > LARGEST_PULL_BYTES:
        return None, f"needs {entry.bytes >> 20} MB of weights: codriver models pull {entry.name}"
    try:
        # In a thread of its own: fixtures that ask may already run in an event loop.
        with ThreadPoolExecutor(1) as alone:
            return alone.submit(lambda: asyncio.run(pull(entry, store))).result(), ""
    except CodriverError as error:
        _failed[name] = f"needs the real weights {entry.name}, which could not be fetched: {error.message}"
        return None, _failed[name]
