"""What the attempts of one delivery hand down: a checkpoint, and the results of finished steps. Pure.

`Memo` keeps them in this process, for a handler that is called by hand (a unit test, a replay). The one that a worker
gives to its deliveries is `store.memo.StoredMemo`, whose writes are fenced.

A value comes back as its encoded form decodes, also in the attempt that made it: a handler that cannot live with a
tuple that became a list finds out in its first run, and not in the one that resumes after a crash.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rstream.codec import pack_payload, unpack_payload
from rstream.errors import ConfigError, EntryInvalid, EventInvalid, MemoInvalid, MemoTooLarge

MAX_BYTES = 1024 * 1024
"""Encoded size of the largest single value."""

MAX_NAME = 200

CHECKPOINT = "c"
INLINE = 1
"""The first element of what is stored: the value itself follows. (A reference to a blob would be another number.)"""


class Memo:
    """Field -> encoded value, of one entry and group; where that cannot be read, a text that says why."""

    __slots__ = ("_running", "kept")

    def __init__(self) -> None:
        self.kept: dict[str, bytes | str] = {}
        self._running: dict[str, object] = {}

    @property
    def used(self) -> bool:
        """Whether this attempt stored something, or is about to."""
        return bool(self.kept)

    # What a store does, and memory need not.

    def before_await(self) -> None:
        """Refuse a call whose result nobody can await."""

    async def check(self) -> None:
        """Raises `LeaseLost` where the delivery is somebody else's by now."""

    def check_sync(self) -> None:
        """As `check`."""

    async def keep(self, field: str, packed: bytes) -> None:
        self.kept[field] = packed

    def keep_sync(self, field: str, packed: bytes) -> None:
        self.kept[field] = packed

    # The two things it is for.

    @property
    def checkpoint(self) -> Any:
        packed = self.kept.get(CHECKPOINT)
        return None if packed is None else unpack(packed, "the checkpoint")

    async def save(self, value: object) -> None:
        await self.keep(CHECKPOINT, pack(value, "the checkpoint"))

    def save_sync(self, value: object) -> None:
        self.keep_sync(CHECKPOINT, pack(value, "the checkpoint"))

    async def step(self, name: str, fn: Callable[..., Any], args: Sequence[Any]) -> Any:
        with self._alone(name) as (field, what):
            if field not in self.kept:
                await self.check()  # who was taken over begins no further step
                result = fn(*args)
                if inspect.isawaitable(result):
                    result = await result
                await self.keep(field, pack(result, what))
            return unpack(self.kept[field], what)

    def step_sync(self, name: str, fn: Callable[..., Any], args: Sequence[Any]) -> Any:
        with self._alone(name) as (field, what):
            if field not in self.kept:
                self.check_sync()
                result = fn(*args)
                if inspect.isawaitable(result):
                    if inspect.iscoroutine(result):
                        result.close()
                    raise ConfigError(f"step {name!r} is async: delivery.sync.step() cannot await it")
                self.keep_sync(field, pack(result, what))
            return unpack(self.kept[field], what)

    @contextmanager
    def _alone(self, name: str) -> Iterator[tuple[str, str]]:
        """(field, how to call it) of a step that is not running at this moment."""
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise ConfigError(f"step {name!r:.50}: its name must be text of 1 to {MAX_NAME} characters")
        mine = object()
        if self._running.setdefault(name, mine) is not mine:  # one operation: threads may race here
            raise ConfigError(f"step {name!r} is running already in this attempt: give every step a name of its own")
        try:
            yield f"s:{name}", f"the result of step {name!r}"
        finally:
            del self._running[name]


def pack(value: object, what: str) -> bytes:
    """Raises `MemoInvalid`, `MemoTooLarge`."""
    try:
        packed = pack_payload(INLINE, {"v": value})
    except EventInvalid as error:
        raise MemoInvalid(f"{what} cannot be encoded: {error.__cause__}. Keep plain data or pydantic models") from error
    return packed if len(packed) <= MAX_BYTES else spill(packed, what)


def spill(packed: bytes, what: str) -> bytes:
    """The seam for a blob store: what is too large for Redis would go there, and a reference to it be returned (and
    followed in `unpack`). Until there is one, raises `MemoTooLarge`.
    """
    raise MemoTooLarge(
        f"{what} is {len(packed):,} bytes encoded, at most {MAX_BYTES:,} are kept: put it where large things belong "
        "(a file, an object store, your database), and keep its name"
    )


def unpack(packed: bytes | str, what: str) -> Any:
    """Raises `MemoInvalid`."""
    if isinstance(packed, str):
        raise MemoInvalid(f"{what} that was stored cannot be read: {packed}")
    try:
        form, fields = unpack_payload(packed)
        if form == INLINE:
            return fields["v"]
    except (EntryInvalid, KeyError) as error:
        raise MemoInvalid(f"{what} that was stored cannot be decoded: {error}") from None
    raise MemoInvalid(f"{what} was stored in form {form}, which this version of rstream does not know: upgrade it")
