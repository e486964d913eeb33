"""The contracts import with the standard library and msgspec alone, in an environment that holds nothing else."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[3] / "src"
CORE = SRC / "codriver" / "core"
MODULES = sorted(
    ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__") for file in CORE.rglob("*.py")
)


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds msgspec and nothing else, not even pip."""
    home = tmp_path_factory.mktemp("clean")
    python = home / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--no-input", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-deps", f"msgspec=={version('msgspec')}"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        pytest.skip(f"pip cannot install msgspec into a clean environment: {lines[-1]}")
    return python


def run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in the clean environment with the project's source on the path, and no other."""
    code = f"import sys; sys.path.insert(0, {str(SRC)!r})\n{code}"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)


def test_the_environment_holds_msgspec_only(clean_python: Path) -> None:
    listing = run(clean_python, "from importlib.metadata import distributions as d\nprint([i.name for i in d()])")
    assert listing.stdout.strip() == "['msgspec']", listing.stderr


@pytest.mark.parametrize("module", MODULES)
def test_every_module_of_core_imports(clean_python: Path, module: str) -> None:
    done = run(clean_python, f"import {module}")
    assert done.returncode == 0, done.stderr


def test_core_loads_no_other_room(clean_python: Path) -> None:
    code = "\n".join(f"import {module}" for module in MODULES)
    done = run(clean_python, f"{code}\nprint(sorted({{n.split('.')[1] for n in sys.modules if n[:9] == 'codriver.'}}))")
    assert done.stdout.strip() == "['core']", done.stderr
