"""``codriver models list|pull|verify|rm``: the files that engines load.

Errors are raised, and printed once by the command line's entry point (exit code 2).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from codriver.catalogue import CatalogueConfig, CatalogueEntry, Progress, Store, pull, remove, verify
from codriver.core.config import load

from ..settings import VehicleConfig

app = typer.Typer(help="List, fetch, check and remove the models in the catalogue.", no_args_is_help=True)

Extra = Annotated[
    Path | None,
    typer.Option("--catalogue", help="Your own entries: a TOML file or a folder of them.", show_default=False),
]
Names = Annotated[list[str], typer.Argument(help="Catalogue names; see: codriver models list", show_default=False)]


@app.command("list")
def list_models(
    catalogue: Extra = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Show every entry and whether it is on this machine."""
    files = _files(catalogue)
    known, store = files.catalogue(), files.store()
    if as_json:
        typer.echo(json.dumps([_row(entry, store) for entry in known], indent=2))
        return
    table = Table("name", "kind", "size", "here", "licence", "what it is", box=None)
    for entry in known:
        table.add_row(entry.name, entry.kind, _size(entry.bytes), store.state(entry), entry.licence, entry.description)
    # A terminal wraps the table to its own width; a pipe gets whole lines.
    console = Console()
    (console if console.is_terminal else Console(width=240)).print(table)


@app.command("pull")
def pull_models(names: Names, catalogue: Extra = None) -> None:
    """Fetch entries: resumes what was begun, checks the sha256, and is whole or absent."""
    files = _files(catalogue)
    store = files.store()
    for entry in _entries(names, files):
        with progress_for(entry) as progress:
            path = asyncio.run(pull(entry, store, progress, files.pull_settings()))
        typer.echo(f"{entry.name} ({entry.licence}): {path}")


@app.command("verify")
def verify_models(
    names: Annotated[list[str] | None, typer.Argument(help="Names; none: all that are here.")] = None,
    catalogue: Extra = None,
) -> None:
    """Hash files again; a wrong one is removed and the command ends with an error."""
    files = _files(catalogue)
    known, store = files.catalogue(), files.store()
    entries = [known.entry(name) for name in names or ()] or [
        one for one in known if store.state(one) in ("present", "corrupt")
    ]
    for entry in entries:
        with progress_for(entry) as progress:
            asyncio.run(verify(entry, store, progress))
        typer.echo(f"{entry.name}: sha256 {entry.sha256} is right")
    if not entries:
        typer.echo("No model is on this machine. Fetch one with: codriver models pull NAME")


@app.command("rm")
def remove_models(names: Names, catalogue: Extra = None) -> None:
    """Delete files, and what unfinished pulls left."""
    files = _files(catalogue)
    store = files.store()
    for entry in _entries(names, files):
        freed = remove(entry, store)
        typer.echo(f"{entry.name}: {_size(freed)} freed" if freed else f"{entry.name}: was not on this machine")


def _files(extra: Path | None) -> CatalogueConfig:
    """Where models are, as every process of this machine is told: the environment's settings count here too."""
    told = load(VehicleConfig, None, os.environ).catalogue
    return told if extra is None else replace(told, extra=str(extra))


def _entries(names: list[str], files: CatalogueConfig) -> list[CatalogueEntry]:
    """All names are looked up before anything is done to the first."""
    known = files.catalogue()
    return [known.entry(name) for name in names]


def _row(entry: CatalogueEntry, store: Store) -> dict[str, object]:
    state = store.state(entry)
    return {
        "name": entry.name,
        "kind": entry.kind,
        "file": entry.file,
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "licence": entry.licence,
        "description": entry.description,
        "context": entry.context,
        "sources": [str(source) for source in entry.sources],
        "state": state,
        "path": str(store.path(entry)) if state == "present" else None,
    }


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextmanager
def progress_for(entry: CatalogueEntry) -> Iterator[Progress]:
    """Bars on a terminal; a plain line per tenth of the way elsewhere (a log, CI)."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(entry.name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        yield _Bar(bars, entry.name)


class _Bar:
    def __init__(self, bars: Bars, name: str) -> None:
        self._bars = bars
        self._name = name
        self._task = bars.add_task(name, total=None)

    def update(self, done_bytes: int, total_bytes: int, what: str) -> None:
        self._bars.update(self._task, completed=done_bytes, total=total_bytes, description=f"{self._name}: {what}")


class _Lines:
    """Prints when the phrase changes and at every tenth."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: tuple[str, int] = ("", -1)

    def update(self, done_bytes: int, total_bytes: int, what: str) -> None:
        tenth = 10 * done_bytes // max(1, total_bytes)
        if (what, tenth) != self._last:
            self._last = (what, tenth)
            typer.echo(f"{self._name}: {what}, {_size(done_bytes)} of {_size(total_bytes)}", err=True)
