"""``codriver route``: train, judge and explain the model that says who should answer."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from codriver.core.config import load
from codriver.core.errors import BadConfigValue, MissingExtra, SetupError

from ..explaining import explained
from ..settings import VehicleConfig
from .run import ConfigFile, Settings, given

app = typer.Typer(help="Train, judge and explain who is asked.", no_args_is_help=True)
Outcomes = Annotated[
    Path | None,
    typer.Option(help="Your own recorded outcomes: a JSON object per line, with prompt, engine, good and maybe topic."),
]


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The model file to write.")] = Path("quality-model.json"),
    outcomes: Outcomes = None,
) -> None:
    """Train a quality model from recorded outcomes: your own, or the public sets in $CODRIVER_DATA."""
    _need_training()
    from codriver.bench.route_training import train_from
    from codriver.route.outcome_model import described, save_model

    model = train_from(outcomes, typer.echo)
    try:
        save_model(model, out)
    except OSError as error:
        raise SetupError(f"The model {out} cannot be written: {error.strerror}.", param="out") from error
    typer.echo(described(model.file.heads))
    typer.echo(f"Written: {out.absolute()} ({out.stat().st_size / 1e3:.0f} kB)")


@app.command("eval")
def evaluate(
    most: Annotated[int | None, typer.Option(help="Most questions of each set; all if not given.", min=100)] = None,
) -> None:
    """Judge the quality model on the public sets by five folds: APGR, calls at three parts of the gap, ECE, Brier."""
    _need_training()
    from codriver.bench.route_training import evaluate_sets

    typer.echo(evaluate_sets(most, typer.echo))


@app.command()
def explain(
    prompt: Annotated[str, typer.Argument(help="What a user might ask.")],
    link: Annotated[Literal["up", "degraded", "down"], typer.Option(help="The link's state to assume.")] = "up",
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Say in one sentence who would answer this on the car's configuration, and why. Nothing is asked of any model."""
    if not prompt.strip():
        raise BadConfigValue("There is nothing to explain: the prompt is empty.", param="prompt")
    loaded = load(VehicleConfig, config, os.environ, given(settings))
    typer.echo(asyncio.run(explained(loaded, prompt, link)))


def _need_training() -> None:
    for module in ("numpy", "sklearn"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra("Training a quality model needs scikit-learn: pip install 'codriver[bench]'.")
