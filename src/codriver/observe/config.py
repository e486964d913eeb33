"""The settings of this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codriver.core.config import setting


@dataclass(frozen=True)
class ObserveConfig:
    """Logs and spans. Metrics need no settings: they are on and cost nothing until ``/metrics`` is read."""

    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "The least severe log lines to write.")
    log_format: Literal["auto", "json", "text"] = setting(
        "auto", "How log lines look: one JSON object each, or text; auto means text on a terminal and JSON elsewhere."
    )
    spans: Literal["none", "console", "file", "otlp"] = setting(
        "none", "Where spans go; anything but none needs codriver[otel]."
    )
    spans_file: Path | None = setting(
        None, "The file that spans are appended to, one JSON object a line, with spans = file."
    )
    otlp_endpoint: str = setting(
        "http://127.0.0.1:4318/v1/traces", "The OTLP/HTTP address that spans go to, with spans = otlp."
    )
    otlp_buffer_mb: float = setting(
        32.0,
        "Disk space for spans that wait for the collector to come back; the oldest are dropped. 0: none wait.",
        least=0,
    )
    sample_ratio: float = setting(
        1.0, "The share of requests that are traced where the caller has not decided.", least=0, most=1
    )
