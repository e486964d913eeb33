"""Spans over a link that comes and goes: sent to an OTLP collector, kept on disk while it cannot be reached.

A batch that cannot be sent is written to a folder, one file each, and goes out oldest first once the collector answers
again, also after a restart. Rules kept here: the folder never holds more than its limit (the oldest batches are dropped
and counted); a file that is half written is never sent; nobody who answers requests waits for any of it.

Protocol: OTLP/HTTP with protobuf bodies, https://opentelemetry.io/docs/specs/otlp/#otlphttp. Of the refusals it names
429, 502, 503 and 504 as worth another try; what a collector refuses otherwise is dropped.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.util.re import parse_env_headers

_log = logging.getLogger("codriver.observe")
_SUFFIX = ".otlp"
_AGAIN = frozenset({408, 429, 502, 503, 504})
_SEND_S = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0


class Sent(Enum):
    """What became of one batch."""

    TAKEN = "taken"
    REFUSED = "refused"
    UNREACHED = "unreached"


Send = Callable[[bytes], Sent]


def otlp_sender(endpoint: str) -> Send:
    """Posts one encoded batch to ``endpoint``. Headers and the authority's certificate come from OpenTelemetry's own
    variables (``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_EXPORTER_OTLP_CERTIFICATE``).
    """
    headers = {"content-type": "application/x-protobuf"}
    headers |= parse_env_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True)
    authority = os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE")
    context = ssl.create_default_context(cafile=authority) if endpoint.startswith("https:") else None

    def send(body: bytes) -> Sent:
        request = urllib.request.Request(endpoint, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_SEND_S, context=context):
                return Sent.TAKEN
        except urllib.error.HTTPError as error:
            error.close()
            return Sent.UNREACHED if error.code in _AGAIN else Sent.REFUSED
        except OSError:
            return Sent.UNREACHED

    return send


@dataclass(frozen=True, slots=True)
class Counted:
    """How many spans wait on disk now, and how many were dropped since the start."""

    waiting: int
    dropped: int


class Spool:
    """Batches in ``folder``, oldest first, at most ``limit_bytes`` of them. Safe to use from several threads."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._batches: deque[tuple[Path, int, int]] = deque()  # file, bytes, spans
        self._bytes = self._dropped = self._last = 0
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.part"):
            file.unlink(missing_ok=True)
        for file in sorted(folder.glob(f"*{_SUFFIX}")):
            number, _, spans = file.stem.partition("-")
            if number.isdigit() and spans.isdigit():
                self._last = max(self._last, int(number))
                self._hold(file, file.stat().st_size, int(spans))

    def counted(self) -> Counted:
        with self._lock:
            return Counted(sum(spans for _, _, spans in self._batches), self._dropped)

    def drop(self, spans: int) -> None:
        """Count spans that nobody will get."""
        with self._lock:
            self._dropped += spans

    def put(self, body: bytes, spans: int) -> None:
        """Keep a batch; the oldest ones make room. One that the disk does not take is dropped and counted."""
        with self._lock:
            if len(body) > self._limit_bytes:
                self._dropped += spans
                return
            while self._bytes + len(body) > self._limit_bytes:
                self._dropped += self._pop()
            self._last += 1
            file = self._folder / f"{self._last:012d}-{spans}{_SUFFIX}"
            part = file.with_suffix(".part")
            try:
                part.write_bytes(body)
                part.replace(file)
            except OSError:
                part.unlink(missing_ok=True)
                self._dropped += spans
                return
            self._hold(file, len(body), spans)

    def first(self) -> tuple[bytes, int] | None:
        """The oldest batch and its spans, or ``None``. A file that somebody took away is dropped and counted."""
        with self._lock:
            while self._batches:
                file, _, spans = self._batches[0]
                try:
                    return file.read_bytes(), spans
                except OSError:
                    self._dropped += self._pop()
            return None

    def done(self) -> None:
        """The batch that :meth:`first` gave has been sent, or will never be."""
        with self._lock:
            if self._batches:
                self._pop()

    def _hold(self, file: Path, size: int, spans: int) -> None:
        self._batches.append((file, size, spans))
        self._bytes += size

    def _pop(self) -> int:
        file, size, spans = self._batches.popleft()
        self._bytes -= size
        file.unlink(missing_ok=True)
        return spans


class SpoolingExporter(SpanExporter):
    """Sends batches at once while the collector answers; else keeps them in ``spool`` and tries again by itself, after
    one second, then twice as long each time, half a minute at most.
    """

    def __init__(self, send: Send, spool: Spool) -> None:
        self._send = send
        self._spool = spool
        self._stop = threading.Event()
        self._work = threading.Event()
        self._draining = threading.Lock()
        if spool.counted().waiting:
            self._work.set()
        self._thread = threading.Thread(target=self._run, name="codriver-spans", daemon=True)
        self._thread.start()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the SDK's own thread, never by one that answers requests."""
        body = encode_spans(spans).SerializeToString()
        if self._stop.is_set() or self._spool.counted().waiting:
            self._spool.put(body, len(spans))  # behind those that wait already
            return SpanExportResult.SUCCESS
        sent = self._send(body)
        if sent is Sent.UNREACHED:
            self._spool.put(body, len(spans))
            self._work.set()
        elif sent is Sent.REFUSED:
            self._refused(len(spans))
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def drain(self) -> bool:
        """Send what waits, oldest first; False when the collector could not be reached."""
        with self._draining:
            while (batch := self._spool.first()) is not None:
                body, spans = batch
                sent = self._send(body)
                if sent is Sent.UNREACHED:
                    return False
                self._spool.done()
                if sent is Sent.REFUSED:
                    self._refused(spans)
        return True

    def shutdown(self) -> None:
        """What is not sent yet stays on disk for the next start."""
        self._stop.set()
        self._work.set()
        self._thread.join(_SEND_S)

    def _refused(self, spans: int) -> None:
        self._spool.drop(spans)
        _log.warning("the collector refused spans; they are dropped", extra={"spans": spans})

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            self._work.wait()
            if self._stop.is_set():
                return
            self._work.clear()  # before looking: what comes in meanwhile sets it again
            if self.drain():
                wait_s = _FIRST_WAIT_S
            else:
                self._work.set()
                self._stop.wait(wait_s)
                wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
