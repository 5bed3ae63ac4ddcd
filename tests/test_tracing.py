"""OpenTelemetry: the context travels with the events, and the spans are those of the messaging conventions."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rstream import Batch, Delivery, Event, RetryPolicy, RStream, Stream, tracing
from rstream.settings import Mode
from tests.commands import Commands
from tests.servers import Server
from tests.test_worker import drain

SECRET = "s3cr3t"
ONCE = RetryPolicy(max_attempts=1)


class Item(Event):
    n: int
    name: str = SECRET


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Those that end. (A provider can be set once in a process: each test has its own all the same.)"""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    monkeypatch.setattr(tracing, "_active", None)
    yield exporter
    tracing.logs.spans.clear()


@contextlib.asynccontextmanager
async def opened(server: Server, namespace: str, mode: Mode | None = None) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace, tracing=mode) as app:
        yield app


@pytest.fixture
async def app(one_server: Server, namespace: str) -> AsyncIterator[RStream]:
    async with opened(one_server, namespace) as app:
        yield app


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def one(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = named(spans, name)
    return span


def told(span: ReadableSpan) -> dict[str, Any]:
    return {name: value for name, value in (span.attributes or {}).items() if not name.startswith("server.")}


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def headers_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


async def entries(stream: Stream[Item]) -> Sequence[Any]:
    return [entry async for entry in stream.read()]


# -- publishing


async def test_a_publish_has_a_span_and_its_context_travels(app: RStream, spans: InMemorySpanExporter) -> None:
    items = app.stream("items", Item, key="name", shards=1)
    with trace.get_tracer("test").start_as_current_span("request") as request:
        id = await items.publish(Item(n=1), headers={"own": "x"})
    span = one(spans, "send items")
    assert span.kind is SpanKind.PRODUCER and span.parent == request.get_span_context()
    assert told(span) == {
        "messaging.system": "rstream", "messaging.destination.name": "items", "messaging.operation.name": "send",
        "messaging.operation.type": "send", "messaging.message.id": str(id),
    }  # fmt: skip
    assert span.attributes is not None and span.attributes["server.address"] == "127.0.0.1"
    assert isinstance(span.attributes["server.port"], int)
    (entry,) = await entries(items)
    assert entry.headers == {"own": "x", "traceparent": headers_of(span)}


@pytest.mark.parametrize("face", ["async", "sync"])
@pytest.mark.parametrize("known", [False, True])
async def test_every_way_to_publish(app: RStream, spans: InMemorySpanExporter, face: str, known: bool) -> None:
    items = app.stream("items", Item, key="name", shards=2)
    if known:
        await items.layout()
    two = [Item(n=2), Item(n=3)]
    if face == "async":
        await items.publish(Item(n=1))
        await items.publish_many(iter(two))
    else:
        await asyncio.to_thread(items.sync.publish, Item(n=1))
        await asyncio.to_thread(items.sync.publish_many, iter(two))
    first, second = named(spans, "send items")
    assert "messaging.batch.message_count" not in told(first) and told(second)["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in told(second)
    found = {entry.event.n: entry.headers["traceparent"] for entry in await entries(items)}
    assert found == {1: headers_of(first), 2: headers_of(second), 3: headers_of(second)}


async def test_a_message_that_is_passed_on_keeps_its_context(app: RStream, spans: InMemorySpanExporter) -> None:
    items = app.stream("items", Item, shards=1)
    passed = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    await items.publish(Item(n=1), headers=passed)
    (entry,) = await entries(items)
    assert entry.headers == passed and linked(one(spans, "send items")) == [0x00F067AA0BA902B7]


async def test_a_publish_that_fails_says_how_and_not_what(app: RStream, spans: InMemorySpanExporter) -> None:
    items = app.stream("items", Item, shards=1)
    with pytest.raises(Exception, match="n"):
        await items.publish({"n": SECRET})
    span = one(spans, "send items")
    assert told(span)["error.type"] == "rstream.errors.EventInvalid" and span.status.status_code is StatusCode.ERROR
    assert not span.events and SECRET not in span.to_json()


# -- handling


async def test_a_handler_goes_on_with_the_trace(app: RStream, spans: InMemorySpanExporter) -> None:
    items, others = app.stream("items", Item, key="name", shards=1), app.stream("others", Item, shards=1)

    @items.consumer("g", retry=RetryPolicy(max_attempts=2, initial_delay=0.01))
    async def handle(item: Item, delivery: Delivery) -> None:
        with trace.get_tracer("test").start_as_current_span(f"work {delivery.attempt}"):
            await others.publish(Item(n=2))
        if delivery.attempt == 1:
            raise ValueError(SECRET)

    id = await items.publish(Item(n=1))
    worker = await drain(app)
    send, (first, second) = one(spans, "send items"), named(spans, "process items")
    for attempt, span in enumerate((first, second), start=1):
        assert span.kind is SpanKind.CONSUMER and span.parent is not None
        assert span.parent.span_id == id_of(send) and linked(span) == [id_of(send)]
        failed = attempt == 1
        assert told(span) == {
            "messaging.system": "rstream", "messaging.destination.name": "items", "rstream.attempt": attempt,
            "messaging.operation.name": "process", "messaging.operation.type": "process",
            "messaging.message.id": str(id), "messaging.destination.partition.id": "1.0",
            "messaging.consumer.group.name": "g", "messaging.client.id": worker.id,
            "rstream.outcome": "retry" if failed else "ack",
        } | ({"error.type": "ValueError"} if failed else {})  # fmt: skip
        work = one(spans, f"work {attempt}")
        assert work.parent is not None and work.parent.span_id == id_of(span)
    assert {span.context.trace_id for span in spans.get_finished_spans() if span.context} == {
        send.context.trace_id if send.context else 0
    }
    assert SECRET not in "".join(span.to_json() for span in spans.get_finished_spans())


async def test_a_handler_that_is_only_linked(one_server: Server, namespace: str, spans: InMemorySpanExporter) -> None:
    async with opened(one_server, namespace, "link") as app:
        items = app.stream("items", Item, shards=1)

        @items.consumer("g")
        def handle(item: Item) -> None:
            trace.get_tracer("test").start_span("in a thread").end()

        await items.publish(Item(n=1))
        await drain(app)
    send, process, inner = (one(spans, name) for name in ("send items", "process items", "in a thread"))
    assert process.parent is None and linked(process) == [id_of(send)]
    assert inner.parent is not None and inner.parent.span_id == id_of(process)


async def test_a_batch_is_linked_to_all_who_published(app: RStream, spans: InMemorySpanExporter) -> None:
    items = app.stream("items", Item, shards=1)

    @items.consumer("g", batch=10, max_wait=0.2)
    async def handle(batch: list[Item], told: Batch) -> None:
        if len(batch) > 1:
            told.fail(0, ValueError(SECRET))

    for n in range(3):
        await items.publish(Item(n=n))
    await items.publish_many([Item(n=3), Item(n=4)])
    await drain(app)
    first, *_ = named(spans, "process items")
    assert first.parent is None and linked(first) == [id_of(span) for span in named(spans, "send items")]
    assert told(first)["messaging.batch.message_count"] == 5 and told(first)["rstream.failed"] == 1
    assert "messaging.message.id" not in told(first)


@pytest.mark.parametrize("batch", [None, 10])
async def test_what_a_handler_emits_goes_on_with_its_span(
    app: RStream, spans: InMemorySpanExporter, batch: int | None
) -> None:
    items, done = app.stream("items", Item, shards=1), app.stream("done", Item, shards=1)

    @items.consumer("g", emits=done, batch=batch)
    async def handle(item: Any) -> Any:
        return item

    await items.publish(Item(n=1))
    await drain(app)
    (entry,) = await entries(done)
    assert entry.headers["traceparent"] == headers_of(one(spans, "process items"))


async def test_no_spans_where_they_are_switched_off(
    one_server: Server, namespace: str, spans: InMemorySpanExporter
) -> None:
    async with opened(one_server, namespace, "off") as app:
        items, done = app.stream("items", Item, shards=1), app.stream("done", Item, shards=1)

        @items.consumer("g", emits=done)
        async def handle(item: Item) -> Item:
            return item

        with trace.get_tracer("test").start_as_current_span("request"):
            await items.publish(Item(n=1))
            await drain(app)
        assert [entry.headers for entry in await entries(items)] == [{}] == [e.headers for e in await entries(done)]
    assert [span.name for span in spans.get_finished_spans()] == ["request"]


# -- as its users have it

APP = """
import logging, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from rstream import Event, RStream

if SDK:
    provider = TracerProvider()
    one_line = lambda span: span.to_json(indent=None) + "\\n"
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=one_line)))
    trace.set_tracer_provider(provider)

app = RStream()

class Item(Event):
    n: int

items = app.stream("items", Item, shards=1)
done = app.stream("done", Item, shards=1)

@items.consumer("g", run_in="process", concurrency=1)
def handle(item: Item) -> None:
    logging.getLogger("shop").warning("in a process")
    done.sync.publish(item)
"""


def test_a_handler_in_a_process_goes_on_with_the_trace(rs: Commands) -> None:
    rs.write("traced.py", APP.replace("if SDK", "if True"))
    published = rs.run("publish", "items", "--app", "traced:app", "--json", '{"n": 1}')
    (send,) = [json.loads(line) for line in published.stdout.splitlines() if line.startswith("{")]
    done = rs.run("worker", "traced:app", "--burst", "--log-format", "json")
    found = {span["name"]: span for span in map(json.loads, done.stdout.splitlines())}
    (line,) = [line for line in map(json.loads, done.stderr.splitlines()) if line["message"] == "in a process"]
    assert {span["context"]["trace_id"] for span in found.values()} == {send["context"]["trace_id"]}
    assert found["send done"]["parent_id"] == found["process items"]["context"]["span_id"]
    assert "0x" + line["trace_id"] == send["context"]["trace_id"]
    assert "0x" + line["span_id"] == found["process items"]["context"]["span_id"]


def test_the_example_of_the_docs(rs: Commands) -> None:
    text = (Path(__file__).parent.parent / "docs" / "tracing.md").read_text("utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    one_line = 'ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\\n")'
    rs.write("shop3.py", code.replace("ConsoleSpanExporter()", one_line, 1))
    done = rs.run("worker", "shop3:app", "--burst")
    assert done.returncode == 0, done.stderr
    found = {span["name"]: span for span in map(json.loads, done.stdout.splitlines())}
    assert {*found} == {
        "POST /orders", "send orders", "process orders", "compute the tax", "process invoices"
    }  # fmt: skip
    assert len({span["context"]["trace_id"] for span in found.values()}) == 1
    parents = {name: span["parent_id"] for name, span in found.items()}
    ids = {name: span["context"]["span_id"] for name, span in found.items()}
    ways = [("POST /orders", "send orders"), ("send orders", "process orders"), ("process orders", "compute the tax")]
    for above, below in [*ways, ("process orders", "process invoices")]:
        assert parents[below] == ids[above]


def test_without_a_provider_nothing_is_done(rs: Commands) -> None:
    rs.write("traced.py", APP.replace("if SDK", "if False"))
    rs.ok("publish", "items", "--app", "traced:app", "--json", '{"n": 1}')
    rs.ok("worker", "traced:app", "--burst")
    shown = rs.ok("read", "items", "--json") + rs.ok("read", "done", "--json")
    assert "traceparent" not in shown and shown.count('"n"') == 2


def test_opentelemetry_is_not_imported_by_us() -> None:
    code = """
import sys
import rstream, rstream.tracing, rstream.worker.worker
from rstream import tracing
assert tracing.active() is None and tracing.carried() == {}
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_who_has_no_provider_imports_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each publish looks for one: an import statement there costs more than the answer."""
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr(tracing, "_active", None)
    assert tracing.active() is None
    imported, original = list[str](), builtins.__import__

    def counting(name: str, *args: Any) -> Any:
        imported.append(name)
        return original(name, *args)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", counting)
        for _ in range(10):
            assert tracing.active() is None
    assert imported == []
