"""``codriver drive``: a car and a cloud over a recorded cellular link, several policies side by side."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from codriver.bench.calibrating import calibrate_car
from codriver.bench.drive import CutShort, live, replay, report_rows
from codriver.bench.drive_inputs import CLOUD_TIMES, LIVE_ENTRIES, Inputs, calibration_file
from codriver.bench.drive_result import DriveResult
from codriver.bench.drive_settings import POLICIES, DriveSettings, window
from codriver.bench.report import write
from codriver.core.config import load
from codriver.core.errors import BadConfigValue, SetupError

from ..settings import VehicleConfig
from .drive_screen import Lines, Screen, print_result
from .fetch import fetch_missing

_POLICIES = ", ".join(policy.title for policy in POLICIES)


def drive(
    trace: Annotated[list[str] | None, typer.Option(help="Link trace; may be given again.", show_default=False)] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of each policy's drive; 100 if not given.")] = None,
    minutes: Annotated[float | None, typer.Option(help="The same in minutes.")] = None,
    start: Annotated[float | None, typer.Option(help="Second of the trace to begin at; chosen if not given.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help=f"One of: {_POLICIES}. May be given again.")] = None,
    requests_per_minute: Annotated[float, typer.Option(help="How often the car asks.")] = 20.0,
    classes: Annotated[
        bool, typer.Option("--classes", help="Some requests are local_only, some redact.", show_default=False)
    ] = False,
    documents: Annotated[
        bool, typer.Option("--documents", help="Some ask about documents of the car.", show_default=False)
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the requests and their times.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures' rows to this file.")] = None,
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("drive-report.html"),
    replayed: Annotated[bool, typer.Option("--replay", help="Replay recorded outcomes in virtual time.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Only calibrate this car's own model.")] = False,
    most: Annotated[
        int | None, typer.Option(help="Most requests: per pair of models in a replay, or to calibrate on.", min=20)
    ] = None,
) -> None:
    """Drive: the vehicle answers, the cloud behind it, a real link between them. Ends with a table and a report."""
    console = Console(stderr=True)
    settings = drive_settings(trace, policy, length_s(seconds, minutes), start)
    settings = replace(settings_with(settings, requests_per_minute, seed), classes=classes, documents=documents)
    for name in settings.traces:
        window(name, settings)  # a mistake is told before anything is fetched
    files = load(VehicleConfig, None, os.environ).catalogue
    fetch_missing([CLOUD_TIMES] if replayed else LIVE_ENTRIES, files)
    if calibrate:
        with _screen(console) as screen:
            inputs = Inputs.find(files.store(), files.catalogue())
            own = calibration_file(inputs.vehicle_model, files.store())
            told = calibrate_car(inputs, most or 300, screen, own)
        typer.echo(told)
        return
    try:
        with _screen(console) as screen:
            if replayed:
                result = replay(settings, most, screen, files.store().path(files.catalogue().entry(CLOUD_TIMES)))
            else:
                result = live(settings, screen, Inputs.find(files.store(), files.catalogue()))
    except CutShort as short:
        _tell(short.result, report, json_file)
        raise short.cause from None
    _tell(result, report, json_file)


def _tell(result: DriveResult, report: Path, json_file: Path | None) -> None:
    # The table first: a report that cannot be written must not cost the figures.
    print_result(result, Console())
    if json_file is not None:
        try:
            report_rows(result).write_json(json_file)
        except OSError as error:
            raise SetupError(f"The figures {json_file} cannot be written: {error.strerror}.", param="json") from error
    write(result, report)
    typer.echo(f"Report: {report.absolute()}")


def _screen(console: Console) -> Screen | Lines:
    return Screen(console) if console.is_terminal else Lines(console)


def length_s(seconds: float | None, minutes: float | None) -> float:
    """Errors: :class:`BadConfigValue` when both are given, or none is more than zero."""
    if seconds is not None and minutes is not None:
        raise BadConfigValue("Give --seconds or --minutes, not both.", param="seconds")
    given = seconds if seconds is not None else None if minutes is None else 60 * minutes
    return DriveSettings().seconds if given is None else given


def drive_settings(
    traces: list[str] | None, policies: list[str] | None, seconds: float, start_s: float | None
) -> DriveSettings:
    """Errors: :class:`BadConfigValue`, :class:`UnknownEntry`."""
    known = DriveSettings()
    return DriveSettings(
        traces=tuple(traces) if traces else known.traces,
        policies=tuple(policies) if policies else known.policies,
        seconds=seconds,
        start_s=start_s,
    )


def settings_with(settings: DriveSettings, requests_per_minute: float, seed: int) -> DriveSettings:
    return replace(settings, requests_per_minute=requests_per_minute, seed=seed)
