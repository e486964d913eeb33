"""The part that needs the OpenTelemetry SDK; only ``setup.py`` imports it, on use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from codriver import __version__

from .config import ObserveConfig
from .metrics import Metrics


class FileSpanExporter(SpanExporter):
    """Appends one JSON object a line to a file: for debugging and for the drive's report."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            if self._file.closed:
                return SpanExportResult.FAILURE
            self._file.writelines(span.to_json(indent=None) + "\n" for span in spans)
            self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        with self._lock:
            self._file.close()


def _exporter(config: ObserveConfig, folder: Path | None, metrics: Metrics | None) -> SpanExporter:
    if config.spans == "file" and config.spans_file is not None:
        return FileSpanExporter(config.spans_file)
    if config.spans == "otlp":
        if folder is not None and config.otlp_buffer_mb > 0:
            from .spool import Spool, SpoolingExporter, otlp_sender

            spool = Spool(folder, int(config.otlp_buffer_mb * 1e6))
            if metrics is not None:
                metrics.watch_spans(lambda: spool.counted().waiting, lambda: spool.counted().dropped)
            return SpoolingExporter(otlp_sender(config.otlp_endpoint), spool)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=config.otlp_endpoint)
    return ConsoleSpanExporter(out=sys.stderr)


def provider(
    config: ObserveConfig, service: str, folder: Path | None = None, metrics: Metrics | None = None
) -> TracerProvider:
    """A provider that samples and exports as ``config`` says. It is not yet the process's own."""
    made = TracerProvider(
        resource=Resource.create({"service.name": service, "service.version": __version__}),
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
    )
    made.add_span_processor(BatchSpanProcessor(_exporter(config, folder, metrics)))
    return made


def start(
    config: ObserveConfig, service: str, folder: Path | None = None, metrics: Metrics | None = None
) -> Callable[[], None]:
    """Make :func:`provider` the process's own; returns what flushes and stops it."""
    made = provider(config, service, folder, metrics)
    trace.set_tracer_provider(made)
    return made.shutdown
