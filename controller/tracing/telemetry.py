"""Sends traces as OpenTelemetry spans: to an OTLP endpoint, or through the tracer provider of the program.

Sending happens in a daemon thread with a bounded queue (the SDK's `BatchSpanProcessor`), so an endpoint that is slow,
refuses or does not exist costs traces and nothing else. Needs the extra `trace`.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import baggage, context
from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_SERVICE_NAME,
    OTEL_SPAN_EVENT_COUNT_LIMIT,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ...ttt_core.spans import MAX_EVENTS
from ...ttt_core.tasks.fields import as_utf8
from ..run_facts import package_versions
from .content import without_content
from .conventions import OpenInference
from .span_records import SpanRecord, span_record
from .trace import Trace

EXIT_SECONDS = 2.0
"""How long the end of the process waits for spans that were not sent yet."""
HIDING_VARIABLES = ("OPENINFERENCE_HIDE_INPUTS", "OPENINFERENCE_HIDE_OUTPUTS")
"""OpenInference's variables; where one of them is true, spans have no content."""
_LOG = logging.getLogger("autottt")
_STATUS = {"ok": otel.StatusCode.OK, "error": otel.StatusCode.ERROR, "unset": otel.StatusCode.UNSET}


class TelemetryTarget:
    """A target that exports each trace as a tree of spans with OpenInference's and GenAI's attributes."""

    def __init__(self, endpoint: str | None = None, *, provider: otel.TracerProvider | None = None) -> None:
        """Spans go to `provider`; without one to the OTLP endpoint (HTTP and protobuf; its path gets `/v1/traces`);
        without either to the program's own tracer provider if it has set one, else to the endpoint that
        OpenTelemetry's variables name (`OTEL_EXPORTER_OTLP_ENDPOINT`, default `http://localhost:4318`).

        Those variables also set headers, timeout, compression, sampling, queue and the name of the service. The
        program's tracer provider is never replaced.
        """
        self.endpoint = endpoint
        self.provider = provider

    def of_caller(self) -> dict[str, Any]:
        """Attributes for a run that begins now: the caller's current span as `caller` (W3C trace context), and its
        session id, as OpenInference's `using_session` or the baggage `session.id` says it."""
        attributes: dict[str, Any] = {}
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, otel.set_span_in_context(_current_span()))
        if carrier:
            attributes["caller"] = carrier
        session = context.get_value(OpenInference.SESSION_ID) or baggage.get_baggage(OpenInference.SESSION_ID)
        if session:
            attributes["session"] = str(session)
        return attributes

    def write(self, trace: Trace) -> None:
        """Hands the spans of a trace to the provider."""
        if trace.has_content and any(os.environ.get(name, "").lower() == "true" for name in HIDING_VARIABLES):
            trace = without_content(trace)
        tracer = self._provider().get_tracer("autottt", package_versions()["autottt"])
        _emit(tracer, span_record(trace), _caller_of(trace))

    def flush(self, seconds: float = 10.0) -> bool:
        """Waits until spans were sent, at most so long; returns whether the sending has ended, also where the endpoint
        refused them."""
        provider = self._provider()
        if isinstance(provider, _ExportingProvider):
            return provider.flusher.flush(seconds)
        return not isinstance(provider, TracerProvider) or provider.force_flush(int(1000 * seconds))

    def _provider(self) -> otel.TracerProvider:
        if self.provider is not None:
            return self.provider
        if self.endpoint is None:
            program = otel.get_tracer_provider()
            if not isinstance(program, (otel.ProxyTracerProvider, otel.NoOpTracerProvider)):
                return program
        settings = tuple(sorted((n, v) for n, v in os.environ.items() if n.startswith("OTEL_")))
        return _exporting_provider(self.endpoint, settings)


def _current_span() -> otel.Span:
    """The caller's innermost span. Inside a LangGraph node that OpenInference's instrumentor traces, OpenTelemetry's
    current span is not that of the node, which the instrumentor knows."""
    current = otel.get_current_span()
    instrumentor: Any = sys.modules.get("openinference.instrumentation.langchain")
    node = instrumentor.get_current_span() if instrumentor is not None else None
    if not isinstance(node, Span):
        return current
    is_inside = isinstance(current, Span) and (current.start_time or 0) > (node.start_time or 0)
    return current if is_inside else node


def _caller_of(trace: Trace) -> context.Context:
    """The context in which the root of a trace begins: that of the caller's span, of this process or of another."""
    carrier: Mapping[str, Any] = trace.attributes.get("caller", {})
    extracted = TraceContextTextMapPropagator().extract(carrier, context.Context())
    parent = otel.get_current_span(extracted).get_span_context()
    if not parent.is_valid:
        return context.Context()
    is_remote = bool(carrier.get("remote"))
    caller = otel.SpanContext(parent.trace_id, parent.span_id, is_remote, parent.trace_flags, parent.trace_state)
    return otel.set_span_in_context(otel.NonRecordingSpan(caller), context.Context())


def _emit(tracer: otel.Tracer, record: SpanRecord, parent: context.Context) -> None:
    """Starts and ends a span with everything inside it; nothing where it is not sampled."""
    attributes = {name: _exportable(value) for name, value in record.attributes.items()}
    span = tracer.start_span(as_utf8(record.name), parent, attributes=attributes, start_time=record.start)
    if not span.is_recording():
        return
    inner = otel.set_span_in_context(span, parent)
    for child in record.children:
        _emit(tracer, child, inner)
    for event in record.events:
        span.add_event(event.name, {name: _exportable(value) for name, value in event.attributes.items()}, event.time)
    if record.status != "unset":
        span.set_status(_STATUS[record.status], as_utf8(record.description) or None)
    span.end(record.end)


def _exportable(value: Any) -> Any:
    """The value with texts that UTF-8 can hold, as the name of a file may be none. The exporter would lose all spans of
    a batch because of one that it cannot, and the SDK the attribute."""
    if isinstance(value, str):
        return as_utf8(value)
    return [_exportable(each) for each in value] if isinstance(value, list | tuple) else value


class _ExportingProvider(TracerProvider):
    """A provider of this package alone, which sends to an OTLP endpoint."""

    flusher: _Flusher


@cache
def _exporting_provider(endpoint: str | None, settings: tuple[tuple[str, str], ...]) -> _ExportingProvider:
    """The provider for an endpoint, one for all controllers; `settings` are OpenTelemetry's variables."""
    variables = dict(settings)
    limits = SpanLimits(max_events=None if OTEL_SPAN_EVENT_COUNT_LIMIT in variables else MAX_EVENTS)
    resource = Resource.create()
    if OTEL_SERVICE_NAME not in variables and str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "autottt"}))
    provider = _ExportingProvider(resource=resource, shutdown_on_exit=False, span_limits=limits)
    provider.add_span_processor(BatchSpanProcessor(_Exporter(endpoint)))
    provider.flusher = _Flusher(provider)
    atexit.register(provider.flusher.flush, EXIT_SECONDS)
    return provider


def traces_url(endpoint: str) -> str:
    """The URL of an OTLP endpoint for traces."""
    return endpoint if endpoint.rstrip("/").endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"


class _Exporter(SpanExporter):
    """The SDK's OTLP exporter, except that an outage is one warning of this package and not an error for each try."""

    def __init__(self, endpoint: str | None) -> None:
        self._exporter = trace_exporter.OTLPSpanExporter(endpoint if endpoint is None else traces_url(endpoint))
        named = os.environ.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) or os.environ.get(OTEL_EXPORTER_OTLP_ENDPOINT)
        url = urlsplit(endpoint or named or trace_exporter.DEFAULT_ENDPOINT)
        self._place = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        self._fails = False
        logging.getLogger(trace_exporter.__name__).addFilter(_is_not_ours)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        token = _exporting.set(True)
        try:
            result = self._exporter.export(spans)
        finally:
            _exporting.reset(token)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._fails:
            _LOG.warning("%s: traces cannot be sent there; answers are not affected", self._place)
        self._fails = failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


_exporting: ContextVar[bool] = ContextVar("autottt_exporting", default=False)
"""Whether this thread sends spans of this package."""


def _is_not_ours(record: logging.LogRecord) -> bool:
    """A filter of the SDK's logger: what it says of sending our spans is dropped."""
    return not _exporting.get()


class _Flusher:
    """Flushes a provider in a thread of its own: `force_flush` itself has no time limit. The thread exists from the
    beginning, since none can be started when the process ends."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._requests: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="autottt-flush", daemon=True)
        self._thread.start()

    def flush(self, seconds: float) -> bool:
        """Waits at most so long until the spans were sent; False in a process that a fork made, which has no such
        thread."""
        if not self._thread.is_alive():
            return False
        done = threading.Event()
        self._requests.put(done)
        return done.wait(seconds)

    def _run(self) -> None:
        while True:
            done = self._requests.get()
            self._provider.force_flush()
            done.set()
