"""What a worker has in hand of one group: entries, from their fetch to the answer to their settle. Beside it, what is
known of those that left it and are still pending for this worker. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from rstream.store.deliveries import Fetched, Tokens
from rstream.store.keys import Shard
from rstream.worker.order import Now, Place

CANCELLED = -1
"""No lease has this term."""


class Hand:
    """terms: of each entry in hand, the lease's when it was asked for · back: entries that came again while they were
    in hand, with what they came by · returning: those that were not started, and are on their way back to Redis.

    unsure: an entry that is pending for this worker, and not in hand, may have been begun elsewhere: then the attempt
    that its delivery count names is used up, and its next run is another one · sources: of some it is known how they
    came.
    """

    def __init__(self) -> None:
        self.terms: dict[Place, int] = {}
        self.back: dict[Place, tuple[list[Fetched], int, Tokens | None]] = {}
        self.returning: set[Place] = set()
        self.unsure = False
        self.sources: dict[Place, str] = {}
        self._left: set[Place] | None = None

    def __len__(self) -> int:
        return len(self.terms)

    def cancel(self, place: Place) -> None:
        """Somebody settled it by hand: it is not begun any more, and if it was, its outcome is not wanted."""
        self.terms[place] = CANCELLED

    def is_cancelled(self, place: Place) -> bool:
        return self.terms.get(place) == CANCELLED

    def really(self, place: Place, now: Now) -> Now:
        """What has become of an entry that is let go: one that was cancelled is settled, unless it came again."""
        return now if self.terms.get(place) != CANCELLED or place in self.back else "ended"

    def let_go(self, place: Place) -> None:
        self.terms.pop(place, None)
        self.returning.discard(place)
        if self._left is not None:
            self._left.add(place)

    def let_all_go(self, places: Sequence[Place]) -> None:
        """As `let_go`, of many."""
        terms = self.terms
        for place in places:
            terms.pop(place, None)
        if self.returning:
            self.returning.difference_update(places)
        if self._left is not None:
            self._left.update(places)

    def has(self, place: Place) -> bool:
        """Whether the entry is in hand, or was at any time since `watch` began."""
        return place in self.terms or (self._left is not None and place in self._left)

    def watch(self, on: bool) -> None:
        """Remember what is let go while somebody compares Redis's list of our deliveries with ours."""
        self._left = set() if on else None

    def holds_of(self, shard: Shard) -> bool:
        """Whether anything of a shard is in hand."""
        return any(place[0] is shard for place in self.terms)

    def source(self, place: Place, deliveries: int) -> str | None:
        """How an entry came that is pending for this worker, and not in hand."""
        return "~unsure" if self.unsure else self.sources.get(place, None if deliveries else "~released")


def from_the_dead(entry: Fetched) -> bool:
    """Whether its last attempt may have ended with its worker: also one that somebody took over and did not start."""
    if entry.source in ("~released", "~suspect"):
        return entry.deliveries > 0
    return not (entry.source is None or entry.source.startswith("~"))
