"""Links inside the project: files, headings, and what is left alone."""

from __future__ import annotations

from pathlib import Path

from tools.check_links import anchors, broken_links


def test_broken_files_and_headings_are_found_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other page\n\n## The *second* part\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[a](other.md) [b](other.md#the-second-part) [c](#page) ![d](gone.png)\n"
        "[e](other.md#third) [f](#nowhere) [g](../above/the/root.md) [h](https://example.org/x)\n"
        "`[i](code.md)`\n```\n[j](fenced.md)\n```\n"
    )
    assert list(broken_links(page, tmp_path)) == [
        (2, "no such file: gone.png"),
        (3, "no such heading: other.md#third"),
        (3, "no such heading: #nowhere"),
    ]


def test_equal_headings_are_numbered() -> None:
    assert anchors("# A b\n# A b\n```\n# not one\n```\n") == {"a-b", "a-b-1"}
