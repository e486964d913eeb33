"""Where tests find real weights: a folder of the user's, or the model catalogue, which fetches what is small.

``CODRIVER_TEST_MODELS`` names a folder with the files below; otherwise each comes from the catalogue's store
(``CODRIVER_HOME``, as it was when the run began) and is pulled once when it is missing and small. Nothing here is part
of the repository. The pull is a process of its own: its output, its event loop and its own child processes do not
touch the run, and of two runs at once the store's lock lets one fetch and the other take what it fetched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from codriver.catalogue import Catalogue, Store
from codriver.core.errors import ChecksumMismatch, MissingFile

ENTRIES = {
    "smollm2.gguf": "smollm2-135m-instruct-q4_1",
    "qwen.gguf": "qwen2.5-coder-1.5b-instruct-q4_k_m",
    "minilm.onnx": "all-minilm-l6-v2-int8",
    "minilm-tokenizer.json": "all-minilm-l6-v2-tokenizer",
    "yolov4-tiny.weights": "yolov4-tiny",
    "yolov4-tiny.cfg": "yolov4-tiny-cfg",
}
LARGEST_PULL_BYTES = 200 << 20
PULL_LIMIT_S = 900
# Tests set CODRIVER_HOME for themselves, and may ask for weights while it is set.
_STORE, _ENVIRONMENT = Store(), dict(os.environ)
_failed: dict[str, str] = {}


def find(name: str) -> tuple[Path | None, str]:
    """The file's path, or ``None`` and why there is none. A pull that failed is not tried again in the same run."""
    folder = _ENVIRONMENT.get("CODRIVER_TEST_MODELS")
    if folder and (own := Path(folder) / name).is_file():
        return own, ""
    if name not in ENTRIES:
        return None, f"needs the real weights {name} in the folder $CODRIVER_TEST_MODELS"
    if name in _failed:
        return None, _failed[name]
    entry = Catalogue.load().entry(ENTRIES[name])
    try:
        return _STORE.checked(entry), ""
    except (MissingFile, ChecksumMismatch):
        if entry.bytes > LARGEST_PULL_BYTES:
            return None, f"needs {entry.bytes >> 20} MB of weights: codriver models pull {entry.name}"
    if why := _pull(entry.name):
        _failed[name] = f"needs the real weights {entry.name}, which could not be fetched: {why}"
        return None, _failed[name]
    return _STORE.checked(entry), ""


def _pull(entry: str) -> str:
    """Empty when the entry is here now; otherwise the last thing that was said."""
    command = [sys.executable, "-m", "codriver", "models", "pull", entry]
    try:
        done = subprocess.run(
            command,
            check=False,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PULL_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {PULL_LIMIT_S} s"
    said = done.stderr.strip().splitlines() or ["nothing was said"]
    return "" if done.returncode == 0 else said[-1]
