"""``codriver routes check|match``: a file of semantic routes, looked at before a vehicle uses it.

Errors are raised, and printed once by the command line's entry point (exit code 2); ``check`` ends with exit code 1
when routes are in conflict.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codriver.core.config import load
from codriver.core.deadline import Deadline
from codriver.core.messages import EmbedRequest
from codriver.route.semantic_file import RoutesFile, read_routes
from codriver.route.semantic_match import Matcher
from codriver.route.semantic_report import Report, report

from ..engines import no_embedder, start_embedder
from ..settings import VehicleConfig

app = typer.Typer(help="Check a file of semantic routes, or see which route a sentence takes.", no_args_is_help=True)
RoutesPath = Annotated[Path, typer.Argument(help="A TOML file with semantic routes.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def check(file: RoutesPath, as_json: AsJson = False) -> None:
    """Tell where routes get in each other's way; exit code 1 when two of them are in conflict."""
    found = report(asyncio.run(_prepared(read_routes(file)))[0])
    if as_json:
        typer.echo(json.dumps({"sound": found.sound, **msgspec.to_builtins(found)}, indent=2))
    else:
        _show(found, _console())
    if not found.sound:
        raise typer.Exit(1)


@app.command()
def match(
    file: RoutesPath,
    text: Annotated[str, typer.Argument(help="What a driver might say.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Tell which route a sentence takes, and by how much."""
    if not text.strip():
        raise typer.BadParameter("the sentence is empty")
    matcher, (vector,) = asyncio.run(_prepared(read_routes(file), text))
    verdict = matcher.match(vector)
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(verdict), indent=2))
        return
    console = _console()
    console.print(f"route: {verdict.route or 'none'} ({verdict.why})", markup=False)
    table = Table("route", "score", "threshold", box=None)
    for name, score in sorted(verdict.scores.items(), key=lambda item: -item[1]):
        least = matcher.thresholds.get(name)
        table.add_row(name, f"{score:.3f}", "" if least is None else f"{least:.3f}")
    console.print(table)


async def _prepared(rules: RoutesFile, *texts: str) -> tuple[Matcher, list[list[float]]]:
    """The file's matcher, and vectors of further texts. Errors: :class:`MissingExtra`, :class:`MissingFile`."""
    settings = load(VehicleConfig, None, os.environ)
    embedder = start_embedder(settings.engine, settings.catalogue)
    if embedder is None:
        raise no_embedder(settings.engine)
    try:
        vectors = {}
        for text in [*rules.texts(), *texts]:
            # One by one, as a vehicle does: a vector must not depend on its batch.
            vectors[text] = (await embedder.embed(EmbedRequest(input=text), Deadline.never())).vectors[0]
    finally:
        await embedder.aclose()
    return Matcher(rules, vectors), [vectors[text] for text in texts]


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _show(found: Report, console: Console) -> None:
    table = Table("route", "examples", "threshold", "right", "wrong", "no route", box=None)
    for one in found.routes:
        shares = (f"{share:.0%}" for share in (one.right, one.wrong, one.abstained))
        table.add_row(one.route, str(one.examples), f"{one.threshold:.2f}", *shares)
    table.add_row("all", str(sum(one.examples for one in found.routes)), "", f"{found.right:.0%}",
                  f"{found.wrong:.0%}", f"{found.abstained:.0%}")  # fmt: skip
    console.print("Each example judged by the others:")
    console.print(table)
    for lost in found.lost:
        where = f"goes to {lost.to}" if lost.to else f"takes no route ({lost.why})"
        console.print(f"[yellow]lost[/]      {escape(lost.route or 'other')}: “{escape(lost.text)}” {escape(where)}")
    for same in found.duplicates:
        console.print(f"[red]duplicate[/] “{escape(same.text)}” in {', '.join(same.routes)}")
    for pair in found.conflicts:
        console.print(f"[red]conflict[/]  {pair.share:.0%} of {pair.route} is closer to {pair.other} than to its own")
    console.print("The routes can be told apart." if found.sound else "Some routes cannot be told apart; see above.")
