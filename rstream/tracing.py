"""OpenTelemetry: the context of a trace travels in the headers of entries; publishing and handling have spans.

Nothing is imported before the app has imported OpenTelemetry itself, and no span made before it has set a tracer
provider; from the one to the other each publish looks for a provider.
Names and attributes follow the semantic conventions for messaging; no payload, key, header or error text is among them.
docs/tracing.md explains it to users.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rstream import logs
from rstream.settings import Mode

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span

Headers = Mapping[str, str]

SYSTEM = "rstream"
FIELDS = ("traceparent", "tracestate")


class Carried(dict[str, str]):
    """Headers of events that need no further span: there is one around."""


_active: Tracing | None = None
_api: Any = None
"""opentelemetry.trace, once it was looked for."""


def active(mode: Mode = "parent") -> Tracing | None:
    """What makes spans; None where there is nobody who would look at them."""
    if mode == "off":
        return None
    if _active is None and "opentelemetry.trace" in sys.modules:
        return _look()
    return _active


def _look() -> Tracing | None:
    global _active, _api
    if _api is None:  # to import it with every publish costs more than to ask it
        from opentelemetry import trace as _api  # waits where another thread is about to
    proxy = isinstance(_api.get_tracer_provider(), _api.ProxyTracerProvider)
    if not proxy or _api.get_current_span().get_span_context().is_valid:  # also what others have begun goes on
        _active = Tracing()
    return _active


def carried(mode: Mode = "parent") -> dict[str, str]:
    """The context of the running code, as headers."""
    spans = active(mode)
    return {} if spans is None else spans.injected()


def go_on(headers: Headers) -> None:
    """Have the rest of this context (a child process's call of a handler) belong to that trace."""
    if headers:
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context.attach(TraceContextTextMapPropagator().extract(headers))


class Tracing:
    """Makes spans by the provider that the app has set."""

    def __init__(self) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._context = trace, context
        self._w3c = TraceContextTextMapPropagator()
        logs.spans[:] = [self.ids]

    @cached_property
    def _tracer(self) -> Any:
        return self._trace.get_tracer("rstream")

    def ids(self) -> logs.Fields:
        """Of the running span, for log lines."""
        span = self._trace.get_current_span().get_span_context()
        return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"} if span.is_valid else {}

    def injected(self) -> dict[str, str]:
        found: dict[str, str] = {}
        self._w3c.inject(found)
        return found

    def _links(self, headers: Iterable[Headers]) -> list[Link]:
        """To who published, each once."""
        found = {}
        for each in headers:
            if "traceparent" in each:
                empty = self._context.Context()
                origin = self._trace.get_current_span(self._w3c.extract(each, empty)).get_span_context()
                if origin.is_valid:
                    found[origin.trace_id, origin.span_id] = self._trace.Link(origin)
        return [*found.values()]

    @contextmanager
    def sending(self, stream: str, server: str, headers: Headers | None, *, batch: bool = False) -> Iterator[Sending]:
        """Around a publish. Headers that have a context already keep it, as a message that is only passed on."""
        given = Carried(headers or {})
        attributes = _attributes("send", stream, server)
        kind, links = self._trace.SpanKind.PRODUCER, self._links([given])
        span = self._tracer.start_span(f"send {stream}", kind=kind, attributes=attributes, links=links)
        with self._around(span):
            if "traceparent" not in given:
                given.update(self.injected())
            yield Sending(span, given, batch)

    @contextmanager
    def processing(
        self,
        stream: str,
        server: str,
        mode: Mode,
        headers: list[Headers],
        more: Mapping[str, Any],
        *,
        batch: bool,
    ) -> Iterator[Processing]:
        """Around a call of a handler: a child of who published, where it is given one event; else linked only."""
        context = self._context.Context()
        if mode == "parent" and not batch:
            context = self._w3c.extract(headers[0], context)
        told = {**_attributes("process", stream, server), **more}
        if batch:
            told["messaging.batch.message_count"] = len(headers)
        kind, links = self._trace.SpanKind.CONSUMER, self._links(headers)
        span = self._tracer.start_span(f"process {stream}", context, kind=kind, attributes=told, links=links)
        with self._around(span):
            yield Processing(span)

    @contextmanager
    def _around(self, span: Span) -> Iterator[None]:
        with self._trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield
            except BaseException as error:
                fail(span, error)
                raise


class Sending:
    """headers: what the events get."""

    def __init__(self, span: Span, headers: Carried, batch: bool) -> None:
        self._span, self.headers, self._batch = span, headers, batch

    def sent(self, ids: list[Any]) -> None:
        if self._batch:
            self._span.set_attribute("messaging.batch.message_count", len(ids))
        elif ids:
            self._span.set_attribute("messaging.message.id", str(ids[0]))


class Processing:
    def __init__(self, span: Span) -> None:
        self._span = span

    def failed(self, error: BaseException) -> None:
        fail(self._span, error)

    def ended(self, **told: str | int) -> None:
        """What became of the delivery, or of those of a batch."""
        for name, value in told.items():
            self._span.set_attribute(f"rstream.{name}", value)


def fail(span: Span, error: BaseException) -> None:
    """Its kind; its text may hold what the event did."""
    from opentelemetry.trace import StatusCode

    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute("error.type", name)
    span.set_status(StatusCode.ERROR)


def _attributes(operation: str, stream: str, server: str) -> dict[str, Any]:
    """server: a URL without secrets."""
    found: dict[str, Any] = {
        "messaging.system": SYSTEM,
        "messaging.destination.name": stream,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }
    parts = urlsplit(server)
    if parts.scheme in ("redis", "rediss") and "," not in parts.netloc and parts.hostname:
        found |= {"server.address": parts.hostname, "server.port": parts.port or 6379}
    elif parts.scheme == "unix":
        found["server.address"] = parts.path
    return found
