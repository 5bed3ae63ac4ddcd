"""`rstream dead`: what the groups of a stream gave up: look at it, give it back, throw it away."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rstream.cli.read import POSITION, time_of
from rstream.cli.tables import as_text, printable
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.deadletter import DeadLetter, Discard, Filters, Left, Redrive, SyncDeadLetters
    from rstream.store.dead import Head

C = TypeVar("C", bound=Callable[..., Any])
SHOWN = 20
"""Letters that are named one by one when they could not be redriven."""

_OPTIONS = [
    click.argument("stream"),
    click.option("--group", "-g", required=True, help="The group that gave them up."),
    click.option("--id", "ids", multiple=True, metavar="ID", help="This letter, or this entry's. May be repeated."),
    click.option("--reason", help="failed, rejected, undecodable, invalid, …: as `count` and `list` show it."),
    click.option("--key", help="Only those of this key."),
    click.option("--since", metavar="X", help=f"Died then or later: {POSITION}."),
    click.option("--until", metavar="X", help="Died then or earlier."),
    click.option("--error", metavar="TEXT", help="With this text in the error, in any case."),
    click.option("--limit", "-n", type=click.IntRange(min=0), metavar="N", help="At most so many, the oldest first."),
    click.option("--json", "as_json", is_flag=True, help="JSON on stdout; bytes are base64."),
]
_ALL = click.option("--all", "everything", is_flag=True, help="All of them: needed where nothing else says which.")
_DRY = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def _which(command: C) -> C:
    """The options that say which letters are meant."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return target_options(command)


@click.group()
def dead() -> None:
    """Look at the dead letters of a group, redrive or discard them.

    A dead letter is an entry that a group gave up: its handler failed on the last attempt or rejected it, it could not
    be decoded, or it killed its workers. Each group has its own; the entry stays in the stream.

    \b
    What went wrong since yesterday?  rstream dead list orders --group billing --since "1d ago"
    What exactly, with which event?   rstream dead show orders --group billing --id 1763630000000-0@1.3
    The bug is fixed, do them again:  rstream dead redrive orders --group billing --error KeyError --dry-run
    Never mind those:                 rstream dead discard orders --group billing --reason invalid

    --id takes a letter's id or that of its entry, which is what logs name. Filters add up: a letter must match all.
    """


@dead.command("list")
@_which
def list_(stream: str, group: str, as_json: bool, **which: Any) -> None:
    """List dead letters, in order of death. With --json one object a line.

    \b
    Examples:
      rstream dead list orders --group billing
      rstream dead list orders --group billing --reason failed --since "2h ago" --error timeout
      rstream dead list orders --group billing --json | jq -r .entry_id
    """
    shown = 0
    with _letters(stream, group) as letters:
        line = _table_line()
        for shown, head in enumerate(letters.heads(**_filters(which)), 1):
            if as_json:
                click.echo(json.dumps(_head_row(head), ensure_ascii=False))
                continue
            if shown == 1:
                click.echo(line("DIED", "LETTER", "ENTRY", "REASON", "ATTEMPTS", "KEY", "ERROR"))
            died = time_of(head.id) or "-"
            cells = str(head.id), str(head.entry_id), head.reason, str(head.attempts), head.key or "-", head.error
            click.echo(line(died, *cells))
        if not shown and not as_json:
            _tell_of_others(letters)


@dead.command()
@_which
def show(stream: str, group: str, as_json: bool, **which: Any) -> int:
    """Show a dead letter in full: its event as JSON, and the traceback. Of several that match, the oldest.

    \b
    Examples:
      rstream dead show orders --group billing --id 1763630000000-0@1.3
      rstream dead show orders --group billing --error KeyError --limit 3
      rstream dead show orders --group billing --json | jq -c .event | rstream publish orders --file -
    """
    filters, shown = _filters(which), 0
    if filters.get("limit") is None and not filters.get("ids"):
        filters["limit"] = 1
    with _letters(stream, group) as letters:
        for shown, letter in enumerate(letters.read(**filters), 1):
            if as_json:
                click.echo(json.dumps(_row(letter), ensure_ascii=False, allow_nan=False))
            else:
                click.echo(("\n" if shown > 1 else "") + _in_full(letter))
        if not shown:
            _tell_of_others(letters)
    return 0 if shown else 1


@dead.command()
@_which
@_ALL
@_DRY
def redrive(stream: str, group: str, as_json: bool, everything: bool, dry_run: bool, **which: Any) -> int:
    """Have the group handle the entries of dead letters once more, beginning with attempt 1.

    Its workers take them up at once; no other group notices, and nothing is published. The letters are deleted.
    What cannot be redriven stays as it is and is named: an entry that is not retained any more, or that is being
    handled. Once it was sent, sending it again does no harm.

    \b
    Examples:
      rstream dead redrive orders --group billing --all --dry-run
      rstream dead redrive orders --group billing --error KeyError --since "2h ago"
      rstream dead redrive orders --group billing --id 1763630000000-0@1.3 --id 1763630000412-0@1.0

    \b
    Exit codes: 0 all redriven · 1 an error, or some are left, and which · 2 wrong usage
    """
    _need_some(which, everything)
    with _letters(stream, group) as letters:
        done = letters.redrive(everything=everything, dry_run=dry_run, **_filters(which))
        if as_json:
            click.echo(_done_json(done, "redriven", dry_run))
        else:
            click.echo(f"{'would be redriven' if dry_run else 'redriven'}: {_count(done.done)} of group {group}")
            if done.gone:
                click.echo(f"gone meanwhile, redriven or discarded: {done.gone:,}")
            if not done.done + done.gone + len(done.left):
                _tell_of_others(letters)
        if done.done:
            _tell_of_pause(letters)
    return _end(done.left, as_json, dry_run)


@dead.command()
@_which
@_ALL
@_DRY
def discard(stream: str, group: str, as_json: bool, everything: bool, dry_run: bool, **which: Any) -> int:
    """Delete dead letters for good, without asking. Their entries stay in the stream as long as it retains them.

    \b
    Examples:
      rstream dead discard orders --group billing --reason invalid --until "30d ago" --dry-run
      rstream dead discard orders --group billing --id 1763630000000-0@1.3

    \b
    Exit codes: 0 done · 1 an error, or an --id names no letter · 2 wrong usage
    """
    _need_some(which, everything)
    with _letters(stream, group) as letters:
        done = letters.discard(everything=everything, dry_run=dry_run, **_filters(which))
        if as_json:
            click.echo(_done_json(done, "discarded", dry_run))
        else:
            click.echo(f"{'would be discarded' if dry_run else 'discarded'}: {_count(done.done)} of group {group}")
            if not done.done + len(done.left):
                _tell_of_others(letters)
    return _end(done.left, as_json, dry_run)


# -- which ---------------------------------------------------------------------------------------------------------


@contextmanager
def _letters(stream: str, group: str) -> Iterator[SyncDeadLetters[Any]]:
    with stored_app() as app:
        yield app.open(stream).sync.dead(group)


def _filters(which: dict[str, Any]) -> Filters:
    from rstream.deadletter.letter import check_filters
    from rstream.errors import ConfigError

    given: Filters = {**which, "ids": which["ids"] or None}  # type: ignore[typeddict-item]
    try:
        check_filters(given)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    return given


def _need_some(which: dict[str, Any], everything: bool) -> None:
    given = any(value not in (None, ()) for name, value in which.items() if name != "limit")
    if given and everything:
        raise click.UsageError("--all means every letter of the group: leave it out, or the ids and filters.")
    if not given and not everything:
        raise click.UsageError("Which dead letters? Give --id or a filter, or --all for every one of the group.")


def _tell_of_pause(letters: SyncDeadLetters[Any]) -> None:
    from rstream.store.pause import paused

    stream, group = letters.stream, letters.group
    if stream.app.sync_link.run(paused(stream.app.settings.namespace, stream.name, [group])):
        told = f"group {group} is paused: what is redriven waits until it is resumed"
        click.echo(f"{told} (rstream resume {group} --stream {stream.name})", err=True)


def _tell_of_others(letters: SyncDeadLetters[Any]) -> None:
    """Nothing was found: what there is instead, so that a typing error shows."""
    from rstream.errors import ConfigError
    from rstream.store.stats import stream_stats

    if counts := letters.count():
        told = ", ".join(f"{reason or '?'} {count:,}" for reason, count in counts.items())
        click.echo(
            f"No dead letter matches. Group {letters.group} has {_count(sum(counts.values()))}: {told}", err=True
        )
        return
    stream = letters.stream
    groups = stream.app.sync_link.run(stream_stats(stream.sync.layout())).groups
    if letters.group not in groups:
        known = f"there are {', '.join(groups)}" if groups else "there are none yet; a worker makes them"
        raise ConfigError(f"no group {letters.group!r} reads stream {stream.name!r}: {known}")
    click.echo(f"No dead letters of group {letters.group}.", err=True)


# -- shown ---------------------------------------------------------------------------------------------------------


def _table_line() -> Callable[..., str]:
    """Lines of an endless table, cut to fit where somebody looks at it."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

    def line(died: str, letter: str, entry: str, reason: str, attempts: str, key: str, error: str) -> str:
        error = " ".join(error.split())
        row = f"{died:<24} {letter:<22} {entry:<22} {reason:<11} {attempts:>8} {key:<12} {error}".rstrip()
        row = printable(row)
        return row if not width or len(row) <= width else f"{row[: width - 1]}…"

    return line


def _head_row(head: Head) -> dict[str, Any]:
    return {
        "id": str(head.id),
        "entry_id": str(head.entry_id),
        "died_at": time_of(head.id),
        "published_at": time_of(head.entry_id),
        "reason": head.reason,
        "error": head.error,
        "attempts": head.attempts,
        "worker": head.worker,
        "key": head.key,
        "bytes": head.size,
    }


def _row(letter: DeadLetter[Any]) -> dict[str, Any]:
    from rstream.event import jsonable

    event, problem = _event(letter)
    told = {"event": event} if problem is None else {"event": event, "problem": problem}
    return {
        "id": str(letter.id),
        "entry_id": str(letter.entry_id),
        "died_at": time_of(letter.id),
        "published_at": time_of(letter.entry_id),
        "reason": letter.reason,
        "error": letter.error,
        "traceback": letter.traceback,
        "attempts": letter.attempts,
        "worker": letter.worker,
        "key": letter.key,
        "event_id": _event_id(letter),
        "headers": jsonable(letter.headers),
        **told,
    } | (
        {}
        if event is not None
        else {"fields": {as_text(name): as_text(value) for name, value in letter.fields.items()}}
    )


def _event(letter: DeadLetter[Any]) -> tuple[Any, str | None]:
    """(the event, or at least its fields, or None; what is wrong with it, if anything)."""
    from rstream.codec import unpack_payload
    from rstream.errors import EntryInvalid
    from rstream.event import jsonable

    try:
        return jsonable(letter.event), None
    except EntryInvalid as error:
        problem = f"{error.reason}: {error}"
    try:
        return jsonable(unpack_payload(letter.payload)[1]), problem
    except EntryInvalid:
        return None, problem


def _in_full(letter: DeadLetter[Any]) -> str:
    event, problem = _event(letter)
    rows = [
        ("letter", str(letter.id)),
        ("died", time_of(letter.id) or "-"),
        ("entry", str(letter.entry_id)),
        ("published", time_of(letter.entry_id) or "-"),
        ("reason", letter.reason),
        ("error", " ".join(letter.error.split())),
        ("attempts", str(letter.attempts)),
        ("worker", letter.worker),
        ("key", letter.key or "-"),
        ("event id", _event_id(letter) or "-"),
        ("headers", json.dumps(letter.headers, ensure_ascii=False) if letter.headers else "-"),
    ]
    if problem is not None:
        rows.append(("problem", problem))
    parts = ["\n".join(printable(f"{name:<10} {text}") for name, text in rows)]
    if event is not None:
        parts.append(json.dumps(event, indent=2, ensure_ascii=False))
    else:
        fields = (f"{as_text(name)} = {as_text(value)}" for name, value in letter.fields.items())
        parts.append("\n".join(["fields as stored:", *(printable(f"  {field}") for field in fields)]))
    if letter.traceback:
        parts.append("\n".join(map(printable, letter.traceback.rstrip().splitlines())))
    return "\n\n".join(parts)


def _event_id(letter: DeadLetter[Any]) -> str | None:
    return str(uuid.UUID(bytes=letter.event_id)) if len(letter.event_id) == 16 else None


def _count(number: int) -> str:
    return f"{number:,} dead letter{'s' * (number != 1)}"


def _done_json(done: Redrive | Discard, verb: str, dry_run: bool) -> str:
    left = [{"id": str(one.id), "entry_id": one.entry_id and str(one.entry_id), "why": one.why} for one in done.left]
    gone = {"gone": done.gone} if hasattr(done, "gone") else {}
    return json.dumps({verb: done.done, **gone, "left": left, "dry_run": dry_run})


def _end(left: Sequence[Left], as_json: bool, dry_run: bool) -> int:
    if not as_json:
        for one in left[:SHOWN]:
            click.echo(f"left: {one}", err=True)
        if len(left) > SHOWN:
            click.echo(f"left: {len(left) - SHOWN:,} more (--json names all)", err=True)
        if dry_run:
            click.echo("This was a dry run: nothing was changed.")
    return 1 if left else 0
