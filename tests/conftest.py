"""Markers that skip themselves, and the places where tests find real inputs.

``gpu`` tests skip without an NVIDIA GPU. Real weights and recorded data are never part of the repository: a test asks
``model_file`` or ``shared_data`` for a path, and skips with the reason when it is not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import model_files

# As the llama_cpp engine does on few cores; here before any test imports the wheel.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("nvidia-smi"):
        return
    no_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU; nvidia-smi is not on this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("traces")`` is a path below the folder of recorded inputs beside the project."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("CODRIVER_TEST_DATA", ROOT.parent / "shared" / "data"))
        path = folder / name
        if not path.exists():
            pytest.skip(f"needs {name} in ../shared/data or in $CODRIVER_TEST_DATA")
        return path

    return find


@pytest.fixture(scope="session")
def model_file() -> Callable[[str], Path]:
    """``model_file("smollm2.gguf")`` is a file of real weights (``tests/model_files.py``), fetched if small."""

    def find(name: str) -> Path:
        path, reason = model_files.find(name)
        if path is None:
            pytest.skip(reason)
        return path

    return find
