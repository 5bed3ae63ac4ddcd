"""What `rstream replay` prints: plans, summaries, the command to go on with."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rstream.cli.read import time_of

if TYPE_CHECKING:
    from rstream.event import EntryId
    from rstream.replay import NewGroup, ReplayPlan, ReplayResult


def summary(result: ReplayResult, group: str | None) -> str:
    """group: that was given to, None = it went through a handler."""
    did = "handled" if group is None else "gave"
    if result.start is None and not result.finished:
        return f"{result.name}: {did} nothing"
    if result.start is None:
        return f"{result.name}: nothing to do, stream {result.stream} has no entries in this window"
    number = result.handled if group is None else result.given
    text = f"{result.name}: {did} {number:,} of window {result.start} to {result.end} of {result.stream}"
    text += f" to group {group} again" if group else ""
    text += f" in {result.seconds:.1f} s"
    if result.earlier:
        text += f" (resumed: {result.earlier:,} were done before)"
    for count, what in (
        (result.skipped, "skipped: {:,} that do not match"),
        (result.pending, "left alone: {:,} that the group has in hand, or waiting"),
        (result.unread, "left alone: {:,} that the group has yet to read"),
        (result.gone, "gone: {:,} that Redis does not store any more, and that cannot be given to a group"),
    ):
        text += f"\n{what.format(count)}" if count else ""
    if result.trimmed:
        text += f"\ntrimmed: entries from {min(result.trimmed)} on were gone from the stream before they were read"
    for count, ids, word in (
        (result.failed, result.failed_ids, "failed"),
        (result.invalid, result.invalid_ids, "invalid"),
    ):
        text += f"\n{word}: {count:,}: {_ids(ids, count)}" if count else ""
    return text


def _ids(ids: tuple[EntryId, ...], count: int) -> str:
    return ", ".join(map(str, ids[:10])) + (", … (--json shows more)" if count > 10 else "")


def plan(told: ReplayPlan) -> str:
    if told.start is None or told.end is None:
        if told.way == "new group":
            return f"group {told.name} over stream {told.stream}: nothing to catch up with. It follows from there on."
        return f"{told.name}: nothing to do, stream {told.stream} has no entries in this window"
    lines = [f"  {what:<12} {text}".rstrip() for what, text in _rows(told, told.start, told.end)]
    nothing = {"handler": "nothing was handled", "group": "nothing was given", "new group": "no group was made"}
    title = f"{'group ' if told.way == 'new group' else ''}{told.name} over stream {told.stream}:"
    return "\n".join([title, *lines, f"This was a dry run: {nothing[told.way]}."])


def _rows(told: ReplayPlan, start: EntryId, end: EntryId) -> list[tuple[str, str]]:
    where = "all of them in Redis" if not told.archived else f"{told.archived:,} of them in the archive"
    rows = [
        ("first entry", f"{start}  {time_of(start) or ''}"),
        ("last entry", f"{end}  {time_of(end) or ''}"),
        ("entries", f"{told.entries:,} in {told.shards} shard{'s' * (told.shards != 1)}, {where}"),
        ("payload", f"{told.bytes:,} bytes"),
    ]
    if told.matching != told.entries:
        rows.append(("matching", f"{told.matching:,} entries"))
    if told.way == "new group":
        rows.append(("catches up", f"with {told.left:,} entries, then it follows live"))
    else:
        begins = f"after {told.resume_after}, where it was stopped" if told.resume_after else "at the first entry"
        rows += [("begins", begins), ("to handle" if told.way == "handler" else "to look at", f"{told.left:,} entries")]
    if told.way == "group":
        rows += [
            ("will get", f"{told.given:,} entries again"),
            ("left alone", f"{told.pending:,} pending, {told.unread:,} yet to be read by the group"),
        ]
    if told.gone:
        rows.append(("gone", f"{told.gone:,} that Redis does not store any more: no group can get them"))
    return [*rows, ("takes", _takes(told))]


def _takes(told: ReplayPlan) -> str:
    seconds = told.seconds
    time = f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:,.0f} min" if seconds < 6000 else ""
    time = time or f"{seconds / 3600:,.1f} h"
    if told.basis == "reading":
        return f"{time} at least: so long it takes to read it, as measured just now"
    return f"{time} at this {told.basis}"


def made(new: NewGroup) -> str:
    left = new.plan.left
    begins = "with what is published now" if new.plan.start is None else f"with {new.plan.start}"
    if new.plan.gone:
        begins = f"with the first entry that Redis has ({new.plan.gone:,} before it are in the archive alone)"
    return "\n".join([
        f"made group {new.group} of stream {new.stream}: it begins {begins}, and has {left:,} entries to catch up with",
        "Declare a consumer for it, and run it:",
        "",
        f'  @{new.stream.replace("-", "_").replace(".", "_")}.consumer("{new.group}")',
        "  def handle(event): ...",
        "",
        f"  {command(new)}",
    ])  # fmt: skip


def command(new: NewGroup) -> str:
    return f"rstream worker MODULE:APP --group {new.stream}/{new.group}"


def made_json(new: NewGroup) -> str:
    told: dict[str, Any] = _plain(new.plan)
    told |= {"made": True, "positions": [str(id) for id in new.positions], "command": command(new)}
    return json.dumps(told, ensure_ascii=False)


def as_json(told: ReplayPlan | ReplayResult) -> str:
    return json.dumps(_plain(told), ensure_ascii=False)


def _plain(told: ReplayPlan | ReplayResult) -> dict[str, Any]:
    from rstream.event import EntryId

    def plain(value: Any) -> Any:
        if isinstance(value, EntryId):
            return str(value)
        return [str(id) for id in value] if isinstance(value, tuple) else value

    return {field.name: plain(getattr(told, field.name)) for field in fields(told)}
