"""What is on the screen, and how keys change it. Pure: no clock, no I/O; what has to be done is returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rstream.event import EntryId
from rstream.operate.pending import Pending
from rstream.operate.show import Shown
from rstream.top.rows import GroupRow, Look, Row, StreamRow, group_rows, stream_rows

Level = Literal["streams", "groups", "pending", "entry"]
Deed = Literal["quit", "look", "pause", "resume", "cancel"]


class Action(NamedTuple):
    """What is to be done because of a key. stream, group: of which · id: the entry that is meant."""

    deed: Deed
    stream: str = ""
    group: str = ""
    id: EntryId | None = None


class Column(NamedTuple):
    """title · key: of what is sorted by it · falling: the largest first."""

    title: str
    key: Callable[[Any], Any]
    falling: bool = True


def _known(value: float | None) -> float:
    """What nobody knows may be the worst."""
    return float("inf") if value is None else value


SORTS: dict[Level, tuple[Column, ...]] = {
    "groups": (
        Column("BEHIND", lambda row: row.behind),
        Column("UNREAD", lambda row: _known(row.unread)),
        Column("PEND", lambda row: row.pending),
        Column("OLDEST", lambda row: row.age),
        Column("IN/s", lambda row: row.came or 0.0),
        Column("OUT/s", lambda row: row.done or 0.0),
        Column("RETRY", lambda row: row.retries),
        Column("DEAD", lambda row: row.dead),
        Column("LOST", lambda row: row.lost),
        Column("WRK", lambda row: row.alive, False),
        Column("GROUP", lambda row: row.name, False),
    ),
    "streams": (
        Column("BEHIND", lambda row: row.behind),
        Column("ENTRIES", lambda row: row.entries),
        Column("PEND", lambda row: row.pending),
        Column("IN/s", lambda row: row.came or 0.0),
        Column("DEAD", lambda row: row.dead),
        Column("LOST", lambda row: row.lost),
        Column("STREAM", lambda row: row.stream, False),
    ),
    "pending": (
        Column("ENTRY", lambda one: one.id, False),
        Column("FOR", lambda one: one.since),
        Column("TRY", lambda one: one.attempt),
        Column("WORKER", lambda one: one.worker or "", False),
        Column("KEY", lambda one: one.key or "", False),
    ),
    "entry": (),
}


@dataclass
class Model:
    """level: what is looked at · stream, group, id: of which, as far as it was gone into · selected: by name, so that
    it stays where rows move · top: the first line that is shown · filter: text that names must have, and `typing` while
    it is written · ask: a deed that waits for a yes · note: what was done last · trouble: why there is nothing newer ·
    help: whether that is shown · size: rows and columns.
    """

    only: str | None = None
    level: Level = "groups"
    stream: str | None = None
    group: str | None = None
    id: EntryId | None = None
    selected: Any = None
    top: int = 0
    filter: str = ""
    typing: bool = False
    ask: Action | None = None
    note: str = ""
    trouble: str = ""
    help: bool = False
    size: tuple[int, int] = (24, 80)
    look: Look | None = None
    before: Look | None = None
    pending: Sequence[Pending] = ()
    more: bool = False
    shown: Shown | None = None
    sorts: dict[Level, tuple[int, bool]] = field(default_factory=dict)

    # What there is to show.

    def came(self, look: Look) -> None:
        """A new look at the fleet. One of the same moment (Redis's clock stands still, or was set back) is no news for
        rates.
        """
        self.before = self.look if self.look is None or look.now != self.look.now else self.before
        self.look, self.trouble = look, ""

    @property
    def rows(self) -> list[Any]:
        """Those of this level that match, sorted."""
        of = (self.look, self.before, self.level, self.stream, self.filter, self.sorts.get(self.level), self.pending)
        if len(self._made) != 2 or any(one is not other for one, other in zip(of, self._made[0], strict=True)):
            self._made = (of, self._rows())
        return self._made[1]

    _made: tuple[Any, ...] = ()

    def _rows(self) -> list[Any]:
        if self.look is None or self.level == "entry":
            return []
        found: list[Any]
        if self.level == "pending":
            found = [one for one in self.pending if self._matches(str(one.id), one.key, one.worker, one.state)]
        else:
            groups = group_rows(self.look, self.before)
            rows: Sequence[Row] = groups if self.level == "groups" else stream_rows(self.look, groups)
            found = [row for row in rows if self.stream in (None, row.stream) or self.level == "streams"]
            found = [row for row in found if self._matches(row.name)]
        column, turned = self.sort
        found.sort(key=identity)
        found.sort(key=column.key, reverse=column.falling != turned)
        return found

    def _matches(self, *texts: str | None) -> bool:
        wanted = self.filter.lower()
        return not wanted or any(wanted in text.lower() for text in texts if text)

    @property
    def sort(self) -> tuple[Column, bool]:
        """By which column, and whether the other way round."""
        at, turned = self.sorts.get(self.level, (0, False))
        return SORTS[self.level][at], turned

    @property
    def at(self) -> int:
        """Where the selected row is; the first one where it is gone."""
        names = [identity(row) for row in self.rows]
        return names.index(self.selected) if self.selected in names else 0

    def window(self, count: int) -> tuple[int, int]:
        """Which of so many lines are shown: from, to. Of rows the selected one is among them."""
        page, at = self.page, self.at
        if self.level != "entry":
            self.top = max(at - page + 1, min(self.top, at))
        self.top = max(0, min(self.top, count - page))
        return self.top, min(count, self.top + page)

    @property
    def row(self) -> Any:
        """The selected row, or None."""
        rows = self.rows
        return rows[self.at] if rows else None

    # What keys do.

    def press(self, key: str) -> Action | None:
        """key: a letter, or one of up, down, pageup, pagedown, home, end, enter, escape, backspace, left, right."""
        if self.typing:
            self._type(key)
            return None
        if self.ask is not None:
            ask, self.ask = self.ask, None
            return ask if key in ("y", "Y") else None
        if self.help:
            self.help = False
            return None
        self.note = ""
        if key in ("q", "Q"):
            return Action("quit")
        if key in _MOVES:
            self._move(_MOVES[key])
        elif key in ("enter", "right", "l"):
            return self._open()
        elif key in ("escape", "left", "backspace", "h"):
            return self._back()
        elif key in ("s", "S", "r") and SORTS[self.level]:
            self._sort(key)
        elif key == "/" and self.level != "entry":
            self.typing = True
        elif key == "?":
            self.help = True
        elif key == " ":
            return Action("look")
        elif key in ("p", "c"):
            self._ask(key)
        return None

    def _type(self, key: str) -> None:
        if key == "escape":
            self.filter, self.typing = "", False
        elif key == "enter":
            self.typing = False
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key
        self.selected, self.top = None, 0

    def _move(self, step: int) -> None:
        if self.level == "entry":
            self.top = max(0, self.top + (step if abs(step) < _PAGE else step // _PAGE * self.page))
            return
        if rows := self.rows:
            step = step if abs(step) < _PAGE else step // _PAGE * self.page
            self.selected = identity(rows[max(0, min(len(rows) - 1, self.at + step))])

    @property
    def page(self) -> int:
        """Rows that fit."""
        return max(1, self.size[0] - 5)

    def _open(self) -> Action | None:
        row = self.row
        if row is None:
            return None
        if self.level == "streams":
            self._go("groups", stream=row.stream)
        elif self.level == "groups":
            self._go("pending", stream=row.stream, group=row.group)
        else:
            self._go("entry", stream=self.stream, group=self.group, id=row.id)
        return Action("look")

    def _back(self) -> Action | None:
        if self.filter and self.level != "entry":
            self.filter = ""
        elif self.level == "entry":
            was: Any = self.id
            self._go("pending", stream=self.stream, group=self.group)
            self.selected = was
        elif self.level == "pending":
            was = (self.stream, self.group)
            self._go("groups", stream=self.only or self._from)
            self.selected = was
        elif self.level == "groups" and self.only is None:
            was = self.stream
            self._go("streams")
            self.selected = was
        return Action("look")

    _from: str | None = None

    def _go(
        self, level: Level, *, stream: str | None = None, group: str | None = None, id: EntryId | None = None
    ) -> None:
        if self.level == "groups":
            self._from = self.stream  # whether all streams were looked at, or one
        self.level, self.stream, self.group, self.id = level, stream, group, id
        self.selected, self.top, self.filter = None, 0, ""
        self.shown = None
        if level == "pending":
            self.pending, self.more = (), False

    def _sort(self, key: str) -> None:
        at, turned = self.sorts.get(self.level, (0, False))
        if key == "r":
            self.sorts[self.level] = (at, not turned)
        else:
            self.sorts[self.level] = ((at + (1 if key == "s" else -1)) % len(SORTS[self.level]), False)
        self.top = 0

    def _ask(self, key: str) -> None:
        """Nothing is done by one key."""
        row = self.row
        if key == "p" and self.level in ("groups", "pending"):
            paused = self.is_paused
            if paused is not None:
                stream, group = (row.stream, row.group) if self.level == "groups" else (self.stream, self.group)
                self.ask = Action("resume" if paused else "pause", stream or "", group or "")
        elif key == "c" and self.group and self.level in ("pending", "entry"):
            id = self.id if self.level == "entry" else row and row.id
            if id is not None:
                self.ask = Action("cancel", self.stream or "", self.group, id)

    @property
    def is_paused(self) -> bool | None:
        """Whether the group that is meant is; None where none is."""
        name = (self.stream, self.group)
        if self.level == "groups":
            if (row := self.row) is None:
                return None
            name = (row.stream, row.group)
        return None if self.look is None else name in self.look.paused


def identity(row: Any) -> Any:
    if isinstance(row, StreamRow):
        return row.stream
    return (row.stream, row.group) if isinstance(row, GroupRow) else row.id


_PAGE = 1_000
_MOVES = {
    "up": -1, "k": -1, "down": 1, "j": 1, "pageup": -_PAGE, "pagedown": _PAGE, "home": -100 * _PAGE, "end": 100 * _PAGE,
}  # fmt: skip
