"""`rstream archive`: the log beyond Redis."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.groups import ago
from rstream.cli.logs import log_options
from rstream.cli.read import time_of
from rstream.cli.tables import table
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.archive.archive import Archive
    from rstream.archive.overview import ShardArchive
    from rstream.archive.verify import Verified
    from rstream.stream import Stream


@click.group()
def archive() -> None:
    """Keep the entries of streams in the blob store, before they are trimmed.

    \b
    Examples:
      rstream archive start orders --blobs s3://bucket/prefix
      rstream archive run orders payments
      rstream archive show orders
      rstream archive verify orders
    """


@archive.command()
@click.argument("stream")
@target_options
def start(stream: str) -> None:
    """Have a stream be archived from the oldest entry that Redis still has.

    From then on nothing is trimmed that is not archived. Somebody has to do it: `rstream archive run`, or the workers
    of an app that declares the stream with archive=True.
    """
    from rstream.store import archiving

    with stored_app() as app:
        opened, _ = _opened(app, stream)
        layout = opened.sync.layout(fresh=True)
        app.sync_link.run(archiving.hold(layout, "start"))
        new = app.sync_link.run(archiving.make(layout, layout.every))
    click.echo(f"{stream} is to be archived{' from now on' if new else ': it was already'}.")


@archive.command()
@click.argument("stream")
@target_options
def stop(stream: str) -> None:
    """Have a stream not be archived any more, also by workers that declare it so. What is archived stays readable.

    From then on nothing waits for the archive before it is trimmed.
    """
    from rstream.store import archiving
    from rstream.store.steps import drive_sync

    with stored_app() as app:
        layout = app.open(stream).sync.layout(fresh=True)
        app.sync_link.run(archiving.hold(layout, "stop"))
        on = drive_sync(app.sync_link, archiving.end(layout.every), app.settings.publish_timeout)
    click.echo(f"{stream} is not archived any more." if on else f"{stream} was not archived.")


@archive.command()
@click.argument("streams", nargs=-1, required=True, metavar="STREAM...")
@click.option("--once", is_flag=True, help="Archive everything there is, and end.")
@click.option("--every", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, metavar="S",
              help="After so many seconds also what fills no segment is archived.")  # fmt: skip
@log_options()
@target_options
def run(streams: tuple[str, ...], once: bool, every: float, log_level: str, log_format: str) -> None:
    """Archive streams until SIGTERM or Ctrl-C. Several may run: one is at work, the others wait.

    \b
    Examples:
      rstream archive run orders payments
      rstream archive run orders --once
    """
    from rstream.logs import to_stderr

    to_stderr(log_level, log_format)
    with stored_app() as app:
        opened = [_opened(app, name)[0] for name in streams]
        asyncio.run(_archive(opened, once, every))


async def _archive(streams: list[Stream[Any]], once: bool, every: float) -> None:
    from rstream.archive.run import ArchiveRun

    runs = [ArchiveRun(stream, every) for stream in streams]
    try:
        if once:
            for stream, each in zip(streams, runs, strict=True):
                click.echo(f"{stream.name}: archived {await each.once():,} entries")
            return
        task = asyncio.ensure_future(asyncio.gather(*(each.forever() for each in runs)))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        logging.getLogger("rstream").info("archiving %s", ", ".join(stream.name for stream in streams))
        with suppress(asyncio.CancelledError):
            await task
    finally:
        await streams[0].app.aclose()


@archive.command()
@click.argument("stream")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects.")
@target_options
def show(stream: str, as_json: bool) -> None:
    """Show what is archived of a stream, shard by shard, and how far behind the archive is.

    LAG: entries of Redis that are not archived (? where Redis cannot tell) · BEHIND: the age of the oldest of them.
    """
    from rstream.archive.overview import overview
    from rstream.store.steps import drive_sync

    with stored_app() as app:
        opened, past = _opened(app, stream)
        found = drive_sync(app.sync_link, overview(past, opened.sync.layout(fresh=True)), 0.0)
    if as_json:
        click.echo(json.dumps([{**asdict(each), "shard": _named(each)} for each in found], indent=2))
        return
    head = ["SHARD", "ARCHIVED", "SEGMENTS", "ENTRIES", "PAYLOAD", "STORED", "FROM", "TO", "LAG", "BEHIND"]
    table(head, [_cells(each) for each in found], right={2, 3, 4, 5, 8, 9})
    for each in found:
        if each.wrong:
            click.echo(f"shard {each.shard}: {each.wrong}", err=True)


def _named(each: ShardArchive) -> str:
    return f"{each.shard}/{each.shard.count}"


def _cells(each: ShardArchive) -> list[str]:
    on = {True: "yes", False: "no", None: "gone from Redis"}[each.on]
    ends = [None if id is None else time_of(each.shard.entry_id(id.encode())) for id in (each.first, each.last)]
    lag = "-" if not each.on else "?" if each.lag is None else f"{each.lag:,}"
    numbers = [f"{number:,}" for number in (each.segments, each.entries, each.payload, each.size)]
    return [_named(each), on, *numbers, *(end or "-" for end in ends), lag, ago(each.behind)]


@archive.command()
@click.argument("stream")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@target_options
def verify(stream: str, as_json: bool) -> int:
    """Read the whole archive of a stream, and name everything in it that is missing, altered or out of order.

    The exit code is 1 where something is.
    """
    from rstream.archive.overview import positions
    from rstream.archive.verify import verify
    from rstream.store import archiving

    with stored_app() as app:
        opened, past = _opened(app, stream)
        layout = opened.sync.layout(fresh=True)
        told = app.sync_link.run(archiving.standings(layout.every))
        done = verify(past.vault, positions(layout, told))
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
    else:
        _tell(stream, done)
    return 1 if done.problems else 0


def _tell(stream: str, done: Verified) -> None:
    for problem in done.problems:
        click.echo(f"shard {problem.shard}: {problem.object}: {problem.what}")
    verdict = (
        f"{len(done.problems):,} problem{'s' * (len(done.problems) != 1)}"
        if done.problems
        else "all as it was archived"
    )
    click.echo(
        f"{stream}: {done.segments:,} segments of {done.shards:,} shards, {done.entries:,} entries, "
        f"{done.size:,} bytes: {verdict}"
    )
    if done.orphans:
        click.echo(f"{done.orphans:,} objects that nothing names; `rstream archive sweep {stream}` deletes old ones")


@archive.command()
@click.argument("stream")
@target_options
def sweep(stream: str) -> None:
    """Delete what killed archivers have left, once it is a day old. `rstream archive run` does so by itself."""
    from rstream.archive.sweep import sweep

    with stored_app() as app:
        done = sweep(_opened(app, stream)[1].vault)
    click.echo(
        f"{stream}: deleted {done.deleted:,} of {done.orphans:,} objects that nothing names, {done.bytes:,} bytes"
    )


def _opened(app: RStream, name: str) -> tuple[Stream[Any], Archive]:
    """Raises `ConfigError` where there is no blob store."""
    from rstream.errors import ConfigError

    stream = app.open(name)
    if stream.past is None:
        raise ConfigError("there is no blob store to archive to: name it by --blobs or RSTREAM_BLOBS")
    return stream, stream.past
