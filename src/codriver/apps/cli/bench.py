"""``codriver bench NAME``: one measured claim each, with its rival in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codriver.core.registry import Registry

BENCHES = Registry(
    "bench",
    "codriver.benches",
    {
        "condense": "codriver.bench.condense:run",
        "drive": "codriver.bench.drive:run",
        "engine": "codriver.bench.engine:run",
        "faults": "codriver.bench.faults:run",
        "gateway": "codriver.bench.gateway:run",
        "route": "codriver.bench.route:run",
    },
)


def bench(
    name: Annotated[str, typer.Argument(help="all, or one of: " + ", ".join(BENCHES.names()))],
    quick: Annotated[bool, typer.Option("--quick", help="Within a minute or so, with fewer repetitions.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")] = None,
) -> None:
    """Measure, print a table, and write the rows as JSON."""
    for one in BENCHES.names() if name == "all" else [name]:
        report = BENCHES.load(one)(quick)
        report.print_table()
        if json_file is not None:
            report.write_json(json_file if name != "all" else json_file.with_name(f"{json_file.stem}-{one}.json"))
