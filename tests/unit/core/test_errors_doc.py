"""docs/errors.md describes the whole error tree, and only the tree that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from codriver.core import errors

PAGE = Path(__file__).resolve().parents[3] / "docs" / "errors.md"
SECTION = re.compile(
    r"^### (?P<name>\w+)\n\n"
    r"`(?P<code>\w+)` · HTTP (?P<status>\d{3}) · (?P<retry>retryable|not retryable) · exit (?P<exit>\d)\n\n"
    r"(?P<text>.+?)\n+\*\*What to do:\*\* (?P<remedy>.+?)\s*(?=^#|\Z)",
    re.MULTILINE | re.DOTALL,
)


def tree(root: type[errors.CodriverError]) -> Iterator[type[errors.CodriverError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


CLASSES = list(tree(errors.CodriverError))
SECTIONS = {match["name"]: match for match in SECTION.finditer(PAGE.read_text("utf-8"))}


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_the_page_says_what_the_class_says(error: type[errors.CodriverError]) -> None:
    section = SECTIONS.get(error.__name__)
    assert section, f"docs/errors.md has no complete section '### {error.__name__}'"
    page = (section["code"], int(section["status"]), section["retry"] == "retryable", int(section["exit"]))
    assert page == (error.code, error.status, error.retryable, error.exit_code)


def test_the_page_has_no_section_for_a_class_that_is_gone() -> None:
    headings = set(re.findall(r"^### (\w+)$", PAGE.read_text("utf-8"), re.MULTILINE))
    assert headings == {error.__name__ for error in CLASSES}


def test_no_two_classes_share_a_code() -> None:
    codes = [error.code for error in CLASSES]
    assert sorted(set(codes)) == sorted(codes)
