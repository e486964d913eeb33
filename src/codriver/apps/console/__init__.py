"""The console of a vehicle or a cloud: its built page (``static/``, made by ``make console``) and what it shows."""

from __future__ import annotations

from importlib import resources


def page_files() -> dict[str, bytes]:
    """The page's files by name."""
    folder = resources.files(__name__) / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
