"""Certificates: made whole, private, never overwritten by accident, and shown with their dates."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from codriver.apps.cli.keys import app
from codriver.core.errors import CertificateError
from codriver.gateway.keys import check_certificate, make_keys, read_certificate

DAY_S = 86_400.0


def test_what_is_made(tmp_path: Path) -> None:
    files = make_keys(tmp_path / "keys", ("cloud.example", "10.0.0.7"), "car 7/b", 30)
    for file in files.all():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    cloud, vehicle = read_certificate(files.cloud), read_certificate(files.vehicle)
    assert cloud.names == ("cloud.example", "10.0.0.7")
    assert (vehicle.subject, vehicle.names) == ("CN=car 7/b", ("urn:codriver:vehicle:car%207%2Fb",))
    assert round((vehicle.valid_until - vehicle.valid_from).total_seconds() / DAY_S) == 30
    purpose = x509.load_pem_x509_certificate(files.vehicle.read_bytes()).extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert list(purpose.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == sorted(file.name for file in files.all())


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    files = make_keys(tmp_path)
    before = files.cloud.read_bytes()
    files.vehicle.unlink()
    with pytest.raises(CertificateError, match=r"cloud\.crt.* would be overwritten.*--force"):
        make_keys(tmp_path)
    assert files.cloud.read_bytes() == before
    assert not files.vehicle.exists()
    make_keys(tmp_path, force=True)
    assert files.cloud.read_bytes() != before


def test_expired_and_not_yet_valid_name_the_file_and_the_date(tmp_path: Path) -> None:
    files = make_keys(tmp_path, days=10)
    facts = check_certificate(files.cloud, time.time())
    with pytest.raises(CertificateError, match=rf"cloud\.crt expired on {facts.valid_until:%Y-%m-%d}.*keys init"):
        check_certificate(files.cloud, time.time() + 11 * DAY_S)
    with pytest.raises(CertificateError, match=rf"not valid before {facts.valid_from:%Y-%m-%d}.*check the clock"):
        check_certificate(files.cloud, time.time() - DAY_S)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.crt").write_text("no certificate")
    with pytest.raises(CertificateError, match=r"bad\.crt cannot be read as a PEM"):
        read_certificate(tmp_path / "bad.crt")
    with pytest.raises(CertificateError, match=r"none\.crt does not exist.*keys init"):
        read_certificate(tmp_path / "none.crt")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"days": 0}, "from 1 to 3650"),
        ({"vehicle_id": ""}, "1 to 64 characters"),
        ({"vehicle_id": "x" * 65}, "1 to 64 characters"),
        ({"hosts": ("bad host name" * 30,)}, "neither a host name nor an IP address"),
    ],
)
def test_bad_wishes(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(CertificateError, match=sentence):
        make_keys(tmp_path / "keys", **changes)  # type: ignore[arg-type]
    assert not (tmp_path / "keys").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CertificateError, match="cannot be written"):
        make_keys(tmp_path / "file")


def test_the_command_line(tmp_path: Path) -> None:
    run, folder = CliRunner(), str(tmp_path / "keys")
    made = run.invoke(app, ["init", "--folder", folder, "--host", "cloud.example", "--vehicle-id", "car-7"])
    assert made.exit_code == 0, made.output
    assert "tls_client_ca" in made.output
    shown = run.invoke(app, ["show", "--folder", folder])
    assert "cloud.example" in shown.output
    assert "urn:codriver:vehicle:car-7" in shown.output
    assert "problem" not in shown.output
    again = run.invoke(app, ["init", "--folder", folder])
    assert isinstance(again.exception, CertificateError)
    nothing = run.invoke(app, ["show", "--folder", str(tmp_path / "empty")])
    assert isinstance(nothing.exception, CertificateError)
