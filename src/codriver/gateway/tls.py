"""TLS contexts for both ends: TLS 1.2 or newer, and certificates that were checked before they are used.

A file that is missing, expired, not yet valid or not a certificate is named here, with its date, and not by an alert
in the middle of a handshake.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import CertificateError

from .keys import check_certificate


def server_context(cert: Path, key: Path, client_ca: Path | None, clock: Clock = SYSTEM_CLOCK) -> ssl.SSLContext:
    """For listening. With ``client_ca`` every client must show a certificate that it signed.

    Errors: :class:`CertificateError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _strict(context)
    _load_chain(context, cert, key, clock)
    if client_ca is not None:
        _load_authority(context, client_ca, clock)
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(
    ca: Path | None, cert: Path | None = None, key: Path | None = None, clock: Clock = SYSTEM_CLOCK
) -> ssl.SSLContext:
    """For calling. ``ca`` None trusts the system's authorities; ``cert`` and ``key`` are shown to the server.

    Errors: :class:`CertificateError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _strict(context)
    if ca is None:
        context.load_default_certs()
    else:
        _load_authority(context, ca, clock)
    if cert is not None:
        if key is None:
            raise CertificateError(f"The certificate {cert} needs its private key beside it.")
        _load_chain(context, cert, key, clock)
    return context


def _strict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _load_chain(context: ssl.SSLContext, cert: Path, key: Path, clock: Clock) -> None:
    check_certificate(cert, clock.wall_s())
    if not key.is_file():
        raise CertificateError(f"The private key {key} does not exist; `codriver keys init` makes one.")
    try:
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CertificateError(
            f"The private key {key} cannot be used with the certificate {cert}: it belongs to another one, "
            "is protected by a password, or is no PEM key."
        ) from error


def _load_authority(context: ssl.SSLContext, ca: Path, clock: Clock) -> None:
    check_certificate(ca, clock.wall_s())
    context.load_verify_locations(ca)
