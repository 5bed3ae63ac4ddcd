"""A handler function bound to (stream, group). Declarations only: nothing runs here."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rstream.calling import Handler, RunIn, caller
from rstream.codec import Codec, ModelCodec
from rstream.errors import ConfigError, PositionError
from rstream.position import Position, bound
from rstream.retry import RetryPolicy

if TYPE_CHECKING:
    from rstream.stream import Stream

_declared: weakref.WeakKeyDictionary[Handler, list[Stream[Any]]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Consumer:
    """stream, group, handler · concurrency: deliveries handled at once in one process · lease: seconds a worker may
    be silent before its deliveries are taken over · start: where a new group begins to read · retry: policy ·
    prefetch: deliveries held beyond those being handled; None sizes it by the measured handler time · expires:
    seconds after publishing after which an event is not started any more · run_in: loop, thread or process; None: as
    the handler is written · timeout: seconds that a handler may
    take · hard_timeout: seconds after which its process is ended · once: the field
    that holds the dedupe key; once_for: seconds for which a success counts.
    """

    stream: Stream[Any]
    group: str
    handler: Handler
    concurrency: int = 16
    lease: float = 30.0
    start: Position = "earliest"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    prefetch: int | None = None
    expires: float | None = None
    run_in: RunIn | None = None
    timeout: float | None = None
    hard_timeout: float | None = None
    once: str | None = None
    once_for: float = 86_400.0

    def __post_init__(self) -> None:
        where = f"consumer {self.group!r} of stream {self.stream.name!r}"
        if self.concurrency < 1:
            raise ConfigError(f"{where}: concurrency is {self.concurrency}, it must be at least 1")
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
        caller(
            self.handler, self.concurrency, run_in=self.run_in, timeout=self.timeout
        )  # refuses what cannot be called
        with contextlib.suppress(TypeError):  # an object that cannot be hashed: `codec_of` goes by its annotation
            _declared.setdefault(self.handler, []).append(self.stream)


def codec_of(handler: Handler) -> Codec[Any] | None:
    """How this handler wants its events: as the consumer it was declared for, or as the model that its first
    parameter is annotated with. None: no wish.
    """
    with contextlib.suppress(TypeError):  # an object that cannot be hashed
        if len(streams := set(_declared.get(handler, ()))) == 1:
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
