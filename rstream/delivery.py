"""What a handler is told about the entry it was given, and how its attempts hand down what is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rstream.event import EntryId
from rstream.memo import Memo


@dataclass(frozen=True, slots=True)
class Delivery:
    """One handing-over of an entry to a worker.

    id: where the entry lies · stream, group: names · key: str or None · event_id: 16 bytes, the same over all
    attempts · headers: str -> str · attempt: from 1 · worker: the worker's id · epoch: by which the worker owns the
    shard; 0 where the group is not ordered.

    One that you make yourself, as in a unit test, keeps checkpoints and steps in memory; `dataclasses.replace(delivery,
    attempt=2)` is then the next attempt, which finds them.
    """

    id: EntryId
    stream: str
    group: str
    key: str | None
    event_id: bytes
    headers: Mapping[str, str]
    attempt: int
    worker: str
    epoch: int = 0
    _memo: Memo = field(default_factory=Memo, repr=False, compare=False)

    def __eq__(self, other: object) -> bool:
        # The default would tell one that finds its fields late from one that has them.
        if not isinstance(other, Delivery):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS if name != "_memo")

    @property
    def idempotency_key(self) -> str:
        """`stream/group/event id`: the same over all attempts and workers, another one for every group and entry."""
        # Who writes entries without rstream may leave the event id out: then it is the place.
        event = self.event_id.hex() if len(self.event_id) == 16 else str(self.id)
        return f"{self.stream}/{self.group}/{event}"

    @property
    def fence(self) -> int:
        """A number that tells writers apart: of two, the one with the lower number is out of date.

        In an ordered group it is the epoch of the shard, which grows with every new owner: within one key of the stream
        it never falls, and whoever took a key over has a higher one. Without order it is the attempt: it grows with
        every attempt at this entry, until that is settled; compare it only for one and the same `idempotency_key`.
        """
        return self.epoch or self.attempt

    @property
    def checkpoint_value(self) -> Any:
        """What the last `checkpoint` of this or an earlier attempt stored; None without one."""
        return self._memo.checkpoint

    def checkpoint(self, value: object) -> Awaitable[None]:
        """Store how far the handler is, for the attempt after this one; overwrites what was stored.

        It is gone when the entry is acked or dead-lettered. Raises `LeaseLost` (nothing was stored: stop here),
        `MemoTooLarge`, `MemoInvalid`, `StoreError`.
        """
        self._memo.before_await()
        return self._memo.save(value)

    def step(self, name: str, fn: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """The result of `fn(*args)`, awaited if need be; of a step that this or an earlier attempt finished, its stored
        result, and `fn` is not called.

        The result is always what was stored, as it decodes: a model comes as a dict, a tuple as a list. Raises what
        `checkpoint` and `fn` raise, and `ConfigError` for a name that is running already.
        """
        self._memo.before_await()
        return self._memo.step(name, fn, args)

    @property
    def sync(self) -> SyncDelivery:
        """`checkpoint` and `step` for `def` handlers: the same calls, blocking."""
        return SyncDelivery(self._memo)


class _Later(Delivery):
    __slots__ = ("_find", "_found")

    def __getattr__(self, name: str) -> Any:  # of a slot that is empty
        if name not in _FIELDS:
            raise AttributeError(f"a delivery has no {name!r}")
        # One operation: where several threads race here, all go on with what the first has found.
        values = self._found.setdefault("values", self._find())
        for field_name, value in zip(_FIELDS, values, strict=True):
            _set(self, field_name, value)
        return object.__getattribute__(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Delivery, tuple(getattr(self, name) for name in _FIELDS)


_Later.__name__ = _Later.__qualname__ = "Delivery"
_FIELDS = tuple(each.name for each in fields(Delivery))
_set = object.__setattr__


def later(find: Callable[[], tuple[Any, ...]]) -> Delivery:
    """A delivery whose fields are found, in their order, when the first of them is looked at. That is for workers: most
    handlers look at none, and to find them costs more than all else of a small event.
    """
    made = _Later.__new__(_Later)
    _set(made, "_find", find)
    _set(made, "_found", {})
    return made


def kept_something(delivery: Delivery) -> bool:
    """Whether this attempt may have stored a checkpoint or a step: not if it was never looked at."""
    return (not isinstance(delivery, _Later) or bool(delivery._found)) and delivery._memo.used


class SyncDelivery:
    """A delivery for code without an event loop, from any thread."""

    __slots__ = ("_memo",)

    def __init__(self, memo: Memo) -> None:
        self._memo = memo

    def checkpoint(self, value: object) -> None:
        """As `Delivery.checkpoint`."""
        self._memo.save_sync(value)

    def step(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """As `Delivery.step`; `fn` must not be async."""
        return self._memo.step_sync(name, fn, args)
