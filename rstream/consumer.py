"""A handler function bound to (stream, group). Declarations only: nothing runs here."""

from __future__ import annotations

import contextlib
import inspect
import re
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from pydantic import BaseModel

from rstream.codec import Codec, ModelCodec
from rstream.errors import ConfigError, PositionError
from rstream.position import Position, bound
from rstream.retry import RetryPolicy

if TYPE_CHECKING:
    from rstream.delivery import Delivery
    from rstream.stream import Stream

Handler = Callable[..., Any]

_declared: weakref.WeakKeyDictionary[Handler, list[Stream[Any]]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Consumer:
    """stream, group, handler · concurrency: deliveries handled at once in one process · lease: seconds a worker may
    be silent before its deliveries are taken over · start: where a new group begins to read · retry: policy ·
    prefetch: deliveries held beyond those being handled; None sizes it by the measured handler time.
    """

    stream: Stream[Any]
    group: str
    handler: Handler
    concurrency: int = 16
    lease: float = 30.0
    start: Position = "earliest"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    prefetch: int | None = None

    def __post_init__(self) -> None:
        where = f"consumer {self.group!r} of stream {self.stream.name!r}"
        if self.concurrency < 1:
            raise ConfigError(f"{where}: concurrency is {self.concurrency}, it must be at least 1")
        if not 0.5 <= self.lease <= 24 * 3600:
            raise ConfigError(f"{where}: lease is {self.lease} s, it must be between 0.5 s and a day")
        if self.prefetch is not None and self.prefetch < 0:
            raise ConfigError(f"{where}: prefetch is {self.prefetch}, it must not be negative")
        try:
            bound(self.start, "start", 0)
        except PositionError as error:
            raise ConfigError(f"{where}: start: {error}") from None
        _takes_delivery(self.handler)  # refuses what cannot be called
        with contextlib.suppress(TypeError):  # an object that cannot be hashed: `codec_of` goes by its annotation
            _declared.setdefault(self.handler, []).append(self.stream)


def caller(handler: Handler, threads: int) -> Callable[[Any, Delivery], Awaitable[Any]]:
    """How to call a handler: `async def` on the loop, `def` in one of `threads` threads of its own;
    with the delivery or, where it takes one argument (or its second is an option of its own), without.
    """
    two = _takes_delivery(handler)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):
        return handler if two else lambda event, delivery: handler(event)
    limiter = anyio.CapacityLimiter(threads)

    async def in_thread(event: Any, delivery: Delivery) -> Any:
        call = partial(handler, event, delivery) if two else partial(handler, event)
        # Only a worker that stops cancels; a thread cannot be, so then it is left behind.
        result = await anyio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)
        # a plain function around an async one: without the await, the work would be acked and not done
        return await result if inspect.isawaitable(result) else result

    return in_thread


def _takes_delivery(handler: Handler) -> bool:
    name = getattr(handler, "__qualname__", repr(handler))
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        raise ConfigError(f"handler {name} cannot be called as handler(event, delivery)") from None
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigError(f"handler {name} is a generator: calling it would not run it. Remove its yield")
    for arguments in ((None, None), (None,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2 and _second_is_delivery(signature)
    raise ConfigError(f"handler {name}{signature} cannot be called: it must take (event, delivery) or (event)")


def _second_is_delivery(signature: inspect.Signature) -> bool:
    """An option of the handler's own is no place for a delivery: it must be required, or say that it is one."""
    places = [
        each
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(places) < 2:  # *args
        return True
    second = places[1]
    said = second.name == "delivery" or re.search(r"\bDelivery\b", str(second.annotation))
    return second.default is second.empty or bool(said)


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
