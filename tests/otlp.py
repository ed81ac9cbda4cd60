"""A receiver of traces, as collectors are: OTLP over HTTP, on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span as it was received. `parent` is "" for the first of a trace; ids are hexadecimal."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent: str
    facts: dict[str, Any]
    links: tuple[str, ...]
    """Ids of the traces that it names."""
    failed: bool
    nanoseconds: int


@dataclass
class Receiver:
    endpoint: str
    spans: list[Span] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        self.raw.append(body)
        for one in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {fact.key: fact.value.string_value for fact in one.resource.attributes}
            for scope in one.scope_spans:
                for span in scope.spans:
                    facts = {
                        fact.key: getattr(fact.value, fact.value.WhichOneof("value") or "") for fact in span.attributes
                    }
                    self.spans.append(
                        Span(
                            resource["service.name"], span.name, span.kind, span.trace_id.hex(), span.span_id.hex(),
                            span.parent_span_id.hex(), facts, tuple(link.trace_id.hex() for link in span.links),
                            span.status.code == span.status.STATUS_CODE_ERROR,
                            span.end_time_unix_nano - span.start_time_unix_nano,
                        )
                    )  # fmt: skip

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
