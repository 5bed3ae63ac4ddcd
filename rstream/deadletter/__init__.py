"""Dead letters as users hold them: look at them, give them back to their group, throw them away.

What there is to do is written once, in steps.py; `DeadLetters` sends it from an event loop, `SyncDeadLetters` from
a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, Unpack

from rstream.deadletter import steps as plans
from rstream.deadletter.letter import WHY, DeadLetter, Discard, Filters, Left, Redrive
from rstream.settings import check_name
from rstream.store.dead import DeadOps, Head
from rstream.store.steps import Finding, Steps, drive, drive_sync, flow, flow_sync

if TYPE_CHECKING:
    from rstream.stream import Stream

__all__ = ["WHY", "DeadLetter", "DeadLetters", "Discard", "Filters", "Left", "Redrive", "SyncDeadLetters"]

E = TypeVar("E")
R = TypeVar("R")


class DeadLetters(Generic[E]):
    """The dead letters of one group, for code in an event loop. Made by `Stream.dead`.

    All filters are those of `Filters`. Everything may raise `PositionError` and `StoreError`s.
    """

    def __init__(self, stream: Stream[E], group: str) -> None:
        check_name("group", group)
        self.stream, self.group = stream, group

    async def _ops(self) -> DeadOps:
        return DeadOps(await self.stream.layout(fresh=True), self.group)

    async def _drive(self, steps: Steps[R]) -> R:
        return await drive(self.stream.app.link, steps, self.stream.app.settings.publish_timeout)

    async def read(self, **filters: Unpack[Filters]) -> AsyncIterator[DeadLetter[E]]:
        """The letters that match, in order of death, those that died before it began. In memory: about 4 MiB."""
        steps, app = plans.letters(await self._ops(), filters), self.stream.app
        claims = self.stream.claims
        decode = claims.decoder(self.stream.codec)
        async for some in flow(app.link, steps, app.settings.publish_timeout):
            letters = deque(DeadLetter(letter, decode) for letter in some)
            async for _ in claims.opened([letter.entry for letter in letters]):
                yield letters.popleft()

    async def heads(self, **filters: Unpack[Filters]) -> AsyncIterator[Head]:
        """As `read`, without payloads and tracebacks: they stay in Redis."""
        app = self.stream.app
        async for some in flow(app.link, plans.heads(await self._ops(), filters), app.settings.publish_timeout):
            for head in some:
                yield head

    async def count(self) -> dict[str, int]:
        """How many there are of each reason, the most frequent first."""
        return await self._drive(plans.count(await self._ops()))

    async def redrive(self, *, everything: bool = False, dry_run: bool = False, **filters: Unpack[Filters]) -> Redrive:
        """Have the group handle the entries of the letters that match once more, from attempt 1; no other group
        notices. Their letters are deleted. Raises `ConfigError` without a filter, `GroupMissing`.
        """
        plans.check(filters, everything, "redrive")
        return await self._drive(plans.redrive(await self._ops(), filters, dry_run))

    async def discard(self, *, everything: bool = False, dry_run: bool = False, **filters: Unpack[Filters]) -> Discard:
        """Delete the letters that match, for good. Raises `ConfigError` without a filter."""
        plans.check(filters, everything, "discard")
        return await self._drive(plans.discard(await self._ops(), filters, dry_run))


class SyncDeadLetters(Generic[E]):
    """As `DeadLetters`, blocking, for code without an event loop. Made by `SyncStream.dead`."""

    def __init__(self, stream: Stream[E], group: str) -> None:
        check_name("group", group)
        self.stream, self.group = stream, group

    def _ops(self) -> DeadOps:
        return DeadOps(self.stream.sync.layout(fresh=True), self.group)

    def _drive(self, steps: Steps[R]) -> R:
        return drive_sync(self.stream.app.sync_link, steps, self.stream.app.settings.publish_timeout)

    def _flow(self, steps: Finding[R]) -> Iterator[list[R]]:
        return flow_sync(self.stream.app.sync_link, steps, self.stream.app.settings.publish_timeout)

    def read(self, **filters: Unpack[Filters]) -> Iterator[DeadLetter[E]]:
        """As `DeadLetters.read`."""
        claims = self.stream.claims
        decode = claims.decoder(self.stream.codec)
        for some in self._flow(plans.letters(self._ops(), filters)):
            letters = deque(DeadLetter(letter, decode) for letter in some)
            for _ in claims.opened_sync([letter.entry for letter in letters]):
                yield letters.popleft()

    def heads(self, **filters: Unpack[Filters]) -> Iterator[Head]:
        """As `read`, without payloads and tracebacks: they stay in Redis."""
        for some in self._flow(plans.heads(self._ops(), filters)):
            yield from some

    def count(self) -> dict[str, int]:
        """As `DeadLetters.count`."""
        return self._drive(plans.count(self._ops()))

    def redrive(self, *, everything: bool = False, dry_run: bool = False, **filters: Unpack[Filters]) -> Redrive:
        """As `DeadLetters.redrive`."""
        plans.check(filters, everything, "redrive")
        return self._drive(plans.redrive(self._ops(), filters, dry_run))

    def discard(self, *, everything: bool = False, dry_run: bool = False, **filters: Unpack[Filters]) -> Discard:
        """As `DeadLetters.discard`."""
        plans.check(filters, everything, "discard")
        return self._drive(plans.discard(self._ops(), filters, dry_run))
