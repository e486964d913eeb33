"""What a remote server's refusals and a connection's failures mean in Codriver's error tree.

The rule kept here: 4xx is the request's fault (or the operator's), 5xx the server's, everything below HTTP the link's
or the configuration's; and a client of ours never gets a 401 because *our* key was refused upstream.
"""

from __future__ import annotations

import email.utils
import re
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import msgspec

from codriver.core.errors import (
    CodriverError,
    EngineBusy,
    EngineDied,
    EngineUnavailable,
    PromptTooLong,
    UpstreamError,
    UpstreamMalformed,
    UpstreamRejected,
)
from codriver.core.wire import UNREADABLE

from .http_answer import CannotConnect, ConnectTimedOut, HttpFailure, NotHttp

_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_TOO_LONG = re.compile(
    r"context (length|size|window)|prompt is too long|maximum (input|model) length|max_model_len"
    r"|too many (input )?tokens",
    re.IGNORECASE,
)
_MESSAGE_LIMIT = 500
_CERT_EXPIRED, _CERT_NOT_YET_VALID = 10, 9  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED and ..._NOT_YET_VALID


def error_in(body: bytes) -> dict[str, Any] | None:
    """The error object of a JSON body, in any of the shapes servers use; ``None`` when there is none."""
    try:
        decoded = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    if not isinstance(decoded, dict):
        return None
    found = decoded.get("error")
    if isinstance(found, dict):
        return found
    if isinstance(found, str) and found:
        return {"message": found}
    if decoded.get("object") == "error":
        return decoded
    detail = decoded.get("detail")
    return {"message": detail if isinstance(detail, str) else str(detail)} if detail else None


def refusal(status: int, headers: Mapping[str, str], body: bytes, engine: str, wall_s: float = 0.0) -> CodriverError:
    """The error for an HTTP answer that is not 2xx. Names in ``headers`` are in lower case.

    ``wall_s`` is now, for a ``Retry-After`` that is a date.
    """
    found = error_in(body) or {}
    said = _sentence(found.get("message") or body.decode("utf-8", "replace"))
    code = str(found.get("code") or found.get("type") or "")
    server = f"The server of '{engine}'"
    retry_s = retry_after_s(headers, wall_s)
    if status == 429:
        return EngineBusy(f"{server} takes no more requests now: {said}", engine=engine, retry_after_s=retry_s)
    if status in (401, 403):
        # The server's own words are left out: they may quote the key.
        return UpstreamRejected(
            f"{server} refused the API key ({status}): set a valid one in its configuration.", engine=engine
        )
    if status in (408, 425) or status >= 500:
        return UpstreamError(f"{server} failed ({status}): {said}", engine=engine, retry_after_s=retry_s)
    if status in (400, 413, 422) and (code in _TOO_LONG_CODES or _TOO_LONG.search(said)):
        return PromptTooLong(f"The prompt is too long for '{engine}': {said}", param="messages")
    if 300 <= status < 400:
        place = headers.get("location", "somewhere else")
        return UpstreamRejected(f"{server} redirects to {place}: configure that address.", engine=engine)
    param = found.get("param")
    told = f"{server} refused the request ({status}): {said}"
    return UpstreamRejected(told, engine=engine, param=param if isinstance(param, str) else None)


def error_event(found: Mapping[str, Any], engine: str) -> CodriverError:
    """The error for an error object inside an answer that began with 200."""
    said = _sentence(found.get("message") or "no message")
    return UpstreamError(f"The server of '{engine}' failed in its answer: {said}", engine=engine)


def retry_after_s(headers: Mapping[str, str], wall_s: float) -> float | None:
    """Seconds from ``Retry-After-Ms`` or ``Retry-After`` (a number or an HTTP date); ``None`` when there are none."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue
    try:
        moment = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - wall_s)


def connection_error(error: HttpFailure, engine: str, place: str) -> CodriverError:
    """The error for a failure below HTTP before an answer began. ``place`` is the address, for the operator."""
    server = f"'{engine}' at {place}"
    tls = _tls_cause(error)
    if tls is not None:
        return EngineUnavailable(f"The TLS connection to {server} failed: {_tls_reason(tls)}.", engine=engine)
    cause = error.__cause__
    if isinstance(cause, socket.gaierror):
        return EngineUnavailable(f"The address of '{engine}' cannot be resolved: {place}.", engine=engine)
    if isinstance(error, ConnectTimedOut):
        return EngineUnavailable(f"{server} did not take a connection in time.", engine=engine)
    if isinstance(error, CannotConnect):
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        return EngineUnavailable(f"{server} cannot be reached: {reason}.", engine=engine)
    if isinstance(error, NotHttp):
        return UpstreamMalformed(f"{server} does not speak HTTP: {error}.", engine=engine)
    # A refused client certificate (TLS 1.3) may look like this: its alert comes late and a reset can swallow it.
    hint = " It may have refused our certificate." if place.startswith("https:") else ""
    return EngineDied(f"{server} closed the connection before it answered.{hint}", engine=engine)


def cut_short(engine: str, what: str = "The connection was cut") -> EngineDied:
    """The error for an answer that stopped in the middle."""
    return EngineDied(f"'{engine}' stopped before its answer was complete: {what}.", engine=engine)


def blames_link(error: HttpFailure) -> bool:
    """True for a refused, reset, cut or timed-out connection; not for a certificate, which proves that bytes flow."""
    return not isinstance(error, NotHttp) and _tls_cause(error) is None


def _tls_cause(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    return error


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _CERT_EXPIRED:
            return "its certificate has expired; renew it, and check this machine's date"
        if error.verify_code == _CERT_NOT_YET_VALID:
            return "its certificate is not valid yet; check this machine's date"
        return f"its certificate is not trusted here ({error.verify_message})"
    words = str(getattr(error, "reason", None) or error).replace("_", " ").lower()
    if "certificate" in words and "alert" in words:
        return f"it refused our certificate ({words})"
    return words


def _sentence(text: object) -> str:
    """One line, bounded, with an end."""
    line = " ".join(str(text).split())[:_MESSAGE_LIMIT] or "it gave no reason"
    return line if line.endswith((".", "!", "?")) else line + "."
