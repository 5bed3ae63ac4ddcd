"""What users get and give: a dead letter, the filters that name some of them, what became of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypedDict, TypeVar

from rstream.errors import ConfigError
from rstream.event import Decode, Entry, EntryId
from rstream.position import Position
from rstream.store.dead import Letter, number
from rstream.store.log import make_entry

E = TypeVar("E")

WHY = {
    "missing": "no dead letter has this id, nor has its entry",
    "pending": "its entry is being handled or waits for that already: look again when it is settled",
    "ahead": "the group, made anew, has yet to read its entry and will handle it without a redrive: discard the letter",
    "trimmed": "its entry is not retained any more: publish it again from the letter's payload, or discard the letter",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DeadLetter(Generic[E]):
    """An entry that its group gave up.

    id: the letter's own, unique in the group, with the time of death · entry: the entry as it was published ·
    reason: "failed", "rejected", "undecodable", "outdated", "invalid", "crashed", "undecryptable", "plaintext",
    "blob missing" or "blob altered" · error: one line · traceback: may be "" · attempts: how many were made · worker:
    the last one's id · fields: the entry's, as Redis has them (those of an entry that rstream did not write may have
    any name).
    """

    def __init__(self, letter: Letter, decode: Decode[E]) -> None:
        def text(name: bytes) -> str:
            return letter.own[name].decode(errors="replace")

        self.id = letter.id
        self.entry: Entry[E] = make_entry(letter.entry_id, letter.flat, decode)
        self.reason, self.error, self.traceback = text(b"reason"), text(b"error"), text(b"traceback")
        self.attempts, self.worker = number(letter.own[b"attempts"]), text(b"worker")
        self.fields: Mapping[bytes, bytes] = dict(zip(letter.flat[::2], letter.flat[1::2], strict=True))

    @property
    def event(self) -> E:
        """The event, decoded when first touched. Raises `EntryInvalid`."""
        return self.entry.event

    @property
    def entry_id(self) -> EntryId:
        return self.entry.id

    @property
    def key(self) -> str | None:
        return self.entry.key

    @property
    def event_id(self) -> bytes:
        return self.entry.event_id

    @property
    def headers(self) -> Mapping[str, str]:
        return self.entry.headers

    @property
    def payload(self) -> bytes:
        return self.entry.payload

    @property
    def died_at(self) -> datetime:
        """By Redis's clock, in UTC."""
        return _time(self.id)

    @property
    def published_at(self) -> datetime:
        """By Redis's clock, in UTC."""
        return _time(self.entry_id)

    def __repr__(self) -> str:
        return f"DeadLetter(id={self.id!s}, entry_id={self.entry_id!s}, reason={self.reason!r}, error={self.error!r})"


@dataclass(frozen=True)
class Left:
    """A dead letter that could not be redriven. why: a key of `WHY` · entry_id: None where there is no such letter."""

    id: EntryId
    entry_id: EntryId | None
    why: str

    def __str__(self) -> str:
        entry = "" if self.entry_id in (None, self.id) else f" (entry {self.entry_id})"
        return f"{self.id}{entry}: {WHY[self.why]}"


@dataclass
class Redrive:
    """What a redrive did, or would do (`dry_run`).

    done: letters given back to their group · gone: meanwhile redriven or discarded, also by this very call where
    the connection broke and it was sent twice · left: untouched, each with its reason.
    """

    done: int = 0
    gone: int = 0
    left: list[Left] = field(default_factory=list)


@dataclass
class Discard:
    """What a discard did, or would do. done: letters deleted · left: ids that name no letter."""

    done: int = 0
    left: list[Left] = field(default_factory=list)


class Filters(TypedDict, total=False):
    """Which dead letters: those that match every filter given.

    ids: letters, their ids, or the ids of their entries · reason, key: exactly this · since, until: died in this
    time, bounds as in `Stream.read` · error: this text is in the error, in any case · limit: the oldest so many.
    """

    ids: Iterable[EntryId | str | DeadLetter[Any]] | None
    reason: str | None
    key: str | None
    since: Position
    until: Position
    error: str | None
    limit: int | None


TEXTS = ("reason", "key", "error")


def check_filters(filters: Filters) -> None:
    """Refuse what looks like a filter and is none: it would match every letter, and who discards by it loses all.
    An empty text is mostly a shell variable that nobody set. Raises `ConfigError`.
    """
    for name, value in filters.items():
        if name not in Filters.__annotations__:
            raise ConfigError(
                f"dead letters have no filter {name!r}, and without one all would be meant: "
                f"there are {', '.join(Filters.__annotations__)}"
            )
        if name not in TEXTS or value is None:
            continue
        if not isinstance(value, str):
            raise ConfigError(f"the filter {name!r} of dead letters is {value!r}: give a text, or leave it out")
        if not (value if name == "key" else value.strip()):  # a key may be a blank, and is matched exactly
            raise ConfigError(
                f"the filter {name!r} of dead letters is {value!r}, which is no filter, and all would be meant: "
                "give a text, or leave it out"
            )


def _time(id: EntryId) -> datetime:
    try:
        return _EPOCH + timedelta(milliseconds=id.ms)
    except OverflowError:  # an id that is no time
        return datetime.max.replace(tzinfo=UTC)
