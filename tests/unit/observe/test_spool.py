"""Spans survive a collector that is away, in order and within their limit; a real collector on loopback counts them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from codriver.observe.config import ObserveConfig
from codriver.observe.export import provider
from codriver.observe.metrics import Metrics
from codriver.observe.spool import Sent, Spool, SpoolingExporter, otlp_sender


class Collector:
    """Takes OTLP over HTTP on loopback; ``status`` is what it answers with."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.status = 200
        self.enough = threading.Event()
        self.wanted = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if outer.status == 200:
                    asked = ExportTraceServiceRequest.FromString(body)
                    outer.names += [
                        span.name
                        for resource in asked.resource_spans
                        for scope in resource.scope_spans
                        for span in scope.spans
                    ]
                    if len(outer.names) >= outer.wanted:
                        outer.enough.set()
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.server.shutdown()
    one.server.server_close()


def spans(*names: str) -> list[ReadableSpan]:
    tracer = TracerProvider().get_tracer("test")
    made = []
    for name in names:
        span = tracer.start_span(name)
        span.end()
        made.append(span)
    return made  # type: ignore[return-value]


class Road:
    """A way to the collector that the test opens and closes."""

    def __init__(self, way: Sent = Sent.TAKEN) -> None:
        self.way = way
        self.sent: list[bytes] = []

    def __call__(self, body: bytes) -> Sent:
        if self.way is Sent.TAKEN:
            self.sent.append(body)
        return self.way


def names(bodies: list[bytes]) -> list[str]:
    found = []
    for body in bodies:
        asked = ExportTraceServiceRequest.FromString(body)
        found += [span.name for one in asked.resource_spans for scope in one.scope_spans for span in scope.spans]
    return found


def test_what_cannot_be_sent_waits_and_goes_out_in_order(tmp_path: Path) -> None:
    road, spool = Road(Sent.UNREACHED), Spool(tmp_path, 1 << 20)
    exporter = SpoolingExporter(road, spool)
    exporter.export(spans("a"))
    exporter.export(spans("b", "c"))
    assert spool.counted().waiting == 3
    assert not exporter.drain()
    assert spool.counted().waiting == 3
    road.way = Sent.TAKEN
    exporter.drain()
    exporter.shutdown()  # the background thread is out of the way: everything is settled
    assert names(road.sent) == ["a", "b", "c"]
    assert (spool.counted().waiting, spool.counted().dropped) == (0, 0)
    assert not list(tmp_path.iterdir())


def test_the_oldest_make_room_and_are_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    for index in range(5):
        spool.put(bytes([index]) * 40, spans=10)
    assert (spool.counted().waiting, spool.counted().dropped) == (20, 30)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 100
    assert spool.first() == (bytes([3]) * 40, 10)
    spool.put(bytes(101), spans=1)
    assert spool.counted().dropped == 31


def test_a_restart_sends_what_the_last_drive_left(tmp_path: Path) -> None:
    first = SpoolingExporter(Road(Sent.UNREACHED), Spool(tmp_path, 1 << 20))
    first.export(spans("before"))
    first.shutdown()
    (tmp_path / "000000000009-4.part").write_bytes(b"half written")
    road = Road(Sent.UNREACHED)
    second = SpoolingExporter(road, Spool(tmp_path, 1 << 20))
    second.export(spans("after"))
    road.way = Sent.TAKEN
    second.drain()
    second.shutdown()
    assert names(road.sent) == ["before", "after"]
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_final_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, 1 << 20)
    exporter = SpoolingExporter(Road(Sent.REFUSED), spool)
    exporter.export(spans("a", "b"))
    exporter.shutdown()
    assert (spool.counted().waiting, spool.counted().dropped) == (0, 2)
    assert "refused spans" in caplog.text


def test_a_disk_that_takes_nothing_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spans", 1 << 20)
    (tmp_path / "spans").rmdir()
    spool.put(b"x", spans=7)
    assert (spool.counted().waiting, spool.counted().dropped) == (0, 7)


@pytest.mark.parametrize(
    ("status", "sent"), [(200, Sent.TAKEN), (400, Sent.REFUSED), (429, Sent.UNREACHED), (503, Sent.UNREACHED)]
)
def test_a_collectors_answers(collector: Collector, status: int, sent: Sent) -> None:
    collector.status = status
    assert otlp_sender(collector.url)(b"") is sent


def test_nobody_there(collector: Collector) -> None:
    collector.server.shutdown()
    collector.server.server_close()
    assert otlp_sender(collector.url)(b"") is Sent.UNREACHED


def test_a_collector_that_comes_back_gets_everything(collector: Collector, tmp_path: Path) -> None:
    """The SDK, the thread and the socket as they are in a vehicle; /metrics tells what waits."""
    collector.status, collector.wanted = 503, 2
    metrics = Metrics()
    made = provider(ObserveConfig(spans="otlp", otlp_endpoint=collector.url), "test", tmp_path, metrics)
    tracer = made.get_tracer("test")
    tracer.start_span("one").end()
    made.force_flush()
    assert "codriver_spans_waiting 1.0" in metrics.render()[0].decode()
    tracer.start_span("two").end()
    made.force_flush()
    assert "codriver_spans_waiting 2.0" in metrics.render()[0].decode()
    collector.status = 200
    assert collector.enough.wait(10)
    made.shutdown()
    assert collector.names == ["one", "two"]
    page = metrics.render()[0].decode()
    assert "codriver_spans_waiting 0.0" in page
    assert "codriver_spans_dropped 0.0" in page
