"""Traces over OTLP, by OpenTelemetry: the one module that imports it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, SamplingResult, TraceIdRatioBased

from thumbwheel import config
from thumbwheel.tracing import MAX_LINKS, Fact

QUEUE = 4096
"""Ended spans that wait to be sent; more are dropped."""
SEND_SECONDS = 5.0
"""For a batch to be taken."""
LAST_SECONDS = 3.0
"""For all that is left, at the end."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class OtelTracer:
    """Sends spans beside the work, from a thread of its own; what cannot be sent is lost, and disturbs nobody."""

    def __init__(self, settings: config.Tracing, process: str) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(_Share(settings.share)),
            resource=Resource.create({"service.namespace": "thumbwheel", "service.name": f"thumbwheel-{process}"}),
            span_limits=SpanLimits(max_links=MAX_LINKS),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE))
        self._tracer = self._provider.get_tracer("thumbwheel")

    @contextmanager
    def span(self, name: str, facts: Mapping[str, Fact], caller: str | None) -> Iterator[_Span]:
        """
        Args:
            caller: traceparent of who sent a request, "" if it has none; None: this is no request.
        """
        kind = trace.SpanKind.INTERNAL if caller is None else trace.SpanKind.SERVER
        context = None if caller is None else _context(caller)
        with self._tracer.start_as_current_span(
            name, context, kind, dict(facts), record_exception=False, set_status_on_exception=False
        ) as span:
            ours = _Span(span)
            try:
                yield ours
            except BaseException as error:
                # Its name alone: what an exception says may be what somebody wrote.
                ours.fail(type(error).__name__)
                raise

    def begin(self, name: str, facts: Mapping[str, Fact]) -> _Span:
        return _Span(self._tracer.start_span(name, attributes=dict(facts)))

    def traceparent(self) -> str:
        """Of sampled traces alone: of the others there is nothing to be found."""
        at = trace.get_current_span().get_span_context()
        if not at.is_valid or not at.trace_flags.sampled:
            return ""
        return f"00-{at.trace_id:032x}-{at.span_id:016x}-01"

    def close(self) -> None:
        # A thread that is left behind, for the exporter's own patience is longer than that of who stops a server.
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(LAST_SECONDS)


class _Span:
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._links: set[str] = set()

    def tell(self, **facts: Fact) -> None:
        self._span.set_attributes({name.replace("__", "."): value for name, value in facts.items()})

    def fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR)

    def link(self, traceparents: Iterable[str]) -> None:
        for one in traceparents:
            origin = _origin(one)
            if origin is not None and one not in self._links and len(self._links) < MAX_LINKS:
                self._links.add(one)
                self._span.add_link(origin)

    def end(self) -> None:
        self._span.end()


class _Share(Sampler):
    """A share of requests, and all that is rare: cycles and swaps, without which no trace would lead to a version."""

    def __init__(self, share: float) -> None:
        self._requests = TraceIdRatioBased(share)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        sampler = self._requests if kind is trace.SpanKind.SERVER else ALWAYS_ON
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self) -> str:
        return f"requests by {self._requests.get_description()}"


def _context(caller: str) -> Context:
    """Where a request goes on: not where the task that reads it happens to stand."""
    origin = _origin(caller)
    return Context() if origin is None else trace.set_span_in_context(trace.NonRecordingSpan(origin), Context())


def _origin(traceparent: str) -> trace.SpanContext | None:
    """None if it is not one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    origin = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags & 1))
    return origin if origin.is_valid else None
