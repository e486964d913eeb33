"""``codriver targets list | show | measure | calibrate | predict | sustain``: car computers, and what they can take.

Errors are raised, and printed once by the command line's entry point.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table

from codriver.core.errors import BadConfigValue, MissingFile

from .optimize import Threads, _file, _need_numpy, _print, _telling

if TYPE_CHECKING:
    from codriver.optimize.targets.target import Target

app = typer.Typer(help="Car computers as profiles, and this machine measured as one.", no_args_is_help=True)
_THREADS = max(1, os.cpu_count() or 1)
Model = Annotated[str, typer.Argument(help="A GGUF file, an artifact's folder, or a name in the catalogue.")]
Name = Annotated[str, typer.Argument(help="A target's name, or a TOML file.")]
Ambient = Annotated[float, typer.Option(help="Temperature of the air, in degrees.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_targets() -> None:
    """The targets that are known, with their main figures; – is what no public source was found for."""
    from codriver.optimize.targets.target import HOST, find_target, shipped

    table = Table("name", "what", "memory GB", "GB/s", "int8 TOPS", "cores", "W", "not known", box=None)
    for name in (HOST, *shipped()):
        try:
            found = find_target(name)
        except MissingFile as error:
            table.add_row(name, error.message, *"–" * 6)
            continue
        figures = (
            found.memory.total_gb, found.memory.bandwidth_gbps, found.accelerator.int8_tops, found.cpu.cores,
            found.power.budget_w,
        )  # fmt: skip
        told = (f"{figure:g}" if figure else "–" for figure in figures)
        table.add_row(name, found.about.soc, *told, str(len(found.about.missing)))
    _print(table)


@app.command()
def show(name: Name) -> None:
    """One target: each figure with its source, what is missing and why, and which runtimes it can and cannot use."""
    from codriver.optimize.targets.actions import steps_of
    from codriver.optimize.targets.target import find_target

    found = find_target(name)
    typer.echo(f"{found.name}: {found.about.soc}")
    if found.about.note:
        typer.echo(found.about.note)
    table = Table("figure", "value", "source", box=None)
    for key, value in found.figures():
        table.add_row(key, f"{value:g}", found.about.sources.get(key, "not stated"))
    for key, why in found.about.missing.items():
        table.add_row(key, "–", why)
    _print(table)
    table = Table("runtime", "", box=None)
    for runtime in found.runtimes.usable:
        table.add_row(runtime, "usable")
    for runtime, why in found.runtimes.why_not.items():
        table.add_row(runtime, f"not from here: {why}")
    _print(table)
    table = Table("state", "degrees below throttling", "share of the power", "artifact", "threads", "cadence", box=None)
    for step in steps_of(found):
        table.add_row(
            step.name, f"{step.margin_c:g}" if step.margin_c >= 0 else "–", f"{step.power_share:.0%}", step.artifact,
            f"{step.threads_share:.0%}", f"× {step.cadence:g}" if step.cadence else "not at all",
        )  # fmt: skip
    _print(table)


@app.command()
def measure(
    threads: Threads = _THREADS,
    repeats: Annotated[int, typer.Option(help="Interleaved repeats of each test.", min=3)] = 9,
    as_json: AsJson = False,
) -> None:
    """Measure this machine: memory's bandwidth and llama.cpp's arithmetic; kept as the target host."""
    _need_numpy()
    from codriver.optimize.targets.host import measure as measured
    from codriver.optimize.targets.target import home

    found = measured(threads, repeats)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return
    zones = ", ".join(f"{zone} {value:.0f} °C" for zone, value in found.zones.items())
    typer.echo(f"{found.machine}, {threads} threads, load {found.load:.1f}; {zones or 'no temperature can be read'}")
    table = Table("test", "median", "lowest", "highest", "n", "unit", box=None)
    rows = {
        **found.bandwidth,
        **{f"{kind}, one token": spread for kind, spread in found.one.items()},
        **{f"{kind}, 128 tokens": spread for kind, spread in found.many.items()},
    }
    for name, spread in rows.items():
        numbers = (f"{value:.1f}" for value in (spread.median, spread.low, spread.high))
        table.add_row(name, *numbers, str(spread.n), spread.unit)
    _print(table)
    typer.echo(f"kept in {home() / 'host.toml'}")


@app.command()
def calibrate(
    models: Annotated[
        list[str], typer.Argument(help="GGUF files that are measured here; four at least, variants too.")
    ],
    with_variants: Annotated[
        bool, typer.Option("--variants/--no-variants", help="Measure the first model in Q8_0, Q4_0 and Q6_K as well.")
    ] = True,
    runs: Annotated[int, typer.Option(help="Runs of each file.", min=1)] = 3,
) -> None:
    """Fit predictions to files measured on this machine, and tell how wrong each is that was left out of the fit."""
    _need_numpy()
    from codriver.optimize.targets.calibrating import calibrate as calibrated
    from codriver.optimize.targets.calibrating import variants
    from codriver.optimize.targets.host import kept
    from codriver.optimize.targets.target import home

    figures = kept()
    if figures is None:
        raise MissingFile("This machine was not measured yet: codriver targets measure.")
    files = [_file(model) for model in models]
    if with_variants:
        files += variants(files[0], home() / "models")
    with _telling() as told:
        found = calibrated(files, figures, runs, told("measures files"))
    table = Table("file", *(f"{metric}, error" for metric in found.errors), box=None)
    for one in found.files:
        table.add_row(one.layout.name, *(f"{errors[one.layout.name]:+.0%}" for errors in found.errors.values()))
    _print(table)
    typer.echo(f"each predicted from the others; load {found.load:.1f}; kept in {home() / 'calibration.json'}")


@app.command()
def predict(
    model: Model,
    target: Annotated[str, typer.Option(help="A target's name, or a TOML file.")],
    tokens: Annotated[list[int] | None, typer.Option(help="Lengths of prompts.", min=1)] = None,
    ambient: Ambient = 25.0,
) -> None:
    """Time to a first token, tokens a second and memory of a file on a target, with the error on this machine."""
    _need_numpy()
    from codriver.optimize.targets.predictor import predict as predicted
    from codriver.optimize.targets.target import find_target

    profile = find_target(target)
    rows = predicted(_file(model), profile, tokens or (64, 512))
    table = Table("metric", "predicted", "from", "to", "unit", "", box=None)
    for row in rows:
        figures = (f"{value:,.5g}" if value is not None else "–" for value in (row.value, row.low, row.high))
        table.add_row(row.metric, *figures, row.unit, row.note)
    _print(table)
    try:
        told, share = _lasts(profile, ambient)
    except BadConfigValue as error:
        typer.echo(f"how long it lasts is not known: {error.message}")
        return
    fast = next(row.value for row in rows if row.metric == "decode_tps")
    typer.echo(f"{told}: {share * fast:,.4g} tokens a second, predicted")


@app.command()
def sustain(
    model: Model,
    runs: Annotated[int, typer.Option(help="Runs back to back.", min=4)] = 20,
    tokens: Annotated[int, typer.Option(help="Length of the prompt.", min=8)] = 256,
    threads: Threads = _THREADS,
    target: Annotated[str | None, typer.Option(help="A target whose thermal figures say how long it lasts.")] = None,
    ambient: Ambient = 25.0,
    as_json: AsJson = False,
) -> None:
    """Runs back to back without a pause: what each took, and whether they grow slower."""
    _need_numpy()
    from codriver.optimize.targets.sustain import sustain as sustained
    from codriver.optimize.targets.target import find_target

    lasts = _lasts(find_target(target), ambient)[0] if target is not None else ""
    found = sustained(_file(model), threads, runs, tokens)
    drifts = {metric: found.drift(metric) for metric in ("ttft_ms", "decode_tps")}
    if as_json:
        told = {metric: msgspec.to_builtins(one) for metric, one in drifts.items()}
        typer.echo(json.dumps({**msgspec.to_builtins(found), "drift": told}, indent=1))
        return
    table = Table("run", "at s", "ttft ms", "tokens/s", "°C", "GHz", "load", box=None)
    for number, run in enumerate(found.runs):
        zones = f"{max(run.zones.values()):.0f}" if run.zones else "–"
        clocks = f"{sum(run.ghz) / len(run.ghz):.2f}" if run.ghz else "–"
        table.add_row(
            str(number + 1), f"{run.began_s:.1f}", f"{run.ttft_ms:.0f}", f"{run.decode_tps:.1f}", zones, clocks,
            f"{run.load:.1f}",
        )  # fmt: skip
    _print(table)
    for metric, one in drifts.items():
        seen = "" if one.clear else ": none that these runs can show"
        interval = f"95 %: {one.low:+.1f} to {one.high:+.1f}"
        typer.echo(f"{metric} drifts by {one.percent:+.1f} % over the test ({interval}){seen}")
    if lasts:
        typer.echo(lasts)


def _lasts(target: Target, ambient: float) -> tuple[str, float]:
    """In words, and the share of its speed that a target keeps for good at full load. Errors: ``BadConfigValue``."""
    from codriver.optimize.targets.thermal import load_w, node_of

    node, power = node_of(target, ambient), load_w(target, 1.0)
    seconds, share = node.seconds_to_throttle(power), node.sustained_share(power)
    begins = "never throttles" if math.isinf(seconds) else f"throttles after {seconds:.0f} s"
    return (
        f"{target.name} at {power:.0f} W in air of {ambient:.0f} °C {begins}, and keeps {share:.0%} of its speed",
        share,
    )
