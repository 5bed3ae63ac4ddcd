"""What a replay tells about itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rstream.event import EntryId


@dataclass(frozen=True)
class ReplayResult:
    """How a replay ended, or how far it is.

    name, stream · start, end: the window, as found in the stream; None where it is empty · finished: False where it
    was stopped · position: everything up to it is done · handled, failed, invalid: counts over all its runs ·
    failed_ids, invalid_ids: together, the first 100 · resumed_from: where this run went on · earlier: how many
    entries earlier runs did · seconds: of this run.
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

    @property
    def done(self) -> int:
        """Entries that are behind us, whatever became of them."""
        return self.handled + self.failed + self.invalid

    @property
    def fraction(self) -> float:
        """0 to 1, by time in the window: counting its entries would cost reading all of it."""
        if self.finished:
            return 1.0
        if self.position is None or self.start is None or self.end is None:
            return 0.0
        return min(1.0, (self.position.ms - self.start.ms) / max(1, self.end.ms - self.start.ms))


@dataclass(frozen=True)
class ReplayPlan:
    """What a replay would do.

    entries, bytes (of payload): of the whole window · start, end: its first and last entry · shards: how many hold
    some of it · resume_after: the stored position, None = from the first · left: entries still to be handled.
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
