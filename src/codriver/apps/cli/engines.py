"""``codriver engines list | tune``: the runtimes, and which of them answers best with a model on this machine."""

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

from codriver.catalogue import resolve
from codriver.core.config import load
from codriver.core.errors import SetupError
from codriver.engines.registry import ENGINES
from codriver.engines.tuning import GENAI_FORMS, Amounts, Tuning, candidates, save, trials_of, tune

from ..engines import genai_folder, tuned_folder
from ..settings import VehicleConfig

app = typer.Typer(help="The runtimes of models: which are usable, and which answers best here.", no_args_is_help=True)


@app.command("list")
def list_engines(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Every engine, and why one cannot be used here."""
    reasons = {name: ENGINES.why_not(name) for name in ENGINES.names()}
    if as_json:
        typer.echo(json.dumps(reasons, indent=1))
        return
    table = Table("engine", "here", box=None)
    for name, reason in reasons.items():
        table.add_row(name, escape(reason or "usable"))
    _print(table)


@app.command("tune")
def tune_model(
    model: Annotated[str, typer.Argument(help="A name in the catalogue, or a GGUF file.")],
    rounds: Annotated[int, typer.Option(help="Rounds in which each runtime reads and writes.", min=1)] = 7,
    threads: Annotated[int | None, typer.Option(help="Threads of each; by default as the vehicle's settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure every usable runtime with MODEL, and keep the result for `--engine auto`."""
    settings = load(VehicleConfig, None, os.environ)
    files = settings.catalogue
    file = resolve(model, files.catalogue(), files.store())
    folders = {form: _exported(file.path, form, genai_folder(files, file.sha256, form)) for form in GENAI_FORMS}
    found, left = candidates(file.path, folders)
    trials = trials_of(found, settings.engine.threads if threads is None else threads)
    work = tune(trials, file.sha256, Amounts(rounds=rounds), lambda step: typer.echo(f"{step} …", err=True))
    tuning = asyncio.run(work)
    tuning = msgspec.structs.replace(tuning, left_out={**left, **tuning.left_out})
    kept = save(tuning, tuned_folder(files))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(tuning)).decode())
        return
    _print(_table(tuning))
    for runtime, reason in tuning.left_out.items():
        typer.echo(f"· {runtime} was left out: {reason}")
    for one in tuning.runtimes:
        if one not in tuning.eligible():
            typer.echo(
                f"· {one.name} is not eligible: it agrees at {one.agreement:.1%} of {one.positions} positions, and "
                f"{tuning.bound:.0%} is the least."
            )
    best = {policy: tuning.pick(policy).name for policy in ("ttft", "decode", "memory")}
    typer.echo("best by " + ", ".join(f"{policy}: {runtime}" for policy, runtime in best.items()) + f"; kept in {kept}")


def _exported(file: Path, form: str, folder: Path) -> Path | str:
    """The model as ONNX Runtime GenAI loads it, written once; or why it cannot be."""
    if folder.exists():
        return folder
    reason = ENGINES.why_not("onnx_genai")
    if reason is not None:
        return reason
    from codriver.optimize.formats.export import export

    try:
        export(file, form, folder, lambda step: typer.echo(f"{form}: {step} …", err=True))
    except SetupError as error:
        return error.message
    return folder


def _table(tuning: Tuning) -> Table:
    prompts = sorted({tokens for one in tuning.runtimes for tokens in one.ttft_ms})
    heads = [f"TTFT@{tokens} ms" for tokens in prompts]
    table = Table("runtime", "start ms", *heads, "decode tokens/s", "RSS MB", "agreement", box=None)
    for one in tuning.runtimes:
        first = [f"{one.ttft_ms[tokens].value:,.0f}" if tokens in one.ttft_ms else "–" for tokens in prompts]
        share = f"{one.agreement:.1%} of {one.positions} (≥ {one.agreement_low:.1%})"
        if one is tuning.runtimes[0]:
            share += ", reference"
        cells = (f"{one.start_ms.value:,.0f}", *first, f"{one.decode_tps.value:.1f}", f"{one.rss_bytes / 1e6:,.0f}")
        table.add_row(f"{one.name} {tuning.versions[one.runtime]}", *cells, share)
    return table


def _print(table: Table) -> None:
    console = Console(highlight=False)
    (console if console.is_terminal else Console(width=200, highlight=False)).print(table)
