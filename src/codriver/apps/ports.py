"""Whether a port of this machine can be listened on."""

from __future__ import annotations

import socket

from codriver.core.errors import BadConfigValue, PortInUse


def why_taken(port: int) -> str | None:
    """Why loopback's ``port`` cannot be had, in the system's words; ``None`` when it is free. 0 is always free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def refuse_taken(*ports: int) -> None:
    """Raise :class:`PortInUse` for the first port that is not free (before a model is loaded, not after) and
    :class:`BadConfigValue` for one that does not exist.
    """
    for port in ports:
        if not 0 <= port <= 65535:
            raise BadConfigValue(f"There is no port {port}; allowed: 0 to 65535.", param="port")
        reason = why_taken(port)
        if reason is not None:
            raise PortInUse(
                f"Port {port} on 127.0.0.1 is not free ({reason}): choose another with --port.", param="port"
            )
