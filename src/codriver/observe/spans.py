"""Spans of requests and attempts, by OpenTelemetry's conventions for generative AI.

Only the OpenTelemetry API is imported. While no SDK is configured (``setup.py``), both starters return one shared null
span, so that a process that nobody traces pays a type check per request. Rule: a span never holds a request's or an
answer's text.

Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/. What they have no word for is
``codriver.*``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import context, trace
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from codriver.core.engine import EngineCard
from codriver.core.errors import CodriverError
from codriver.core.messages import Usage

PROVIDER = "codriver"
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
_OFF = (ProxyTracerProvider, NoOpTracerProvider)
_BY_ENVIRONMENT = "OTEL_PYTHON_TRACER_PROVIDER" in os.environ
_w3c = TraceContextTextMapPropagator()


class RequestSpan:
    """One request at the edge. This class is the null version; it does nothing."""

    def activate(self) -> AbstractContextManager[None]:
        """Make it the current span, so that attempts become its children."""
        return _INACTIVE

    def answered_by(self, model: str, finish_reasons: tuple[str, ...] = ()) -> None:
        """Which model answered and how its choices ended."""

    def end(self, status: int, error: CodriverError | None = None, usage: Usage | None = None) -> None:
        """Close it. ``status`` is the HTTP status as sent. Later calls do nothing."""


class AttemptSpan:
    """One attempt at one engine. This class is the null version; it does nothing."""

    def activate(self) -> AbstractContextManager[None]:
        """Make it the current span, so that :func:`outgoing_headers` carries it upstream."""
        return _INACTIVE

    def first_token(self) -> None:
        """The first token came; later calls do nothing."""

    def end(self, outcome: str, usage: Usage | None = None, error: CodriverError | None = None) -> None:
        """Close it. ``outcome`` is ``ok`` or a word for why it ended. Later calls do nothing."""


_INACTIVE = nullcontext()
NO_REQUEST_SPAN = RequestSpan()
NO_ATTEMPT_SPAN = AttemptSpan()


class _Recorded:
    """What both kinds share: an open OpenTelemetry span that is ended once."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._ended = False

    @contextmanager
    def activate(self) -> Iterator[None]:
        token = context.attach(trace.set_span_in_context(self._span))
        try:
            yield
        finally:
            context.detach(token)

    def _close(self, usage: Usage | None, error: CodriverError | None) -> None:
        self._ended = True
        if usage is not None:
            self._span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
        if error is not None:
            self._span.set_attribute("error.type", error.code)
            self._span.set_status(Status(StatusCode.ERROR, error.code))
        self._span.end()


class _RecordedRequest(_Recorded, RequestSpan):
    def answered_by(self, model: str, finish_reasons: tuple[str, ...] = ()) -> None:
        if model:
            self._span.set_attribute("gen_ai.response.model", model)
        if finish_reasons:
            self._span.set_attribute("gen_ai.response.finish_reasons", finish_reasons)

    def end(self, status: int, error: CodriverError | None = None, usage: Usage | None = None) -> None:
        if not self._ended:
            self._span.set_attribute("http.response.status_code", status)
            self._close(usage, error)


class _RecordedAttempt(_Recorded, AttemptSpan):
    def __init__(self, span: Span) -> None:
        super().__init__(span)
        self._started_s: float | None = time.perf_counter()

    def first_token(self) -> None:
        if self._started_s is not None and not self._ended:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - self._started_s)
            self._started_s = None

    def end(self, outcome: str, usage: Usage | None = None, error: CodriverError | None = None) -> None:
        if not self._ended:
            self._span.set_attribute("codriver.attempt.outcome", outcome)
            self._close(usage, error)


def enabled() -> bool:
    """Whether an SDK is configured, that is, whether spans go anywhere."""
    # Asked several times a request. The API's own answer costs 1.5 µs, most of it spent on os.environ; where it keeps
    # its provider elsewhere one day, that is what is asked again.
    if not _BY_ENVIRONMENT and trace.__dict__.get("_TRACER_PROVIDER", trace) is None:
        return False
    return not isinstance(trace.get_tracer_provider(), _OFF)


def start_request(model: str, route: str, headers: Mapping[str, str]) -> RequestSpan:
    """A span for a request at the edge. ``headers``: lower-case names; a W3C ``traceparent`` there is its parent."""
    if not enabled():
        return NO_REQUEST_SPAN
    operation = _OPERATIONS.get(route, "chat")
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "http.route": route,
    }
    span = trace.get_tracer("codriver").start_span(
        f"{operation} {model}", _w3c.extract(headers), kind=SpanKind.SERVER, attributes=attributes
    )
    return _RecordedRequest(span)


def start_attempt(card: EngineCard, index: int, why: str, server_address: str | None = None) -> AttemptSpan:
    """A span for attempt ``index`` (from 0), child of the current one. ``why`` is the plan's word for it."""
    if not enabled():
        return NO_ATTEMPT_SPAN
    model = card.model or card.id
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "codriver.engine.id": card.id,
        "codriver.engine.locality": card.locality,
        "codriver.attempt.index": index,
        "codriver.attempt.why": why,
    }
    if server_address:
        attributes["server.address"] = server_address
    kind = SpanKind.CLIENT if card.locality == "cloud" else SpanKind.INTERNAL
    return _RecordedAttempt(trace.get_tracer("codriver").start_span(f"chat {model}", kind=kind, attributes=attributes))


def outgoing_headers() -> dict[str, str]:
    """``traceparent`` and ``tracestate`` of the current span for a request upstream; empty when nobody traces."""
    headers: dict[str, str] = {}
    if enabled():
        _w3c.inject(headers)
    return headers
