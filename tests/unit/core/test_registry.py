"""Names that load on use, and say why when they cannot."""

from __future__ import annotations

import sys

import pytest

from codriver.core.errors import MissingExtra, UnknownEntry
from codriver.core.registry import Registry


@pytest.fixture
def registry() -> Registry:
    return Registry(
        "engine",
        "codriver.test-group-that-nobody-fills",
        {"plain": "json:dumps", "heavy": "no_such_module_here:Thing", "checked": "json:loads"},
        needs={"heavy": (("no_such_module_here", "json"), "heavy")},
        checks={"checked": lambda: "the moon is in the wrong place"},
    )


def test_an_entry_is_loaded_on_use(registry: Registry) -> None:
    import json

    assert registry.names() == ["checked", "heavy", "plain"]
    assert registry.why_not("plain") is None
    assert registry.load("plain") is json.dumps
    assert "no_such_module_here" not in sys.modules


def test_why_not(registry: Registry) -> None:
    assert registry.why_not("heavy") == (
        "no_such_module_here is not installed; add it with: pip install 'codriver[heavy]'"
    )
    assert registry.why_not("checked") == "the moon is in the wrong place"
    with pytest.raises(
        MissingExtra, match="The engine 'heavy' cannot be used here: no_such_module_here is not installed"
    ):
        registry.load("heavy")


def test_an_unknown_name_gets_a_hint(registry: Registry) -> None:
    with pytest.raises(UnknownEntry, match=r"There is no engine 'plian'\. Did you mean 'plain'"):
        registry.load("plian")
    with pytest.raises(UnknownEntry, match="Known: checked, heavy, plain"):
        registry.why_not("zzz")
