"""Check the links of every Markdown page: files inside the project and the headings they point at.

Links that leave the project (with a scheme, or above its root) are not followed: the check is the same with and
without a network. Reports ``path:line: message``; exit code 1 when a link is broken. Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_CODE = re.compile(r"`[^`]*`")
_FENCE = re.compile(r"^\s*(```|~~~)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*:")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(line number, line) of what is not inside a fenced code block."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings make, by the rule that forges use."""
    found: set[str] = set()
    for _, line in prose(text):
        if heading := _HEADING.match(line):
            words = re.sub(r"[^\w\- ]", "", heading[1].strip().lower())
            anchor = words.replace(" ", "-")
            twin = 0
            while (name := f"{anchor}-{twin}" if twin else anchor) in found:
                twin += 1
            found.add(name)
    return found


def broken_links(page: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, message) for each link of ``page`` that leads nowhere inside ``root``."""
    for number, line in prose(page.read_text("utf-8")):
        for target in _LINK.findall(_CODE.sub("", line)):
            if _SCHEME.match(target):
                continue
            path, _, anchor = unquote(target).partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.is_relative_to(root):
                continue
            if not file.exists():
                yield number, f"no such file: {target}"
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text("utf-8")):
                yield number, f"no such heading: {target}"


def pages(root: Path) -> list[Path]:
    """Every Markdown file that git knows or would add; all of them where there is no git."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    try:
        names = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return sorted(root.rglob("*.md"))
    return sorted(file for name in names if (file := root / name).is_file())


def main() -> int:
    """Check the project in the folder given (the current one by default)."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    found = 0
    checked = pages(root)
    for page in checked:
        for number, message in broken_links(page, root):
            print(f"{page.relative_to(root)}:{number}: {message}")
            found += 1
    print(f"links: {len(checked)} pages, {found or 'no'} broken")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
