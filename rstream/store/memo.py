"""Checkpoints and steps in Redis: one fenced Lua call a write, one read where an earlier attempt was begun.

The hash of an entry is deleted by the settle that acks or dead-letters it; `TTL` is for what nobody settles, and for
what an earlier life of the group left. Who kept nothing in a first attempt does not ask for that.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rstream.errors import ConfigError, EntryInvalid, LeaseLost, MemoTooLarge
from rstream.memo import Memo
from rstream.perloop import PerLoop
from rstream.store.connect import Endpoint
from rstream.store.deliveries import GroupOps
from rstream.store.keys import Shard
from rstream.store.link import Link, Op, SyncLink
from rstream.store.scripts import MEMO

if TYPE_CHECKING:
    from rstream.crypto import Seal

T = TypeVar("T")

TTL = 7 * 24 * 3600
"""Seconds from the last write."""

MAX_TOTAL = 16 * 1024 * 1024
"""Bytes of all values of one entry: they are read in one piece."""


PATIENCE = 30.0
"""Seconds that a call waits for a Redis that is away, or a lease where that is longer."""


class Lease(Protocol):
    """While it holds under the term in which a delivery was started, that one surely is still this worker's."""

    seconds: float
    term: int

    def holds(self) -> bool: ...


class Links(Protocol):
    """Whoever has connections to Redis: an app."""

    @property
    def endpoint(self) -> Endpoint: ...

    @property
    def link(self) -> Link: ...

    @property
    def sync_link(self) -> SyncLink: ...


def opened(seal: Seal | None, value: bytes, shard: Shard, id: bytes, group: str, field: str) -> bytes:
    """What was kept of an entry, decrypted where it is encrypted. Raises `EntryInvalid`."""
    return value if seal is None else seal.open_memo(value, f"{group}/{shard.entry_id(id)}:{field}")


class Place:
    """Whose memo it is: a delivery, in Redis's terms."""

    def __init__(self, ops: GroupOps, shard: Shard, id: bytes, attempt: int, seal: Seal | None = None) -> None:
        self._seal, self._name = seal, f"{ops.group}/{shard.entry_id(id)}"
        self.keys = [shard.stream, shard.memo(ops.group, id.decode())]
        self.group, self.worker, self.id, self.attempt = ops.group, ops.worker, id, attempt

    def load(self) -> Op[dict[str, bytes | str]]:
        """What earlier attempts kept."""
        return Op([("HGETALL", self.keys[1])], lambda replies: self._earlier(replies[0]))

    def _earlier(self, flat: list[bytes]) -> dict[str, bytes | str]:
        found = {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
        if found and int(found["by"].split()[0]) >= self.attempt:
            return {}  # the group began anew, and this is from before
        return {name: self._open(name, value) for name, value in found.items() if name == "c" or name.startswith("s:")}

    def _open(self, field: str, value: bytes) -> bytes | str:
        if self._seal is None:
            return value
        try:
            return self._seal.open_memo(value, f"{self._name}:{field}")
        except EntryInvalid as error:  # the handler is told when it asks: it may not
            return str(error)

    def keep(self, field: str, value: bytes, number: int) -> Op[None]:
        """Raises `LeaseLost`, `MemoTooLarge`."""
        if self._seal is not None and number:
            value = self._seal.seal_memo(value, f"{self._name}:{field}")
        call = MEMO(
            self.keys, self.group, self.worker, self.id, self.attempt, field, value, number, MAX_TOTAL, TTL * 1000
        )
        return Op([call], lambda replies: self._judge(field, *replies[0]))

    def check(self) -> Op[None]:
        """Raises `LeaseLost`."""
        return self.keep("", b"", 0)

    def _judge(self, field: str, status: int, owner: bytes = b"", deliveries: int = 0) -> None:
        what = {"c": "the checkpoint", "": "the next step"}.get(field, f"the result of step {field[2:]!r}")
        where = f"of entry {self.id.decode()}, group {self.group!r}, attempt {self.attempt},"
        if status == 0:
            holder = f"pending for {owner.decode()}" if owner else "settled by another"
            raise LeaseLost(
                f"{what} {where} was refused and changed nothing: the lease ran out and the entry is {holder} "
                f"(deliveries: {deliveries})"
            )
        if status < 0:
            raise MemoTooLarge(
                f"{what} {where} was not stored: checkpoint and steps of an entry take at most {MAX_TOTAL:,} bytes "
                "together. Keep the names of large things, not the things"
            )


class StoredMemo(Memo):
    """The memo of a delivery that a worker runs, which was started in this term of its lease.

    It can be sent to another process, where it uses connections of that process's own.
    """

    __slots__ = ("_lease", "_links", "_numbers", "_place", "_term")

    def __init__(
        self,
        links: Links,
        lease: Lease,
        term: int,
        ops: GroupOps,
        shard: Shard,
        id: bytes,
        attempt: int,
        seal: Seal | None = None,
    ) -> None:
        super().__init__()
        self._links, self._lease, self._term = links, lease, term
        self._place: Place | tuple[GroupOps, Shard, bytes, int, Seal | None] = (ops, shard, id, attempt, seal)
        self._numbers: Iterator[int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (self._links.endpoint.url, self._lease.seconds, self.place, self.kept, self._number())

    @property
    def used(self) -> bool:
        return self._numbers is not None

    @property
    def place(self) -> Place:
        if isinstance(self._place, tuple):
            self._place = Place(*self._place)
        return self._place

    def _number(self) -> int:
        if self._numbers is None:
            self._numbers = itertools.count(1)
        return next(self._numbers)

    async def _send(self, op: Op[T]) -> T:
        return await self._links.link.run(op, within=max(PATIENCE, self._lease.seconds))

    def _send_sync(self, op: Op[T]) -> T:
        return self._links.sync_link.run(op, within=max(PATIENCE, self._lease.seconds))

    def before_await(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(
                "delivery.checkpoint() and delivery.step() do nothing in a def handler, which cannot await them: "
                "call delivery.sync.checkpoint() and delivery.sync.step()"
            ) from None

    def _surely(self) -> bool:
        # In this order: a lease that is taken anew raises the term before it holds.
        return self._lease.holds() and self._lease.term == self._term

    async def check(self) -> None:
        if not self._surely():
            await self._send(self.place.check())

    def check_sync(self) -> None:
        if not self._surely():
            self._send_sync(self.place.check())

    async def keep(self, field: str, packed: bytes) -> None:
        await self._send(self.place.keep(field, packed, self._number()))
        self.kept[field] = packed

    def keep_sync(self, field: str, packed: bytes) -> None:
        self._send_sync(self.place.keep(field, packed, self._number()))
        self.kept[field] = packed


class _Elsewhere:
    """Connections of a process that is not the worker's; and a lease of which it cannot know whether it holds."""

    def __init__(self, url: str) -> None:
        self.endpoint = Endpoint(url)
        self.sync_link = SyncLink(self.endpoint)
        self._links: PerLoop[Link] = PerLoop()

    @property
    def link(self) -> Link:
        return self._links.get(lambda: Link(self.endpoint))


class _Unsure:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.term = seconds, 0

    def holds(self) -> bool:
        return False


_elsewhere = lru_cache(_Elsewhere)


def _revive(url: str, lease: float, place: Place, kept: dict[str, bytes | str], number: int) -> StoredMemo:
    memo = StoredMemo.__new__(StoredMemo)
    Memo.__init__(memo)
    memo._links, memo._lease, memo._term = _elsewhere(url), _Unsure(lease), 0
    memo._place, memo.kept, memo._numbers = place, kept, itertools.count(number)
    return memo
