"""The settings of this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codriver.core.config import setting


@dataclass(frozen=True)
class GatewayConfig:
    """One listening address, who may use it, and its limits."""

    host: str = setting("127.0.0.1", "The address to listen on; any but a loopback one needs tls_cert and tls_key.")
    port: int = setting(8000, "The port to listen on; 0 takes a free one.", least=0, most=65535)
    api_keys: tuple[str, ...] = setting((), "Keys that may call, as they are or as sha256:<hex>; none means open.")
    keys_file: Path | None = setting(None, "A file with one such key a line; # starts a comment.")
    key_privacy: tuple[str, ...] = setting(
        (), "The least privacy class of a key's requests, as redact=KEY or local_only=KEY (KEY as in api_keys)."
    )
    rate_per_minute: float = setting(
        0.0,
        "Requests a minute that each key may send, in bursts of ten seconds' worth; 0: as many as it likes.",
        least=0,
    )
    key_rates: tuple[str, ...] = setting((), "The same for one key, as 30=KEY (KEY as in api_keys).")
    tls_cert: Path | None = setting(None, "The server's certificate (PEM, with its chain).")
    tls_key: Path | None = setting(None, "The private key of tls_cert (PEM).")
    tls_client_ca: Path | None = setting(
        None, "Clients must show a certificate that this authority signed (PEM): mutual TLS."
    )
    console: bool = setting(True, "Serve the console, a page to chat and to watch requests on, at /console/.")
    request_limit_s: float = setting(
        120.0, "The longest a request may take; a client can only ask for less.", least=0.001
    )
    grace_s: float = setting(1.0, "How long past its deadline an engine may take to report it itself.", least=0)
    body_limit_bytes: int = setting(8 << 20, "The largest request body.", least=1)
    head_limit_bytes: int = setting(32 << 10, "The largest request line and headers together.", least=1024)
    head_limit_count: int = setting(100, "The most headers in a request.", least=1)
    head_timeout_s: float = setting(10.0, "How long a client may take to send its headers.", least=0.01)
    body_timeout_s: float = setting(30.0, "How long a client may take to send its body.", least=0.01)
    idle_timeout_s: float = setting(75.0, "How long a connection may wait for its next request.", least=0.01)
    max_in_flight: int = setting(512, "The most requests answered at once; more are told to come back.", least=1)
    background_most: int = setting(
        2, "The most background requests (codriver.priority) answered at once; more are told to come back.", least=0
    )
    max_connections: int = setting(4096, "The most open connections; more are closed at once.", least=1)
    drain_s: float = setting(
        20.0, "How long answers may go on after a stop was asked for, before they are cut.", least=0
    )
