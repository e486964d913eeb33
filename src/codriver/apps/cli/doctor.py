"""``codriver doctor``: what works here, what is missing, and what mends it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codriver.catalogue import CatalogueConfig
from codriver.core.config import load
from codriver.engines.registry import ENGINES

from ..ports import why_taken
from ..settings import CLOUD_MODEL, VEHICLE_MODEL, VehicleConfig

_MARK = {"ok": "[green]ok[/]", "optional": "[yellow]–[/]", "broken": "[red]missing[/]"}
_EXTRAS = {
    "bench": (("matplotlib", "numpy", "sklearn"), "plots and benches"),
    "privacy": (("phonenumbers", "stdnum"), "finding personal data, for privacy=redact"),
    "otel": (("opentelemetry.sdk",), "sending spans somewhere"),
}


@dataclass(frozen=True)
class Finding:
    """``broken`` stops the embedded default; ``optional`` does not."""

    what: str
    state: Literal["ok", "optional", "broken"]
    detail: str


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False) -> None:
    """Check this machine; exit code 1 when the embedded default cannot run."""
    settings = load(VehicleConfig, None, os.environ)
    findings = [*_machine(), *_engines(), *_models(settings.catalogue), *_extras(), *_ports(settings.gateway.port)]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("", "what", "finding", box=None)
        for finding in findings:
            table.add_row(_MARK[finding.state], finding.what, escape(finding.detail))
        console = Console(highlight=False)
        (console if console.is_terminal else Console(highlight=False, width=200)).print(table)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def _machine() -> Iterator[Finding]:
    fits = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if fits else "broken", f"{platform.python_version()} (3.11 or newer is needed)")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    detail = f"{os.cpu_count()} cores, {memory_gb:.1f} GB memory, {platform.machine()}"
    yield Finding("machine", "ok" if memory_gb > 1 else "broken", detail)


def _engines() -> Iterator[Finding]:
    for name in ENGINES.names():
        reason = ENGINES.why_not(name)
        absent: Literal["broken", "optional"] = "broken" if name == "llama_cpp" else "optional"
        yield Finding(f"engine {name}", "ok" if reason is None else absent, reason or "usable")


def _models(settings: CatalogueConfig) -> Iterator[Finding]:
    catalogue, store = settings.catalogue(), settings.store()
    for name, needed in ((VEHICLE_MODEL, True), (CLOUD_MODEL, False)):
        entry = catalogue.entry(name)
        if store.state(entry) == "present":
            yield Finding(f"model {name}", "ok", str(store.path(entry)))
        else:
            detail = f"{store.state(entry)}; fetch it ({entry.bytes / 1e6:.0f} MB) with: codriver models pull {name}"
            yield Finding(f"model {name}", "broken" if needed else "optional", detail)
    free_gb = shutil.disk_usage(_existing(store.root)).free / 1e9
    yield Finding("disk", "ok" if free_gb > 2 else "optional", f"{free_gb:.1f} GB free at {store.root}")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _extras() -> Iterator[Finding]:
    for extra, (modules, purpose) in _EXTRAS.items():
        missing = [module for module in modules if not _importable(module)]
        detail = f"{purpose}; add it with: pip install 'codriver[{extra}]'" if missing else purpose
        yield Finding(f"extra {extra}", "optional" if missing else "ok", detail)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _ports(port: int) -> Iterator[Finding]:
    for number, whose in ((port, "vehicle"), (port + 1, "cloud")):
        reason = why_taken(number)
        detail = f"not free for the {whose} ({reason}); choose another with --port"
        yield Finding(f"port {number}", "optional" if reason else "ok", detail if reason else f"free for the {whose}")
