"""Handlers: what may be one, how it is called, and which events it wants."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from rstream import Delivery, EntryId, Event, RetryPolicy, RStream, Stream
from rstream.calling import answered, caller
from rstream.codec import ModelCodec
from rstream.consumer import Consumer, codec_of
from rstream.errors import ConfigError

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers


class Seen(Event):
    device: str


class Other(Event):
    device: str


EVENT = Seen(device="d")
DELIVERY = Delivery(EntryId(1, 0, 1, 0), "digits", "g", "d", bytes(16), {}, 1, "w")


@pytest.fixture
def app() -> RStream:
    return RStream("redis://nowhere.invalid")


@pytest.fixture
def digits(app: RStream) -> Stream[Seen]:
    return app.stream("digits", Seen)


def called(handler: Callable[..., Any]) -> Any:
    """What a worker gets from it."""

    async def run() -> Any:
        result, error = await answered(caller(handler, 2)(EVENT, DELIVERY))
        if error is not None:
            raise error
        return result

    return anyio.run(run)


# -- calling: (what the handler was given, whether it ran in the thread of the event loop)

Told = tuple[tuple[Any, ...], bool]


def told(*given: Any) -> Told:
    return given, threading.current_thread() is threading.main_thread()


async def asynchronous(event: Seen, delivery: Delivery) -> Told:
    await anyio.lowlevel.checkpoint()
    return told(event, delivery)


async def asynchronous_alone(event: Seen) -> Told:
    return told(event)


def blocking(event: Seen, delivery: Delivery) -> Told:
    return told(event, delivery)


def blocking_alone(event: Seen) -> Told:
    return told(event)


async def with_an_option(event: Seen, verbose: bool = False) -> Told:
    return told(event, verbose)


def blocking_with_options(event: Seen, model: str = "v1", *rest: object) -> Told:
    return told(event, model, *rest)


async def optional_by_name(event: Seen, delivery: Any = None) -> Told:
    return told(event, delivery)


async def optional_by_annotation(event: Seen, about: Delivery | None = None) -> Told:
    return told(event, about)


async def required_without_a_name(event: Seen, d: Any) -> Told:
    return told(event, d)


class Model:
    async def __call__(self, event: Seen, delivery: Delivery) -> Told:
        return told(event, delivery)

    async def method(self, event: Seen, delivery: Delivery) -> Told:
        return told(event, delivery)

    def blocking(self, event: Seen) -> Told:
        return told(event)

    @staticmethod
    async def static(event: Seen) -> Told:
        return told(event)

    @classmethod
    async def of_class(cls, event: Seen) -> Told:
        return told(event)


class BlockingModel:
    def __call__(self, event: Seen) -> Told:
        return told(event)


async def configured(event: Seen, delivery: Delivery, *, threshold: float) -> Told:
    return told(event, delivery, threshold)


def logged(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows nothing of `async`, as most do."""

    @functools.wraps(handler)
    def wrapper(*args: Any) -> Any:
        return handler(*args)

    return wrapper


BOTH, ALONE = (EVENT, DELIVERY), (EVENT,)


@pytest.mark.parametrize(
    ("handler", "given"),
    [
        (asynchronous, BOTH),
        (asynchronous_alone, ALONE),
        (with_an_option, (EVENT, False)),
        (functools.partial(with_an_option, verbose=True), (EVENT, True)),
        (optional_by_name, BOTH),
        (optional_by_annotation, BOTH),
        (required_without_a_name, BOTH),
        (Model(), BOTH),
        (Model().method, BOTH),
        (Model.static, ALONE),
        (Model.of_class, ALONE),
        (functools.partial(configured, threshold=0.5), (*BOTH, 0.5)),
        (functools.partial(functools.partial(configured, threshold=0.1), threshold=0.5), (*BOTH, 0.5)),
    ],
)
def test_async_handlers_run_on_the_loop(handler: Callable[..., Any], given: tuple[Any, ...]) -> None:
    assert called(handler) == (given, True)


@pytest.mark.parametrize(
    ("handler", "given"),
    [
        (blocking, BOTH),
        (blocking_alone, ALONE),
        (blocking_with_options, (EVENT, "v1")),
        (BlockingModel(), ALONE),
        (Model().blocking, ALONE),
        (functools.partial(blocking), BOTH),
        (lambda event: told(event), ALONE),
        (lambda *all: told(*all), BOTH),
    ],
)
def test_other_handlers_run_in_a_thread(handler: Callable[..., Any], given: tuple[Any, ...]) -> None:
    assert called(handler) == (given, False)


@pytest.mark.parametrize(
    "handler",
    [logged(asynchronous), functools.partial(Model()), lambda event, delivery: asynchronous(event, delivery)],
    ids=["decorated", "partial of an object", "lambda"],
)
def test_an_async_handler_is_awaited_however_it_is_wrapped(handler: Callable[..., Any]) -> None:
    """Otherwise it never runs, and its entries are acked."""
    assert called(handler) == (BOTH, True)


@pytest.mark.parametrize("handler", [asynchronous, blocking])
def test_what_a_handler_raises_is_raised(handler: Any) -> None:
    async def failing(event: Seen) -> None:
        raise LookupError("on the loop")

    def failing_blocked(event: Seen) -> None:
        raise LookupError("in a thread")

    for handler in (failing, failing_blocked):
        with pytest.raises(LookupError):
            called(handler)


def test_threads_are_as_many_as_asked_for() -> None:
    together = threading.Barrier(3, timeout=10)  # breaks unless three handlers run at once
    running, most = [0], [0]
    lock = threading.Lock()

    def handler(event: Seen) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        together.wait()
        with lock:
            running[0] -= 1

    async def run() -> None:
        call = caller(handler, 3)
        async with anyio.create_task_group() as group:
            for _ in range(9):
                group.start_soon(call, EVENT, DELIVERY)

    anyio.run(run)
    assert most[0] == 3


# -- what may be a handler


def generator(event: Seen) -> Iterator[int]:
    yield 1


async def async_generator(event: Seen) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "handler",
    [
        *(lambda: None, lambda a, b, c: None, lambda event, *, needed: None, configured, 5, None, "handler"),
        *(functools.partial(blocking, 1, 2), functools.partial(blocking, nonsense=1), generator, async_generator),
    ],
)
def test_what_cannot_be_called_with_an_event_is_refused(digits: Stream[Seen], handler: Any) -> None:
    with pytest.raises(ConfigError, match="handler") as caught:
        digits.consumer("g")(handler)
    assert "\n" not in str(caught.value)
    assert digits.consumers == []


def test_the_refusal_shows_the_signature(digits: Stream[Seen]) -> None:
    def classify(event: Seen, delivery: Delivery, model: str) -> None: ...

    told = r"classify\(event: .*, model: .*cannot be called: it must take \(event, delivery\)"
    with pytest.raises(ConfigError, match=told):
        digits.consumer("g")(classify)


@dataclass
class Unhashable:
    """A dataclass has an __eq__, and so no __hash__."""

    threshold: float

    async def __call__(self, event: Seen) -> Told:
        return told(event)


class Slotted:
    __slots__ = ()

    def __call__(self, event: Other) -> None: ...


@pytest.mark.parametrize("handler", [Unhashable(0.5), Slotted(), Model().method, functools.partial(blocking)])
def test_any_callable_may_be_a_handler(digits: Stream[Seen], handler: Any) -> None:
    assert digits.consumer("g")(handler) is handler
    codec_of(handler)  # does not raise


# -- declaring


def test_a_handler_stays_what_it_was(digits: Stream[Seen]) -> None:
    for group, handler in enumerate((asynchronous, blocking_alone, Model(), functools.partial(blocking))):
        before = dict(vars(handler))
        assert digits.consumer(f"g{group}")(handler) is handler
        assert vars(handler) == before
    assert blocking_alone(EVENT) == (ALONE, True)


def test_a_declaration_is_kept_with_its_options(app: RStream, digits: Stream[Seen]) -> None:
    retry = RetryPolicy(max_attempts=9)
    digits.consumer("a", concurrency=3, lease=2.5, start="2h ago", retry=retry, prefetch=0)(asynchronous)
    digits.consumer("b")(asynchronous)
    assert app.consumers == digits.consumers == [
        Consumer(
            stream=digits, group="a", handler=asynchronous, concurrency=3, lease=2.5, start="2h ago", retry=retry,
            prefetch=0,
        ),
        Consumer(stream=digits, group="b", handler=asynchronous),
    ]  # fmt: skip


def test_how_many_calls_run_at_once(digits: Stream[Seen]) -> None:
    digits.consumer("a")(asynchronous)
    digits.consumer("b", batch=10)(asynchronous)
    digits.consumer("c", run_in="process")(asynchronous)
    digits.consumer("d", run_in="process", batch=10, concurrency=3)(asynchronous)
    assert [consumer.slots for consumer in digits.consumers] == [16, 1, os.cpu_count(), 3]


def test_what_was_only_read_must_not_lose_its_single_attempt(digits: Stream[Seen]) -> None:
    with pytest.raises(ConfigError, match="prefetch is 10 with a single attempt"):
        digits.consumer("a", prefetch=10, retry=RetryPolicy(max_attempts=1))(asynchronous)
    digits.consumer("b", prefetch=0, retry=RetryPolicy(max_attempts=1))(asynchronous)


def test_a_group_has_one_handler(app: RStream, digits: Stream[Seen]) -> None:
    digits.consumer("g")(asynchronous)
    with pytest.raises(ConfigError, match=r"^group 'g' of stream 'digits' has a handler already: name another group$"):
        digits.consumer("g")(blocking)
    app.stream("other", Seen).consumer("g")(asynchronous)  # on another stream it is another group


def test_a_decorator_that_is_used_twice(digits: Stream[Seen]) -> None:
    classify = digits.consumer("g")
    classify(asynchronous)
    with pytest.raises(ConfigError, match="has a handler already"):
        classify(blocking)


SPANS = ("expires", "timeout", "hard_timeout", "once_for")
NUMBERS = (*SPANS, "lease", "max_wait", "concurrency", "batch", "prefetch")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": -1}, "concurrency is -1"),
        ({"lease": 0}, "lease is 0"),
        ({"lease": 0.4}, "lease is 0.4"),
        ({"lease": -5}, "lease is -5"),
        ({"lease": 86401}, "lease is 86401"),
        ({"lease": float("nan")}, "lease is nan"),
        ({"lease": float("inf")}, "lease is inf"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 10_001}, "batch is 10001"),
        ({"max_wait": -0.1}, "max_wait is -0.1"),
        ({"max_wait": 3601}, "max_wait is 3601"),
        *(({name: 0}, f"{name} is 0") for name in SPANS),
        *(({name: 0.0001}, f"{name} is 0.0001 s, it must be between 0.001 s and a year") for name in SPANS),
        *(({name: 1e15}, f"{name} is 1000000000000000.0 s") for name in SPANS),
        *(({name: float("nan")}, f"{name} is nan") for name in NUMBERS),
        *(({name: float("inf")}, f"{name} is inf") for name in NUMBERS),
        *(({name: True}, f"{name} is True, it must be a ") for name in NUMBERS),
        *(({name: "7"}, f"{name} is '7', it must be a ") for name in NUMBERS),
        *(({name: None}, f"{name} is None, it must be a ") for name in ("lease", "max_wait", "once_for")),
        *(({name: 1.5}, f"{name} is 1.5, it must be a whole number") for name in ("concurrency", "batch", "prefetch")),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(digits: Stream[Seen], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        digits.consumer("g", **options)(asynchronous)
    assert str(caught.value).startswith(f"consumer 'g' of stream 'digits': {says}")
    assert digits.consumers == [] and codec_of(asynchronous_alone) is not None


def test_an_option_at_the_end_of_its_range_is_taken(app: RStream, digits: Stream[Seen]) -> None:
    year = 365 * 86_400
    least = {"concurrency": 1, "batch": 1, "prefetch": 0, "lease": 0.5, "max_wait": 0} | dict.fromkeys(SPANS, 0.001)
    most = {"concurrency": 10**6, "batch": 10_000, "prefetch": 10**6, "lease": 86_400, "max_wait": 3600}
    for group, options in enumerate((least, most | dict.fromkeys(SPANS, year))):
        digits.consumer(f"g{group}", **options)(asynchronous)  # type: ignore[arg-type]
    assert len(digits.consumers) == 2


@pytest.mark.parametrize("group", ["", "a b", "~retry", "g:1", "x" * 129])
def test_a_group_needs_a_name(digits: Stream[Seen], group: str) -> None:
    with pytest.raises(ConfigError, match=r"group .* cannot be used"):
        digits.consumer(group)


def test_a_start_that_does_not_parse_is_refused_where_it_is_written(digits: Stream[Seen]) -> None:
    with pytest.raises(ConfigError, match="yesterday"):
        digits.consumer("g", start="yesterday")(asynchronous)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "a b"}, "stream 'a b' cannot be used"),
        ({"shards": 0}, "shards is 0"),
        ({"shards": 1025}, "shards is 1025"),
        ({"key": "devcie"}, "no field 'devcie'"),
        ({"name": "digits"}, "declared already"),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(app: RStream, digits: Stream[Seen], options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        app.stream(**({"name": "s", "model": Seen} | options))
    assert list(app.streams) == ["digits"]


# -- which events a handler wants


def unannotated(event): ...  # type: ignore[no-untyped-def]


def of_dicts(event: dict[str, Any]) -> None: ...


def unknown(event: Nonsense) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def attribute(event: functools.nonsense) -> None: ...  # type: ignore[name-defined]


def nothing() -> None: ...


def partly(event: Seen, delivery: OnlyForTypeCheckers) -> None: ...


def model_of(handler: Callable[..., Any]) -> type | None:
    codec = codec_of(handler)
    assert codec is None or isinstance(codec, ModelCodec)
    return codec and codec.model


def test_a_declared_handler_wants_the_events_of_its_stream(digits: Stream[Seen]) -> None:
    def handler(event: Other) -> None: ...

    assert model_of(handler) is Other
    digits.consumer("g")(handler)
    assert codec_of(handler) is digits.codec


@pytest.mark.parametrize("handler", [asynchronous, blocking_alone, Model().method, Model.static, partly])
def test_another_wants_what_its_first_parameter_says(handler: Callable[..., Any]) -> None:
    """Also where other annotations cannot be resolved, as those imported for type checkers only."""
    assert model_of(handler) is Seen


@pytest.mark.parametrize("handler", [unannotated, of_dicts, unknown, attribute, nothing, functools.partial(len)])
def test_others_have_no_wish(handler: Callable[..., Any]) -> None:
    assert codec_of(handler) is None


def test_objects_and_partials_want_what_they_say() -> None:
    assert model_of(Model()) is Seen
    assert model_of(functools.partial(configured, threshold=1)) is Seen


def test_a_handler_of_two_streams_wants_the_events_of_neither_in_particular(app: RStream) -> None:
    def handler(event: Seen | Other) -> None: ...

    app.stream("a", Seen).consumer("g")(handler)
    app.stream("b", Other).consumer("g")(handler)
    assert codec_of(handler) is None  # whoever reads stream a decodes as stream a does
