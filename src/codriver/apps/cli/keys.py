"""``codriver keys init|show``: the certificates by which a vehicle and a cloud know each other.

Errors are raised, and printed once by the command line's entry point (exit code 2).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from codriver.core.errors import CertificateError
from codriver.gateway.keys import KeyFiles, check_certificate, make_keys, read_certificate

app = typer.Typer(help="Make and show the certificates for vehicle and cloud.", no_args_is_help=True)

_HOSTS = ("localhost", "127.0.0.1", "::1")


def default_folder() -> Path:
    """Where keys are kept unless said otherwise: ``codriver/keys`` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "codriver" / "keys"


Folder = Annotated[
    Path | None, typer.Option("--folder", help="Where the files are.", show_default="~/.config/codriver/keys")
]


@app.command()
def init(
    folder: Folder = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or address that vehicles reach the cloud by; may be repeated.", show_default="localhost"
        ),
    ] = None,
    vehicle_id: Annotated[str, typer.Option(help="The vehicle's id, in its certificate.")] = "vehicle-1",
    days: Annotated[int, typer.Option(help="Days that the certificates are valid.")] = 365,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Make an authority, a cloud certificate and a vehicle certificate."""
    files = make_keys(folder or default_folder(), tuple(host or _HOSTS), vehicle_id, days, force)
    typer.echo(f"authority  {files.ca}   (its key, {files.ca_key.name}, signs new certificates: keep it off the cars)")
    typer.echo(f"cloud      {files.cloud}  {files.cloud_key}")
    typer.echo(f"vehicle    {files.vehicle}  {files.vehicle_key}")
    typer.echo("")
    typer.echo("Cloud:   [gateway] tls_cert, tls_key = the cloud's two files; tls_client_ca = the authority")
    typer.echo(
        "Vehicle: [cloud] tls_cert, tls_key = the vehicle's two files; tls_ca = the authority; url = https://…/v1"
    )


@app.command()
def show(folder: Folder = None) -> None:
    """Show each certificate: for whom, until when, and whether it can be used now."""
    files = KeyFiles(folder or default_folder())
    found = [file for file in (files.ca, files.cloud, files.vehicle) if file.exists()]
    if not found:
        raise CertificateError(f"There is no certificate in {files.folder}; `codriver keys init` makes them.")
    for file in found:
        facts = read_certificate(file)
        typer.echo(f"{file.name}: {facts.subject}, signed by {facts.issuer}")
        if facts.names:
            typer.echo(f"  for      {', '.join(facts.names)}")
        typer.echo(f"  valid    {facts.valid_from:%Y-%m-%d} to {facts.valid_until:%Y-%m-%d}{_trouble(file)}")
        typer.echo(f"  sha256   {facts.fingerprint}")


def _trouble(file: Path) -> str:
    try:
        check_certificate(file, time.time())
    except CertificateError as error:
        return f"\n  problem  {error.message}"
    return ""
