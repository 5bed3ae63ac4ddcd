"""What a replay tells about itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rstream.event import EntryId

Way = Literal["handler", "group", "new group"]


@dataclass(frozen=True)
class ReplayResult:
    """How a replay ended, or how far it is.

    name, stream · start, end: the window, as found in the stream; None where it is empty · finished: False where it
    was stopped · position: everything up to it is done · handled, failed, invalid: counts over all its runs ·
    failed_ids, invalid_ids: together, the first 100 · resumed_from: where this run went on · earlier: how many
    entries earlier runs did · seconds: of this run · skipped: entries of which a condition did not hold · read_to: how
    far it has read, where that is beyond the position.

    Of a replay into a group: given: it gets them again · pending: it had them already, and they were left alone ·
    unread: it has yet to read them, and will · gone: they are not stored in Redis any more, and cannot be given.
    """

    name: str
    stream: str
    start: EntryId | None
    end: EntryId | None
    finished: bool
    position: EntryId | None
    handled: int
    failed: int
    invalid: int
    failed_ids: tuple[EntryId, ...]
    invalid_ids: tuple[EntryId, ...]
    resumed_from: EntryId | None
    earlier: int
    seconds: float
    way: Way = "handler"
    skipped: int = 0
    given: int = 0
    pending: int = 0
    unread: int = 0
    gone: int = 0
    read_to: EntryId | None = None
    trimmed: tuple[EntryId, ...] = ()

    @property
    def done(self) -> int:
        """Entries that are behind us, whatever became of them."""
        put_by = self.given + self.pending + self.unread + self.gone
        return self.handled + self.failed + self.invalid + self.skipped + put_by

    @property
    def fraction(self) -> float:
        """0 to 1, by time in the window: counting its entries would cost reading all of it."""
        if self.finished:
            return 1.0
        at = self.read_to or self.position
        if at is None or self.start is None or self.end is None:
            return 0.0
        return min(1.0, max(0.0, (at.ms - self.start.ms) / max(1, self.end.ms - self.start.ms)))


@dataclass(frozen=True)
class ReplayPlan:
    """What a replay would do.

    entries, bytes (of payload): of the whole window · start, end: its first and last entry · shards: how many hold
    some of it · resume_after: the stored position, None = from the first · left: entries still to be gone through ·
    archived: how many of the entries are not in Redis, and come from the archive · matching: entries of which all
    conditions hold · seconds: how long what is left takes at least, by `basis`: the rate or speed that was asked for,
    or the reading, as it was measured just now.

    Of what is left and matches, into a group: given, pending, unread, gone, as in the result. Of a new group, that
    begins at `start`: `left` is what it has to catch up with, `gone` what is in the archive, where no group reads.
    """

    name: str
    stream: str
    start: EntryId | None
    end: EntryId | None
    entries: int
    bytes: int
    shards: int
    resume_after: EntryId | None
    left: int
    way: Way = "handler"
    archived: int = 0
    matching: int = 0
    seconds: float = 0.0
    basis: Literal["rate", "speed", "reading"] = "reading"
    given: int = 0
    pending: int = 0
    unread: int = 0
    gone: int = 0
