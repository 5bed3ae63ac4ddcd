"""A handler function bound to (stream, group). Declarations only: nothing runs here."""

from __future__ import annotations

import contextlib
import inspect
import numbers
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args, get_origin

from pydantic import BaseModel

from rstream.calling import Call, Handler, RunIn, caller, takes_two, wants_batch
from rstream.codec import Codec, ModelCodec
from rstream.errors import ConfigError, PositionError
from rstream.position import Position, bound
from rstream.retry import RetryPolicy

if TYPE_CHECKING:
    from rstream.processes import ProcessCall
    from rstream.stream import Stream

_declared: weakref.WeakKeyDictionary[Handler, list[Consumer]] = weakref.WeakKeyDictionary()

OnRetry = Literal["block", "skip"]

MAX_BATCH = 10_000
_YEAR = 365 * 86_400.0


class Range(NamedTuple):
    """What a number may be. Both ends are allowed; `high` None: any whole number from `low`."""

    low: float
    high: float | None
    told: str
    unit: str = ""

    def problem(self, value: object) -> str | None:
        """None where there is none. Bools are numbers to Python; NaN compares as false with everything."""
        whole = self.unit == ""
        kind = numbers.Integral if whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return f"{value!r}, it must be a {'whole number' if whole else 'number of seconds'}, {self.told}"
        number: Any = value
        if number >= self.low and (self.high is None or number <= self.high):
            return None
        return f"{value}{self.unit}, it must be {self.told}"


_SPAN = Range(0.001, _YEAR, "between 0.001 s and a year", " s")
_RANGES = {
    "concurrency": Range(1, None, "at least 1"),
    "batch": Range(1, MAX_BATCH, f"between 1 and {MAX_BATCH:,}"),
    "prefetch": Range(0, None, "at least 0"),
    "lease": Range(0.5, 86_400, "between 0.5 s and a day", " s"),
    "max_wait": Range(0, 3600, "between 0 and an hour", " s"),
    "expires": _SPAN,
    "timeout": _SPAN,
    "hard_timeout": _SPAN,
    "once_for": _SPAN,
}
_OPTIONAL = {"concurrency", "batch", "prefetch", "expires", "timeout", "hard_timeout"}
"""Those that may be None."""


class Options(TypedDict, total=False):
    """What `Stream.consumer` takes; see there."""

    concurrency: int | None
    lease: float
    start: Position
    retry: RetryPolicy | None
    prefetch: int | None
    expires: float | None
    run_in: RunIn | None
    timeout: float | None
    hard_timeout: float | None
    once: str | None
    once_for: float
    batch: int | None
    max_wait: float
    emits: Stream[Any] | None
    ordered: bool | None
    on_retry: OnRetry


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """stream, group, handler, and the options that `Stream.consumer` explains."""

    stream: Stream[Any]
    group: str
    handler: Handler
    concurrency: int | None = None
    lease: float = 30.0
    start: Position = "earliest"
    retry: RetryPolicy | None = None
    prefetch: int | None = None
    expires: float | None = None
    run_in: RunIn | None = None
    timeout: float | None = None
    hard_timeout: float | None = None
    once: str | None = None
    once_for: float = 86_400.0
    batch: int | None = None
    max_wait: float = 0.5
    emits: Stream[Any] | None = None
    ordered: bool | None = None
    on_retry: OnRetry = "block"

    def __post_init__(self) -> None:
        where = f"consumer {self.group!r} of stream {self.stream.name!r}"
        for name, limits in _RANGES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and (problem := limits.problem(value)):
                raise ConfigError(f"{where}: {name} is {problem}")
        self._check_once(where)
        if self.on_retry not in get_args(OnRetry):
            raise ConfigError(f"{where}: on_retry is {self.on_retry!r}, it must be 'block' or 'skip'")
        if self.prefetch and self.policy.max_attempts == 1:
            raise ConfigError(
                f"{where}: prefetch is {self.prefetch} with a single attempt, but what a worker had read counts as "
                "begun when it dies, and would be set aside: leave prefetch out, or allow a second attempt"
            )
        try:
            bound(self.start, "start", 0)
        except PositionError as error:
            raise ConfigError(f"{where}: start: {error}") from None
        self.call()  # refuses what cannot be called
        with contextlib.suppress(TypeError):  # an object that cannot be hashed: `codec_of` goes by its annotation
            _declared.setdefault(self.handler, []).append(self)

    def _check_once(self, where: str) -> None:
        if self.once is None:
            return
        if self.stream.key is None:
            raise ConfigError(f"{where}: once={self.once!r} needs a stream with a key, by which doubles share a shard")
        fields = [*self.stream._schema.get("properties", {})]
        if self.once not in fields:
            known = f"their fields are {', '.join(fields)}"
            raise ConfigError(f"{where}: once={self.once!r}, but its events have no such field: {known}")

    @property
    def in_order(self) -> bool:
        """Whether events of one key are handled one at a time, in order."""
        return self.stream.key is not None if self.ordered is None else self.ordered

    @cached_property
    def policy(self) -> RetryPolicy:
        return self.retry or RetryPolicy()

    @property
    def slots(self) -> int:
        """Calls of the handler at once: what was asked for, else 16, one batch, or a process per core."""
        if self.concurrency is not None:
            return self.concurrency
        if self.run_in == "process":
            return os.cpu_count() or 1
        return 16 if self.batch is None else 1

    @cached_property
    def tells(self) -> bool:
        """Whether the handler gets its delivery, or its batch, too; or what it returns is emitted by it."""
        return self.emits is not None or takes_two(self.handler, "delivery" if self.batch is None else "batch")

    def call(self, limit: int = 1) -> Call | ProcessCall:
        """How to call the handler, in at most `limit` threads or processes."""
        batch = self.batch is not None
        if self.run_in != "process":
            return caller(self.handler, limit, run_in=self.run_in, timeout=self.timeout, batch=batch)
        from rstream.processes import ProcessCall  # costs an import that few need

        return ProcessCall(
            self.handler,
            limit,
            timeout=self.timeout,
            hard_timeout=self.hard_timeout,
            batch=batch,
            answers=self.emits is not None,
        )


BATCH = 100
"""Events that a handler gets at once which takes a batch, and nobody has said how many."""


def batch_of(handler: Handler, wish: int | None = None) -> int | None:
    """How many events to call a handler with at once: as wished, or as it was declared, where it takes a batch; None
    for one event at a time. Raises `ConfigError` where a batch is wished for, and the handler takes single events.
    """
    declared: list[Consumer] = []
    with contextlib.suppress(TypeError):  # an object that cannot be hashed
        declared = _declared.get(handler, [])
    sizes = [consumer.batch for consumer in declared if consumer.batch]
    takes_batch = bool(sizes) or wants_batch(handler)
    if wish is not None and declared and not takes_batch:
        raise ConfigError(f"batch is {wish}, but group {declared[0].group!r} has this handler for single events")
    return wish or (max(sizes, default=BATCH) if takes_batch else None)


def codec_of(handler: Handler) -> Codec[Any] | None:
    """How this handler wants its events: as the consumer it was declared for, or as the model that its first
    parameter is annotated with. None: no wish.
    """
    with contextlib.suppress(TypeError):  # an object that cannot be hashed
        if len(streams := {consumer.stream for consumer in _declared.get(handler, ())}) == 1:
            return streams.pop().codec
    plain = inspect.unwrap(handler)
    while isinstance(plain, partial):
        plain = plain.func
    if not inspect.isroutine(plain):
        plain = type(plain).__call__
    try:
        # Only this one: others may be known to type checkers alone, as `Delivery` often is.
        wish = next(iter(inspect.signature(handler).parameters.values())).annotation
        model = eval(wish, getattr(plain, "__globals__", {})) if isinstance(wish, str) else wish
        if get_origin(model) in (list, Sequence):  # a batch handler's
            (model,) = get_args(model)
    except Exception:
        return None
    return ModelCodec(model) if inspect.isclass(model) and issubclass(model, BaseModel) else None
