"""A handler function bound to (stream, group). Declarations only: nothing runs here."""

from __future__ import annotations

import contextlib
import inspect
import os
import weakref
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import BaseModel

from rstream.calling import Call, Handler, RunIn, caller
from rstream.codec import Codec, ModelCodec
from rstream.errors import ConfigError, PositionError
from rstream.position import Position, bound
from rstream.retry import RetryPolicy

if TYPE_CHECKING:
    from rstream.stream import Stream

_declared: weakref.WeakKeyDictionary[Handler, list[Consumer]] = weakref.WeakKeyDictionary()

MAX_BATCH = 10_000


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

    def __post_init__(self) -> None:
        where = f"consumer {self.group!r} of stream {self.stream.name!r}"
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"{where}: concurrency is {self.concurrency}, it must be at least 1")
        if self.batch is not None and not 1 <= self.batch <= MAX_BATCH:
            raise ConfigError(f"{where}: batch is {self.batch}, it must be between 1 and {MAX_BATCH:,}")
        if not 0 <= self.max_wait <= 3600:
            raise ConfigError(f"{where}: max_wait is {self.max_wait} s, it must be between 0 and an hour")
        if not 0.5 <= self.lease <= 24 * 3600:
            raise ConfigError(f"{where}: lease is {self.lease} s, it must be between 0.5 s and a day")
        if self.prefetch is not None and self.prefetch < 0:
            raise ConfigError(f"{where}: prefetch is {self.prefetch}, it must not be negative")
        if self.expires is not None and not self.expires > 0:
            raise ConfigError(f"{where}: expires is {self.expires} s, it must be more than 0")
        if self.once is not None and self.stream.key is None:
            raise ConfigError(f"{where}: once={self.once!r} needs a stream with a key, by which doubles share a shard")
        for name in ("timeout", "hard_timeout", "once_for"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)} s, it must be more than 0")
        try:
            bound(self.start, "start", 0)
        except PositionError as error:
            raise ConfigError(f"{where}: start: {error}") from None
        self.call()  # refuses what cannot be called
        with contextlib.suppress(TypeError):  # an object that cannot be hashed: `codec_of` goes by its annotation
            _declared.setdefault(self.handler, []).append(self)

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

    def call(self, limit: int = 1) -> Call:
        """How to call the handler, in at most `limit` threads or processes."""
        return caller(
            self.handler,
            limit,
            run_in=self.run_in,
            timeout=self.timeout,
            batch=self.batch is not None,
            answers=self.emits is not None,
        )


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
    except Exception:
        return None
    return ModelCodec(model) if inspect.isclass(model) and issubclass(model, BaseModel) else None
