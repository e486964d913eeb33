"""The structure gate, rule by rule, on small trees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import structure

ROOT = Path(__file__).resolve().parents[3]
TABLE = """
[tool.structure]
source = "src/pack"
limits_only = ["tools"]
max_file_lines = 12
max_function_lines = 4
max_parameters = 2
max_interface_methods = 2
banned_names = ["utils", "Manager", "Impl"]

[tool.structure.floors]
core = 0
lower = 1
left = 2
right = 2

[tool.structure.only]
core = ["msgspec"]

[tool.structure.heavy]
numpy = ["left", "right/fast*"]
"""


@pytest.fixture
def tree(tmp_path: Path) -> structure.Rules:
    (tmp_path / "pyproject.toml").write_text(TABLE)
    return structure.Rules.read(tmp_path)


def found(root: Path, rules: structure.Rules, **files: str) -> list[str]:
    """Write ``files`` (``left__a`` is src/pack/left/a.py) and say what the gate reports."""
    for name, text in files.items():
        inside = name if name.startswith("__") else name.replace("__", "/")
        file = root / "src/pack" / f"{inside}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return [str(violation) for violation in structure.check(root, rules)[0]]


def test_imports_from_below_are_fine(tmp_path: Path, tree: structure.Rules) -> None:
    text = "import json\nfrom pack.core import a\nfrom ..lower import b\nfrom . import sibling\nimport aiohttp\n"
    assert found(tmp_path, tree, left__a=text) == []


@pytest.mark.parametrize(
    "text",
    [
        "from pack.left import x",
        "import pack.left.x",
        "from pack import left",
        "from ..left import x",
        "from .. import left",
        "from ..left.deep.er import x",
        "def f() -> None:\n    from ..left import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.left import x",
        "import importlib\nx = importlib.import_module('pack.left.x')",
        "x = __import__('pack.left')",
    ],
)
def test_an_import_from_above_is_found_wherever_it_stands(tmp_path: Path, tree: structure.Rules, text: str) -> None:
    (report,) = found(tmp_path, tree, lower__a=text)
    assert report.startswith("src/pack/lower/a.py:")
    assert report.endswith("'lower' (floor 1) imports 'left' from floor 2 above it")


def test_the_line_is_the_import_s(tmp_path: Path, tree: structure.Rules) -> None:
    (report,) = found(tmp_path, tree, lower__a="import json\n\n\nfrom ..left import (\n    x,\n    y,\n)\n")
    assert report.startswith("src/pack/lower/a.py:4: ")


def test_rooms_on_one_floor_never_import_each_other(tmp_path: Path, tree: structure.Rules) -> None:
    (report,) = found(tmp_path, tree, left__a="from pack.right import x\n")
    assert report == "src/pack/left/a.py:1: 'left' imports 'right' on the same floor (2)"


def test_a_nested_folder_belongs_to_its_room(tmp_path: Path, tree: structure.Rules) -> None:
    assert found(tmp_path, tree, left__deep__a="from ...left import b\nfrom ...core import c\n") == []
    (report,) = found(tmp_path, tree, left__deep__a="from ...right import b\n")
    assert "'left' imports 'right'" in report


def test_the_package_s_init_stays_light_and_its_main_may_start_anything(tmp_path: Path, tree: structure.Rules) -> None:
    (report,) = found(
        tmp_path, tree, __init__="from .core import a\nfrom .left import b\n", __main__="import pack.left"
    )
    assert report.startswith("src/pack/__init__.py:2: the package's __init__ imports 'left'")


def test_a_folder_without_a_floor_is_named(tmp_path: Path, tree: structure.Rules) -> None:
    (report,) = found(tmp_path, tree, attic__a="")
    assert report == "src/pack/attic/a.py:1: room 'attic' has no floor in [tool.structure.floors]"


def test_a_closed_room_imports_only_what_is_named(tmp_path: Path, tree: structure.Rules) -> None:
    (report,) = found(
        tmp_path, tree, core__a="import json\nimport msgspec.json\ndef f() -> None:\n    import aiohttp\n"
    )
    assert report == "src/pack/core/a.py:4: 'core' imports 'aiohttp'; it may use the standard library, msgspec only"


def test_a_heavy_dependency_stays_where_it_is_allowed(tmp_path: Path, tree: structure.Rules) -> None:
    heavy = "def f() -> None:\n    import numpy.linalg\n"
    (report,) = found(tmp_path, tree, left__a=heavy, right__fast_path=heavy, right__slow=heavy)
    assert report == "src/pack/right/slow.py:2: heavy dependency 'numpy' may be imported only in: left, right/fast*"


def test_a_long_file(tmp_path: Path, tree: structure.Rules) -> None:
    assert found(tmp_path, tree, left__a="x = 1\n" * 12) == []
    assert found(tmp_path, tree, left__a="x = 1\n" * 13) == ["src/pack/left/a.py:1: file has 13 lines, at most 12"]


def test_a_long_function(tmp_path: Path, tree: structure.Rules) -> None:
    assert found(tmp_path, tree, left__a="def f() -> None:\n" + "    x = 1\n" * 3) == []
    (report,) = found(tmp_path, tree, left__a="\nasync def f() -> None:\n" + "    x = 1\n" * 4)
    assert report == "src/pack/left/a.py:2: function 'f' has 5 lines, at most 4"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("def f(a, b, c): ...", 3),
        ("def f(a, /, b, *, c): ...", 3),
        ("class A:\n    def f(self, a, b, c): ...", 3),
        ("class A:\n    @staticmethod\n    def f(a, b, c): ...", 3),
        ("def f(a, b, *rest, **more): ...", 0),
        ("class A:\n    def f(self, a, b): ...", 0),
        ("class A:\n    @classmethod\n    def f(cls, a, b): ...", 0),
    ],
)
def test_parameters_are_counted_without_self(tmp_path: Path, tree: structure.Rules, text: str, count: int) -> None:
    reports = found(tmp_path, tree, left__a=text)
    assert len(reports) == bool(count)
    assert all(f"function 'f' has {count} parameters, at most 2" in report for report in reports)


@pytest.mark.parametrize("base", ["Protocol", "typing.Protocol", "Protocol[T]"])
def test_an_interface_with_too_many_methods(tmp_path: Path, tree: structure.Rules, base: str) -> None:
    body = "    def a(self): ...\n    def b(self): ...\n    async def c(self): ...\n    def _d(self): ...\n"
    (report,) = found(tmp_path, tree, left__a=f"class Wide({base}):\n{body}\n\nclass Concrete:\n{body}")
    assert report == "src/pack/left/a.py:1: interface 'Wide' has 3 public methods, at most 2"


def test_a_transport_protocol_is_no_interface(tmp_path: Path, tree: structure.Rules) -> None:
    body = "    def a(self): ...\n    def b(self): ...\n    def c(self): ...\n"
    assert found(tmp_path, tree, left__a=f"import asyncio\nclass Wire(asyncio.Protocol):\n{body}") == []


def test_banned_words_in_folders_files_and_classes(tmp_path: Path, tree: structure.Rules) -> None:
    reports = found(tmp_path, tree, left__str_utils="", left__utils__a="", left__b="\nclass SessionManager: ...\n")
    assert reports == [
        "src/pack/left/b.py:2: 'SessionManager' holds the banned word 'Manager'",
        "src/pack/left/str_utils.py:1: 'str_utils' holds the banned word 'utils'",
        "src/pack/left/utils/a.py:1: 'utils' holds the banned word 'utils'",
    ]


def test_a_word_that_only_contains_a_banned_one_is_fine(tmp_path: Path, tree: structure.Rules) -> None:
    assert found(tmp_path, tree, left__simple="class Implied: ...\nclass Outils: ...\n") == []


def test_tools_have_limits_but_no_floors(tmp_path: Path, tree: structure.Rules) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/a.py").write_text("import numpy\ndef f(a, b, c): ...\n")
    assert found(tmp_path, tree) == ["tools/a.py:2: function 'f' has 3 parameters, at most 2"]


def test_a_file_that_does_not_parse_is_a_violation(tmp_path: Path, tree: structure.Rules) -> None:
    (report,) = found(tmp_path, tree, left__a="x = 1\ndef f(:\n")
    assert report.startswith("src/pack/left/a.py:2: does not parse")


def test_an_exemption_covers_one_rule_of_one_file_and_goes_stale(tmp_path: Path) -> None:
    exempt = '[[tool.structure.exempt]]\npath = "src/pack/left/a.py"\nrule = "parameters"\nreason = "flags"\n'
    (tmp_path / "pyproject.toml").write_text(TABLE + exempt)
    rules = structure.Rules.read(tmp_path)
    wide = "def f(a, b, c): ...\n"
    assert found(tmp_path, rules, left__a=wide) == []
    assert len(found(tmp_path, rules, left__b=wide)) == 1
    (report,) = found(tmp_path, rules, left__a="", left__b="")
    assert report.endswith("nothing in src/pack/left/a.py breaks rule 'parameters': remove its exemption")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "pyproject.toml has no [tool.structure] table"),
        ("[tool.structure]\nsource = 's'\n", "[tool.structure] needs: floors"),
        (TABLE.replace("max_parameters", "max_params"), "unknown key in [tool.structure]: max_params"),
        (TABLE + "[[tool.structure.exempt]]\npath = 'a'\n", "needs path, rule and reason"),
        ("[tool", "structure: "),
    ],
)
def test_a_wrong_table_says_which_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, message: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(table)
    assert structure.main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_no_table_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert structure.main([str(tmp_path)]) == 2
    assert "no pyproject.toml" in capsys.readouterr().err


def test_exit_codes_and_the_summary_line(tmp_path: Path, tree: structure.Rules) -> None:
    def gate() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(ROOT / "tools/structure.py"), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    found(tmp_path, tree, left__a="x = 1\n")
    clean = gate()
    assert (clean.returncode, clean.stdout) == (0, "structure: 1 files, 4 rooms, no violations\n")
    found(tmp_path, tree, left__a="from ..right import x\n")
    broken = gate()
    assert (broken.returncode, broken.stdout.count("\n")) == (1, 1)


def test_an_empty_project_is_clean(tmp_path: Path, tree: structure.Rules) -> None:
    assert found(tmp_path, tree) == []


def test_the_table_of_this_project_reads() -> None:
    rules = structure.Rules.read(ROOT)
    assert rules.floors["core"] == 0
    assert set(rules.only) <= set(rules.floors)
    assert {place.split("/")[0] for places in rules.heavy.values() for place in places} <= set(rules.floors)
