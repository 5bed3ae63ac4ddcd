"""The screen as lines of text with ANSI styles, each as wide as the terminal at most. Pure."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from rstream.operate.pending import Pending
from rstream.operate.show import Shown
from rstream.top.model import SORTS, Model
from rstream.top.rows import GroupRow, StreamRow

BOLD, DIM, RED, YELLOW, REVERSE, END = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[7m", "\x1b[0m"

HELP = [
    "up down pgup pgdn home end   move (also j k)",
    "enter                        go into it: stream, group, pending entry",
    "escape, backspace            go back",
    "s S  r                       sort by the next, the previous column; turn it round",
    "/                            filter by text; escape takes it away",
    "p                            pause the group, or resume it",
    "c                            cancel the entry (of a group's pending ones)",
    "space                        look now",
    "q                            quit",
    "",
    "|| GROUP  it is paused",
    "UNREAD  nobody was given it yet (? where Redis cannot tell)",
    "BEHIND  age of the oldest entry that is not processed",
    "PEND    given to a worker or waiting, not settled; OLDEST: its oldest",
    "IN/s OUT/s   published, and ended by the group, since the last look",
    "RETRY DEAD   wait for the next attempt; dead letters kept",
    "LOST    dropped or gone before it was processed, ever",
    "WRK     workers alive; 2+1: and one that is silent and holds something",
]


class Cell(NamedTuple):
    """text · width: 0 = what is left of the line · right: on which side it is set · style: of the text."""

    text: str
    width: int
    right: bool = True
    style: str = ""


def screen(model: Model, label: str, *, color: bool = True) -> list[str]:
    """As many lines as the terminal has."""
    height, width = model.size
    lines = [_title(model, label), _second(model)]
    body = [Line(text) for text in HELP] if model.help else _body(model)
    lines += body[: max(0, height - 3)]
    lines += [Line("")] * (height - 1 - len(lines))
    lines.append(_keys(model))
    return [line.rendered(width, color=color) for line in lines[:height]]


class Line:
    """Parts of text with styles, cut to a width when it is rendered."""

    def __init__(self, text: str = "", style: str = "") -> None:
        self.parts = [(text, style)]
        self.whole = ""

    def add(self, text: str, style: str = "") -> Line:
        self.parts.append((text, style))
        return self

    def rendered(self, width: int, *, color: bool) -> str:
        out, left = "", width
        for text, style in self.parts:
            shown = cut(text, left)
            left -= columns(shown)
            style = self.whole + style
            out += f"{style}{shown}{END}" if color and style and shown else shown
        if self.whole and color:
            out += f"{self.whole}{' ' * left}{END}"
        return out if color else out.rstrip()


def columns(text: str) -> int:
    """How wide it is on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """Nothing that a terminal would obey, and no wider than that."""
    text = "".join(c if c.isprintable() else "�" for c in text)
    if columns(text) <= width:
        return text
    while text and columns(text) > max(0, width - 1):
        text = text[:-1]
    return f"{text}…" if width > 0 else ""


def _title(model: Model, label: str) -> Line:
    line = Line("rstream top", BOLD).add(f"  {label}")
    for part in (model.stream, model.group, model.id):
        if part is not None:
            line.add(f" › {part}")
    if model.look is None:
        return line.add("  looking …", DIM)
    return line.add(f"  {clock(model.look.now)}", DIM)


def _second(model: Model) -> Line:
    if model.trouble:
        return Line(model.trouble, RED)
    if model.ask is not None:
        what = model.ask.id or f"group {model.ask.group} of {model.ask.stream}"
        return Line(f"{model.ask.deed} {what}? y = yes, any other key = no", YELLOW)
    if model.note:
        return Line(model.note)
    if model.typing or model.filter:
        return Line(f"/{model.filter}{'_' if model.typing else ''}", YELLOW)
    return Line(_summary(model))


def _summary(model: Model) -> str:
    """The row that is selected, in words: what does not fit into columns."""
    row = model.row
    if model.level == "pending" and model.is_paused and model.look is not None:
        pause = model.look.paused[model.stream or "", model.group or ""]
        return f"paused by {pause.by}{f': {pause.why}' if pause.why else ''}"
    if isinstance(row, GroupRow):
        parts = []
        if row.paused is not None:
            parts.append(f"paused by {row.paused.by}{f': {row.paused.why}' if row.paused.why else ''}")
        if row.oldest is not None:
            parts.append(
                f"oldest {row.oldest} {'waits: ' if (row.holder or '').startswith('~') else 'with '}{row.holder}"
            )
        return f"{row.name}: " + ("; ".join(parts) or "nothing pending")
    if isinstance(row, Pending):
        return _told(row)
    return ""


def _told(one: Pending) -> str:
    parts = [f"{one.id} {one.state}"]
    if one.worker:
        heard = "" if one.heartbeat is None else f" (heard {span(one.heartbeat)} ago)"
        parts.append(f"by {one.worker}{heard}")
    if one.due is not None:
        parts.append(f"due in {span(one.due)}" if one.due > 0 else f"overdue {span(-one.due)}")
    if one.behind is not None:
        parts.append(f"behind {one.behind}")
    if one.checkpoint_bytes or one.steps:
        parts.append(f"kept {one.steps} steps, a checkpoint of {one.checkpoint_bytes} B")
    return ", ".join(parts)


def _keys(model: Model) -> Line:
    if model.typing:
        return Line("enter keep · escape clear", DIM)
    keys = ["q quit", "? help"]
    if model.level != "entry":
        column, turned = model.sort
        keys += ["⏎ open", f"s sort: {column.title}{'↑' if column.falling == turned else '↓'}", "/ filter"]
    if model.is_paused is not None and model.level in ("groups", "pending"):
        keys.append("p resume" if model.is_paused else "p pause")
    if model.level in ("pending", "entry"):
        keys.append("c cancel")
    if model.level != "streams" and (model.level != "groups" or model.only is None):
        keys.append("esc back")
    return Line("  ".join(keys), DIM)


# -- the body ------------------------------------------------------------------------------------------------------


def _body(model: Model) -> list[Line]:
    if model.level == "entry":
        lines = [Line(text) for text in ([] if model.shown is None else entry_lines(model.shown))]
        start, end = model.window(len(lines))
        return lines[start:end]
    rows = model.rows
    start, end = model.window(len(rows))
    widths = _room(model, rows)
    lines = [_head(model, widths)]
    for number, row in enumerate(rows[start:end], start):
        line = _row_line(_cells(row), widths)
        if number == model.at:
            line.whole = REVERSE
        lines.append(line)
    if not rows:
        lines.append(Line("" if model.look is None else _nothing(model), DIM))
    elif model.level == "pending" and model.more:
        lines.append(Line(f"… and more: rstream pending {model.stream} --group {model.group}", DIM))
    return lines


def _nothing(model: Model) -> str:
    if model.filter:
        return "nothing matches"
    if model.level == "pending":
        return "nothing is pending"
    return "no stream has a group yet" if model.level == "groups" else "no streams yet"


def _cells(row: Any) -> list[Cell]:
    if isinstance(row, GroupRow):
        return _group_cells(row)
    return _stream_cells(row) if isinstance(row, StreamRow) else _pending_cells(row)


TITLES = {
    "groups": ["GROUP", "UNREAD", "BEHIND", "PEND", "OLDEST", "IN/s", "OUT/s", "RETRY", "DEAD", "LOST", "WRK"],
    "streams": ["STREAM", "ENTRIES", "SHARDS", "GROUPS", "IN/s", "BEHIND", "PEND", "DEAD", "LOST", "PAUSED"],
    "pending": ["ENTRY", "KEY", "STATE", "FOR", "TRY", "WORKER"],
}
WIDTHS = {
    "groups": [0, 6, 6, 5, 6, 5, 5, 5, 5, 5, 5],
    "streams": [0, 7, 6, 6, 6, 7, 6, 6, 6, 6],
    "pending": [22, 0, 8, 7, 3, 24],
}
LEFT = {"GROUP", "STREAM", "ENTRY", "KEY", "STATE", "WORKER"}


def _room(model: Model, rows: Sequence[Any]) -> list[int]:
    """How wide each column is: the one that has no width of its own gets what is left, or less where it needs less."""
    widths = [*WIDTHS[model.level]]
    if model.level == "pending":
        widths[0] = max([22, *(len(str(one.id)) for one in rows)])
    at = widths.index(0)
    needed = max([8, *(columns(_cells(row)[at].text) for row in rows)])
    widths[at] = max(8, min(needed, model.size[1] - sum(widths) - len(widths) + 1))
    return widths


def _head(model: Model, widths: Sequence[int]) -> Line:
    column, _ = model.sort
    line = Line()
    for number, (title, width) in enumerate(zip(TITLES[model.level], widths, strict=True)):
        line.add(" " if number else "").add(
            set_in(title, width, right=title not in LEFT), BOLD if title == column.title else DIM
        )
    return line


def _row_line(cells: Sequence[Cell], widths: Sequence[int]) -> Line:
    line = Line()
    for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        line.add(" " if number else "").add(set_in(cell.text, width, right=cell.right), cell.style)
    return line


def set_in(text: str, width: int, *, right: bool) -> str:
    text = cut(text, width)
    gap = " " * (width - columns(text))
    return gap + text if right else text + gap


def _group_cells(row: GroupRow) -> list[Cell]:
    workers = f"{row.alive}+{row.silent}" if row.silent else str(row.alive)
    idle = not row.alive and row.behind > 0 and row.paused is None
    name = f"|| {row.name}" if row.paused else row.name
    return [
        Cell(name, 0, False, YELLOW if row.paused else ""),
        Cell("?" if row.unread is None else short(row.unread), 6),
        Cell(span(row.behind) if row.behind else "-", 6, style=YELLOW if row.behind > 60 else ""),
        Cell(short(row.pending), 5), Cell(span(row.age) if row.oldest else "-", 6),
        Cell(rate(row.came), 5), Cell(rate(row.done), 5), Cell(short(row.retries), 5),
        Cell(short(row.dead), 5, style=YELLOW if row.dead else ""),
        Cell(short(row.lost), 5, style=RED if row.lost else ""),
        Cell(workers, 5, style=RED if idle or row.silent else ""),
    ]  # fmt: skip


def _stream_cells(row: StreamRow) -> list[Cell]:
    return [
        Cell(row.stream, 0, False), Cell(short(row.entries), 7), Cell(str(row.shards), 6), Cell(str(row.groups), 6),
        Cell(rate(row.came), 6), Cell(span(row.behind) if row.behind else "-", 7), Cell(short(row.pending), 6),
        Cell(short(row.dead), 6, style=YELLOW if row.dead else ""),
        Cell(short(row.lost), 6, style=RED if row.lost else ""),
        Cell(str(row.paused or "-"), 6, style=YELLOW if row.paused else ""),
    ]  # fmt: skip


def _pending_cells(one: Pending) -> list[Cell]:
    late = one.state == "silent" or one.trimmed or (one.due is not None and one.due < -5)
    return [
        Cell(str(one.id), 0, False), Cell(one.key or "-", 0, False),
        Cell(one.state, 8, False, RED if late else ""), Cell(span(one.since), 7), Cell(str(one.attempt), 3),
        Cell(one.worker or "-", 24, False),
    ]  # fmt: skip


def entry_lines(shown: Shown) -> list[str]:
    """One entry. Its event is shown as JSON."""
    lines = [
        f"published {clock(shown.id.ms)}   key {shown.key or '-'}   {shown.size:,} bytes   in {shown.where}",
        f"event id {shown.event_id or '-'}   headers {json.dumps(dict(shown.headers), ensure_ascii=False)}",
    ]
    lines += [f"blob {claim.what}: {claim.size:,} bytes, {claim.state}" for claim in shown.claims]
    lines += [f"problem: {shown.problem}"] if shown.problem else []
    for state in shown.groups:
        told = _told(state.pending).split(" ", 1)[1] if state.pending else state.state
        lines.append(f"group {state.group}: {told}" + (" (paused)" if state.paused else ""))
        for letter in state.letters:
            lines.append(f"  {letter.reason}, attempt {letter.attempts}: {' '.join(letter.error.split())}")
            lines += [f"    {line}" for line in letter.traceback.rstrip().splitlines()]
    event = [] if shown.event is None else json.dumps(shown.event, indent=2, ensure_ascii=False).splitlines()
    return [*lines, "", *event]


# -- numbers -------------------------------------------------------------------------------------------------------


def short(number: float) -> str:
    """In five letters at most: 999, 1.2k, 12k, 999k, 1.2M."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            small = unit and number < 9.95
            return f"{number:.1f}{unit}" if small else f"{number:.0f}{unit}"
        number /= 1000
    raise AssertionError


def rate(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.1f}" if 0 < number < 9.95 else short(number)


def span(seconds: float) -> str:
    """In six letters at most: 0.3s, 12s, 3m20s, 2h05m, 3d04h, 120d."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    for large, small, unit, part in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= large:
            count = whole // large
            return f"{count}{unit}{whole % large // small:02d}{part}" if count < 100 else f"{count}{unit}"
    return f"{whole}s"


def clock(ms: int) -> str:
    """A time of Redis's, in UTC."""
    from datetime import UTC, datetime, timedelta

    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).strftime("%Y-%m-%d %H:%M:%S UTC")
    except OverflowError:  # an id that is no time
        return "-"


def table(model: Model) -> list[str]:
    """All groups as plain lines, for scripts."""
    rows = model.rows
    cells = [TITLES["groups"], *([cell.text for cell in _group_cells(row)] for row in rows)]
    widths = [max(columns(text) for text in column) for column in zip(*cells, strict=True)]
    return [
        " ".join(
            set_in(text, width, right=number > 0) for number, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


assert all(len(TITLES[level]) == len(WIDTHS[level]) for level in TITLES)
assert SORTS.keys() >= TITLES.keys()
