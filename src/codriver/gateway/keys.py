"""Making and checking certificates: a small authority, one certificate for the cloud, one for each vehicle.

EC P-256, SHA-256. Private keys are written with mode 0600 and files appear whole or not at all. Limits: no revocation,
no renewal by protocol; a fleet brings its own authority and puts its files in the same places.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from codriver.core.errors import CertificateError

VEHICLE_URI = "urn:codriver:vehicle:"
_BACKDATE = timedelta(minutes=5)  # clocks in cars are not exact


@dataclass(frozen=True)
class KeyFiles:
    """Where the files of a folder are. ``ca_key`` signs new certificates: keep it off the cars."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def cloud(self) -> Path:
        return self.folder / "cloud.crt"

    @property
    def cloud_key(self) -> Path:
        return self.folder / "cloud.key"

    @property
    def vehicle(self) -> Path:
        return self.folder / "vehicle.crt"

    @property
    def vehicle_key(self) -> Path:
        return self.folder / "vehicle.key"

    def all(self) -> tuple[Path, ...]:
        return self.ca, self.ca_key, self.cloud, self.cloud_key, self.vehicle, self.vehicle_key


@dataclass(frozen=True)
class CertificateFacts:
    """What a person wants to know of a certificate."""

    file: Path
    subject: str
    issuer: str
    names: tuple[str, ...]
    valid_from: datetime
    valid_until: datetime
    fingerprint: str


def make_keys(
    folder: Path,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1"),
    vehicle_id: str = "vehicle-1",
    days: int = 365,
    force: bool = False,
) -> KeyFiles:
    """Write an authority, a cloud certificate for ``hosts`` and a vehicle certificate into ``folder``.

    Nothing is written when one of the files is there and ``force`` is not set. Errors: :class:`CertificateError`.
    """
    files = KeyFiles(folder)
    there = [str(file) for file in files.all() if file.exists()]
    if there and not force:
        raise CertificateError(
            f"{', '.join(there)} would be overwritten, and what trusts the old ones would stop working. "
            "Choose another folder, or add --force."
        )
    if not 1 <= days <= 3650:
        raise CertificateError(f"A validity of {days} days is not allowed: choose from 1 to 3650.")
    vehicle_name = x509.UniformResourceIdentifier(VEHICLE_URI + quote(vehicle_id, safe=""))
    authority = _Authority(days)
    cloud = authority.issue("codriver cloud", [_host(host) for host in hosts], ExtendedKeyUsageOID.SERVER_AUTH)
    vehicle = authority.issue(vehicle_id, [vehicle_name], ExtendedKeyUsageOID.CLIENT_AUTH)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for certificate, key, pair in (
            (files.ca, files.ca_key, (authority.certificate, authority.key)),
            (files.cloud, files.cloud_key, cloud),
            (files.vehicle, files.vehicle_key, vehicle),
        ):
            pem = pair[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            _write(key, pem, 0o600)
            _write(certificate, pair[0].public_bytes(Encoding.PEM), 0o600)
    except OSError as error:
        raise CertificateError(f"The keys cannot be written to {folder}: {error.strerror}.") from error
    return files


class _Authority:
    """A fresh authority that can issue leaf certificates and nothing else."""

    def __init__(self, days: int) -> None:
        self._from = datetime.now(UTC) - _BACKDATE
        self._until = self._from + timedelta(days=days) + _BACKDATE
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("codriver authority")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = (
            self._builder(self._name, self.key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def issue(
        self, name: str, names: Sequence[x509.GeneralName], purpose: x509.ObjectIdentifier
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            self._builder(_name(name), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate, key

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._from)
            .not_valid_after(self._until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


def read_certificate(file: Path) -> CertificateFacts:
    """The first certificate in a PEM file. Errors: :class:`CertificateError`."""
    try:
        found = x509.load_pem_x509_certificate(file.read_bytes())
    except FileNotFoundError:
        raise CertificateError(f"The certificate {file} does not exist; `codriver keys init` makes one.") from None
    except (OSError, ValueError) as error:
        raise CertificateError(f"The file {file} cannot be read as a PEM certificate.") from error
    return CertificateFacts(
        file=file,
        subject=found.subject.rfc4514_string(),
        issuer=found.issuer.rfc4514_string(),
        names=_names(found),
        valid_from=found.not_valid_before_utc,
        valid_until=found.not_valid_after_utc,
        fingerprint=found.fingerprint(hashes.SHA256()).hex(":"),
    )


def check_certificate(file: Path, now_s: float) -> CertificateFacts:
    """The facts, or an error that names the date when ``now_s`` (Unix seconds) is outside the validity."""
    facts = read_certificate(file)
    now = datetime.fromtimestamp(now_s, UTC)
    if now > facts.valid_until:
        raise CertificateError(
            f"The certificate {file} expired on {_day(facts.valid_until)}; "
            "make new ones with `codriver keys init --force`."
        )
    if now < facts.valid_from:
        raise CertificateError(
            f"The certificate {file} is not valid before {_day(facts.valid_from)}, and this machine's clock says "
            f"{_day(now)}: check the clock."
        )
    return facts


def _names(found: x509.Certificate) -> tuple[str, ...]:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _name(name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError as error:
        raise CertificateError(f"'{name}' cannot be the name in a certificate: use 1 to 64 characters.") from error


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except (UnicodeError, ValueError) as error:
        raise CertificateError(f"'{host}' is neither a host name nor an IP address.") from error


def _write(file: Path, content: bytes, mode: int) -> None:
    """Whole or not at all; never readable by others, not even for a moment (mkstemp makes files with mode 0600)."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, mode)
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
