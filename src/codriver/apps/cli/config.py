"""``codriver config``: every setting, where it can be set, and a check of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from codriver.core.config import describe, load

from ..settings import CloudConfig, VehicleConfig

app = typer.Typer(help="Show every setting, or check a configuration file.", no_args_is_help=True)
Role = Annotated[Literal["vehicle", "cloud"], typer.Argument(help="Whose settings.")]
_CLASSES = {"vehicle": VehicleConfig, "cloud": CloudConfig}


@app.command()
def show(role: Role = "vehicle") -> None:
    """Every key with its environment variable, type, default and meaning."""
    table = Table("key", "environment", "type", "default", "meaning", box=None)
    for one in describe(_CLASSES[role]):
        table.add_row(one.key, one.env, one.type, str(one.default), one.sentence)
    console = Console(highlight=False)
    (console if console.is_terminal else Console(width=260)).print(table, markup=False)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A TOML file.")], role: Role = "vehicle") -> None:
    """Load a file as the process would, with the environment over it; an error names the key and what is allowed."""
    load(_CLASSES[role], file, os.environ, others=_CLASSES.values())
    typer.echo(f"{file}: all keys and values are known")
