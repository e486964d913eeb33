"""``codriver bench NAME``: one measured claim each, with its rival in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codriver.core.errors import BadConfigValue, MissingExtra
from codriver.core.registry import Registry

BENCHES = Registry(
    "bench",
    "codriver.benches",
    {
        "collaborate": "codriver.bench.collaborate:run",
        "compress-vision": "codriver.bench.compress_vision:run",
        "condense": "codriver.bench.condense:run",
        "drive": "codriver.bench.drive:run",
        "engine": "codriver.bench.engine:run",
        "faults": "codriver.bench.faults:run",
        "gateway": "codriver.bench.gateway:run",
        "mlperf": "codriver.bench.mlperf:run",
        "passes": "codriver.bench.passes:run",
        "quantise": "codriver.bench.quantise:run",
        "route": "codriver.bench.route:run",
        "search": "codriver.bench.search:run",
        "soak": "codriver.bench.soak:run",
        "tune": "codriver.bench.tune:run",
    },
)


def bench(
    name: Annotated[str, typer.Argument(help="all, or one of: " + ", ".join(BENCHES.names()))],
    quick: Annotated[bool, typer.Option("--quick", help="Within a minute or so, with fewer repetitions.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.2, help="Only soak: how long it lasts; 60 when not given, 1.5 with --quick.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Only mlperf: the engine; llama_cpp when not given.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Only mlperf: the folder for LoadGen's logs.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")] = None,
) -> None:
    """Measure, print a table, and write the rows as JSON. Ends with 1 where a judged line did not hold."""
    if minutes is not None and name not in ("soak", "all"):
        raise BadConfigValue(f"The bench '{name}' takes no --minutes; only soak does.", param="minutes")
    asked = {"engine": engine or "llama_cpp", "logs": logs}
    for option, given in (("engine", engine), ("logs", logs)):
        if given is not None and name != "mlperf":
            raise BadConfigValue(f"The bench '{name}' takes no --{option}; only mlperf does.", param=option)
    failed: list[str] = []
    for one in BENCHES.names() if name == "all" else [name]:
        told = {"minutes": minutes} if one == "soak" else asked if one == "mlperf" else {}
        try:
            report = BENCHES.load(one)(quick, **told)
        except MissingExtra as error:
            if name != "all":
                raise
            typer.echo(f"{one}: left out: {error.message}", err=True)
            continue
        report.print_table()
        if json_file is not None:
            report.write_json(json_file if name != "all" else json_file.with_name(f"{json_file.stem}-{one}.json"))
        failed += report.failed
    if failed:
        raise typer.Exit(1)
