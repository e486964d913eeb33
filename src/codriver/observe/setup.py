"""Where spans go: configures the OpenTelemetry SDK when the configuration asks for it and the extra is installed.

Export is buffered and runs beside the requests: a slow or dead collector never delays an answer. With ``spans = otlp``
what it could not take waits on disk (``spool.py``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from codriver.core.errors import BadConfigValue, MissingExtra

from .config import ObserveConfig
from .metrics import Metrics


def configure_spans(
    config: ObserveConfig, service: str, folder: Path | None = None, metrics: Metrics | None = None
) -> Callable[[], None]:
    """Start exporting; returns what flushes and stops it. ``service`` names the process: ``codriver-vehicle``, say.
    ``folder`` is where spans wait for a collector that is away; without one they are dropped. ``metrics`` counts them.

    Errors: :class:`MissingExtra` without the SDK, :class:`BadConfigValue` for ``spans = "file"`` without a file.
    """
    if config.spans == "none":
        return lambda: None
    needed = ["opentelemetry.sdk"] + (["opentelemetry.exporter"] if config.spans == "otlp" else [])
    if any(importlib.util.find_spec(module) is None for module in needed):
        raise MissingExtra(
            f"observe.spans is '{config.spans}', which needs the OpenTelemetry SDK; "
            "add it with: pip install 'codriver[otel]'"
        )
    if config.spans == "file" and config.spans_file is None:
        raise BadConfigValue(
            "observe.spans is 'file': set observe.spans_file to the file to write.", param="observe.spans_file"
        )
    from .export import start

    return start(config, service, folder, metrics)
