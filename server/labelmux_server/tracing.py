"""Spans of requests, for a collector that a setting names; none of this runs without one.

A request's span has those of its stages beneath it, as ``Server-Timing`` has them. They carry
names, sizes and codes, never a text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from labelmux_server.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_EXPORT_LIMIT_S = 5.0
_HEADERS = ("traceparent", "tracestate")

#: What the asyncio task at work belongs to; None where nothing is traced.
_current: ContextVar[RequestSpan | None] = ContextVar("labelmux_request_span", default=None)


class Tracing:
    """Makes the spans of one app and hands them to a processor."""

    def __init__(self, processor: SpanProcessor, share: float = 1.0) -> None:
        """``share``: of the requests that come without a trace; others go as theirs does."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        facts = {"service.name": "labelmux", "service.version": version("labelmux")}
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(share), resource=Resource.create(facts)
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("labelmux_server")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, endpoint: str, share: float) -> Tracing:
        """Spans go to a collector, as OTLP over HTTP, from a thread of their own.

        Raises:
            SettingsError: OpenTelemetry's SDK is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise SettingsError(
                "otlp_endpoint is set, but OpenTelemetry is not installed; install labelmux[otel], "
                "or leave the setting out"
            ) from error
        exporter = OTLPSpanExporter(
            endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_LIMIT_S
        )
        return cls(BatchSpanProcessor(exporter), share)

    def begin(self, method: str, headers: Mapping[str, str]) -> RequestSpan:
        """The span of a request that has come; part of its caller's trace, if it names one."""
        sent = {name: headers[name] for name in _HEADERS if name in headers}
        parent = self._propagator.extract(sent)
        span = self._tracer.start_span(method, parent, SpanKind.SERVER)
        return RequestSpan(self._tracer, span, method)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestSpan:
    """A request in work; its asyncio task's until it ends."""

    def __init__(self, tracer: Tracer, span: Span, method: str) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method
        self._reset = _current.set(self)
        self.trace_id = format_trace_id(span.get_span_context().trace_id)

    def add_stages(
        self,
        stages: Mapping[str, float],
        begun_s: Mapping[str, float],
        sizes: Mapping[str, int],
    ) -> None:
        """Spans of stages that are over, and what the call was.

        Args:
            stages: seconds by name, in order.
            begun_s: when some of them began, on the monotonic clock; others follow the one before.
            sizes: of the call.
        """
        self._span.set_attributes({f"labelmux.{name}": size for name, size in sizes.items()})
        epoch_ns = time.time_ns() - time.monotonic_ns()
        beneath, at_s = set_span_in_context(self._span), 0.0
        for name, seconds in stages.items():
            at_s = begun_s.get(name, at_s)
            start_ns = epoch_ns + int(at_s * 1e9)
            span = self._tracer.start_span(name, beneath, start_time=start_ns)
            at_s += seconds
            span.end(epoch_ns + int(at_s * 1e9))

    def end(self, route: str, status: int, request_id: str) -> None:
        """The request was answered."""
        _current.reset(self._reset)
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes(
            {
                "http.request.method": self._method,
                "http.route": route,
                "http.response.status_code": status,
                "labelmux.request_id": request_id,
            }
        )
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def current_span() -> RequestSpan | None:
    """The request that the asyncio task at work belongs to, if it is traced."""
    return _current.get()
