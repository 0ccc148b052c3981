"""Traces by OpenTelemetry, where its extra is installed and the environment names a collector.

`pip install 'gallery-upgrade[tracing]'`, and OTEL_EXPORTER_OTLP_ENDPOINT; the SDK reads its other variables itself.
Without both, nothing of OpenTelemetry is imported here and `span` does nothing. FastAPI itself makes the spans of
requests, by the provider that is set here. A request's trace goes on in the tasks that it asks for, by a header of
their messages, and in the tasks that those ask for: down to an upgrade's batches. Work that a sweep found, because a
message was lost, begins a trace of its own; a batch's has a link to the request, whose place is in the upgrade's row.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from service import logs

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Link, Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

events = logs.Events(__name__)
_tracer: "Tracer | None" = None


def start_tracing(service_name: str) -> None:
    """Send this process's traces to the collector that the environment names, if it names one."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        events.warning("tracing.not_installed", wanted="pip install 'gallery-upgrade[tracing]'")
        return
    trace_into(BatchSpanProcessor(OTLPSpanExporter()), service_name)


def trace_into(processor: "SpanProcessor", service_name: str) -> None:
    """Have spans of this process's messages, statements, requests to others and own work handed to a processor; once
    per process."""
    global _tracer  # as the instrumentations are of the whole process
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service_name}))
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    for instrumentor in (CeleryInstrumentor(), PsycopgInstrumentor(), HTTPXClientInstrumentor()):
        instrumentor.instrument(tracer_provider=provider)
    _tracer = provider.get_tracer("gallery_upgrade")

    def trace_id() -> logs.Fields:
        context = trace.get_current_span().get_span_context()
        return {"trace_id": trace.format_trace_id(context.trace_id)} if context.is_valid else {}

    logs.add_context(trace_id)


def current_trace() -> str | None:
    """Return where this is traced, as a `traceparent` (W3C Trace Context); None if it is not."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def span(name: str, asked_by: str | None = None, **attributes: Any) -> AbstractContextManager[object]:
    """Have what is done in the context be a span of its own, if traces are kept, with a link to the one that asked for
    it: a `traceparent`."""
    if _tracer is None:
        return nullcontext()
    return _tracer.start_as_current_span(name, attributes=attributes, links=_links(asked_by))


def _links(traceparent: str | None) -> list["Link"]:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return []
    found = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    context = trace.get_current_span(found).get_span_context()
    return [trace.Link(context)] if context.is_valid else []
