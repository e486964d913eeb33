"""The command line's entry point: collects the verbs, and tells errors once, with their code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

import codriver
from codriver.core.errors import CodriverError

from . import bench, chat, config, doctor, drive, engines, keys, models, optimize, route, run, semantic, targets

app = typer.Typer(
    help="The AI platform that rides in the vehicle and works with the cloud.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(run.up)
app.command("vehicle")(run.vehicle)
app.command("cloud")(run.cloud)
app.command("chat")(chat.chat)
app.command("drive")(drive.drive)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.add_typer(models.app, name="models")
app.add_typer(engines.app, name="engines")
app.add_typer(optimize.app, name="optimize")
app.add_typer(targets.app, name="targets")
app.add_typer(route.app, name="route")
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")
app.add_typer(semantic.app, name="routes")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"codriver {codriver.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """See ``codriver VERB --help``."""


def main() -> None:
    """Run the command. A :class:`CodriverError` ends it with its exit code and one line that names its code."""
    try:
        app()
    except CodriverError as error:
        told = f"error [{error.code}]: {error.message}"
        Console(stderr=True, highlight=False, soft_wrap=True).print(told, markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
