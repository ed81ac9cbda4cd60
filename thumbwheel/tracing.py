"""Traces, off unless `tracing.endpoint` is set: one from a chat to the version that it helped to train.

    chat ─► its turn's record ─┐
                               ├─links─► cycle ─► its version's record ─link─► swap
    vote ─► its event ─────────┘

Each arrow is a `traceparent` (W3C Trace Context) that the record keeps. While it is off nothing of OpenTelemetry is
imported. Spans tell names, numbers and outcomes; prompts, answers, people and keys are never told.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from thumbwheel import config
from thumbwheel.errors import SetupError

Fact = str | int | float
Metadata = Iterable[tuple[str, str | bytes]]

MAX_LINKS = 128
"""Traces that one span names as where it comes from."""


class Span(Protocol):
    """A step that is under way."""

    def tell(self, **facts: Fact) -> None:
        """Adds facts; ``__`` in a name stands for a dot."""

    def fail(self, kind: str) -> None:
        """Marks it as failed."""

    def link(self, traceparents: Iterable[str]) -> None:
        """Names traces that it comes from; what is empty or none is left out, and what is above MAX_LINKS."""

    def end(self) -> None:
        """Ends what `begin` began."""


class Tracer(Protocol):
    """What `tracing_otel` does."""

    def span(self, name: str, facts: Mapping[str, Fact], caller: str | None) -> AbstractContextManager[Span]: ...

    def begin(self, name: str, facts: Mapping[str, Fact]) -> Span: ...

    def traceparent(self) -> str: ...

    def close(self) -> None: ...


class _Untraced:
    """Steps that nobody follows."""

    def tell(self, **facts: Fact) -> None:
        pass

    def fail(self, kind: str) -> None:
        pass

    def link(self, traceparents: Iterable[str]) -> None:
        pass

    def end(self) -> None:
        pass


UNTRACED: Span = _Untraced()
_OFF: AbstractContextManager[Span] = nullcontext(UNTRACED)
_tracer: Tracer | None = None


def require(settings: config.Tracing) -> None:
    """
    Raises:
        SetupError: traces are asked for, and what sends them is not installed, or where they go is no address.
    """
    if not settings.endpoint:
        return
    if not settings.endpoint.startswith(("http://", "https://")):
        raise SetupError(
            f"tracing.endpoint = {settings.endpoint!r}: must be an address such as http://127.0.0.1:4318/v1/traces"
        )
    try:
        installed = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # of one of the packages around it
        installed = False
    if not installed:
        raise SetupError(
            "tracing.endpoint needs OpenTelemetry, which is not installed\n  pip install 'thumbwheel[tracing]'"
        )


def configure(settings: config.Tracing, process: str) -> None:
    """Begins to trace, if that is set up. Not before a fork: what sends the spans is a thread.

    Raises:
        SetupError: as `require`.
    """
    global _tracer
    require(settings)
    if not settings.endpoint:
        return
    from thumbwheel.tracing_otel import OtelTracer

    _tracer = OtelTracer(settings, process)


def close() -> None:
    """Sends what has ended, for as long as that takes, at most a few seconds; from then on nothing is traced."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        tracer.close()


def span(name: str, facts: Mapping[str, Fact] | None = None) -> AbstractContextManager[Span]:
    """A step within the one under way, or the first of a trace."""
    return _OFF if _tracer is None else _tracer.span(name, facts or {}, None)


def request(name: str, metadata: Metadata, facts: Mapping[str, Fact]) -> AbstractContextManager[Span]:
    """A caller's request. It goes on with the trace that the caller's `traceparent` names, if there is one."""
    if _tracer is None:
        return _OFF
    sent = [value for key, value in metadata if key == "traceparent"]
    return _tracer.span(name, facts, sent[0] if len(sent) == 1 and isinstance(sent[0], str) else "")


def begin(name: str, facts: Mapping[str, Fact] | None = None) -> Span:
    """A step that ends by `Span.end`, and within which there is no other."""
    return UNTRACED if _tracer is None else _tracer.begin(name, facts or {})


def traceparent() -> str:
    """Names the step under way to those who come later; "" if nobody follows it."""
    return "" if _tracer is None else _tracer.traceparent()


def trace_id() -> str:
    """The trace under way, as logs tell it; "" if there is none."""
    return traceparent()[3:35]
