"""`rstream replay`: a window of a stream once more, through a handler, into a group or as a new one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from rstream.cli import replays
from rstream.cli.logs import log_options
from rstream.cli.progress import Bar
from rstream.cli.read import POSITION
from rstream.cli.signals import Stopped, raising
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.replay import Giving, Replay
    from rstream.stream import Stream

WAYS = {"spec": "--handler", "into": "--into-group", "fork": "--as-group"}

NOT_FOR = {
    "into": {"batch": "--batch", "concurrency": "--concurrency", "ordered": "--ordered/--unordered"},
    "fork": {
        "end": "--to", "key": "--key", "conditions": "--where", "rate": "--rate", "speed": "--speed", "name": "--name",
        "batch": "--batch", "concurrency": "--concurrency", "ordered": "--ordered/--unordered", "restart": "--restart",
    },
}  # fmt: skip
WHY = {
    "into": "the group's own consumer decides that",
    "fork": "a new group gets all that there is from --from on, at its own pace",
}


@click.command()
@click.argument("stream")
@click.option("--from", "start", required=True, metavar="X", help=f"Begin here: {POSITION}.")
@click.option("--to", "end", metavar="X", help="End here, this included.")
@click.option("--handler", "spec", metavar="MODULE:FUNC",
              help="Called as a consumer's handler is: (event, delivery) or (event), of batches (events, batch) or "
              "(events); async def or def.")  # fmt: skip
@click.option("--into-group", "into", metavar="G",
              help="Have the workers of this group handle once more what it has settled.")  # fmt: skip
@click.option("--as-group", "fork", metavar="G", help="Make this group: it begins there, and follows live.")
@click.option("--key", help="Only the entries of this key.")
@click.option("--where", "conditions", multiple=True, metavar="FIELD=VALUE",
              help="Only these. May be repeated: all must hold.")  # fmt: skip
@click.option("--rate", metavar="N/s", help="So many entries a second, /m minute or /h hour.")
@click.option("--speed", metavar="Nx", help="So many times the pace at which they were published.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N",
              help="Events that the handler gets at once.  [default: as it was declared]")  # fmt: skip
@click.option("--concurrency", "-c", type=click.IntRange(min=1), metavar="N",
              help="Calls of the handler at once.  [default: 16, of batches 1]")  # fmt: skip
@click.option("--ordered/--unordered", default=True, show_default=True,
              help="The entries of one key one at a time and in order; keys in parallel.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what there is to do, and do nothing.")
@click.option("--restart", is_flag=True, help="Begin anew, where an earlier run was stopped.")
@click.option("--name", "--group", "name", metavar="NAME",
              help="Keep the progress under this name, which a handler sees as delivery.group.  "
              "[default: made of all that says what is replayed]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The plan or summary as JSON on stdout.")
@log_options("warning")
@target_options
@click.pass_context
def replay(
    context: click.Context,
    /,
    stream: str,
    start: str,
    end: str | None,
    spec: str | None,
    into: str | None,
    fork: str | None,
    dry_run: bool,
    as_json: bool,
    log_level: str,
    log_format: str,
    **options: Any,
) -> int:
    """Go through the entries of a window once more: through a handler, into one group, or as a new group.

    --handler: no consumer group of the stream notices. It gets the events as the model that its first parameter is
    annotated with, or that of the stream whose consumer it is; without either, as dicts. An entry on which it raises,
    or that cannot be decoded, is named and counted; the others go on.

    --into-group: the group's workers, which may be running, handle the entries again; other groups do not notice. What
    the group has in hand or has yet to read is left alone.

    --as-group: a consumer of that group catches up from there and then follows live, beside those there are.

    Of the first two, Ctrl-C and SIGTERM store exactly what is done; a second one does not wait for handlers. The same
    command then goes on from there, over the same window, also after a kill (of which a handler gets the last second's
    entries again). --rate and --speed may be others then.

    \b
    Examples:
      rstream replay orders --from "2h ago" --to now --handler shop.events:bill --dry-run
      rstream replay orders --from 2026-11-20T09:00Z --to 2026-11-20T10:00Z --handler shop.events:bill --rate 200/s
      rstream replay digits --from earliest --to latest --handler vision.v2:classify --batch 256
      rstream replay orders --from "1d ago" --to now --into-group billing --key c1
      rstream replay orders --from "1d ago" --to now --into-group billing --where country=de --speed 10x
      rstream replay orders --from "7d ago" --as-group shadow

    \b
    Exit codes: 0 all done · 1 an error, or entries failed, are invalid, gone or trimmed · 2 wrong usage · 130 Ctrl-C ·
    143 SIGTERM
    """
    _check_usage(context)
    _log_to_stderr(log_level, log_format)
    try:
        with raising(signal.SIGTERM), stored_app() as app:
            if fork is not None:
                return asyncio.run(_fork(app.open(stream), fork, start, dry_run, as_json))
            assert end is not None
            make, first = _maker(app, stream, start, end, spec, into, options)
            return asyncio.run(_plan(make, as_json) if dry_run else _run(make, as_json, first, into))
    except Stopped:
        return 128 + signal.SIGTERM


def _check_usage(context: click.Context) -> None:
    ways = [way for way in WAYS if context.params[way] is not None]
    if len(ways) != 1:
        raise click.UsageError(
            "say where the entries go, by one of: --handler MODULE:FUNC (through a function), --into-group G (again to "
            "a group that there is), --as-group G (to a new group)"
        )
    from_user = click.core.ParameterSource.COMMANDLINE
    for name, option in NOT_FOR.get(ways[0], {}).items():
        if context.get_parameter_source(name) == from_user:
            raise click.UsageError(f"{option} does not go with {WAYS[ways[0]]}: {WHY[ways[0]]}")
    if ways[0] != "fork" and context.params["end"] is None:
        raise click.UsageError(f"Missing option '--to': {WAYS[ways[0]]} goes through a window that ends")


def _maker(
    app: Any, stream: str, start: str, end: str, spec: str | None, into: str | None, options: dict[str, Any]
) -> tuple[Callable[[Any], Replay | Giving], str | None]:
    """(what makes the replay, with what is told how far it is; what is to be said first)."""
    from rstream.cli.load import load
    from rstream.consumer import codec_of
    from rstream.errors import ConfigError
    from rstream.replay import Giving, Replay

    common = {name: options[name] for name in ("key", "rate", "speed", "name", "restart")}
    common |= {"where": options["conditions"], "notice": _say}
    if spec is None:
        assert into is not None
        target = app.open(stream)
        return (lambda progress: Giving(target, into, start, end, progress=progress, **common)), None
    handler = load(spec)
    if not callable(handler):
        raise ConfigError(f"--handler {spec} is a {type(handler).__name__}: it must be a function")
    target = app.open(stream)
    target.sync.layout()
    common |= {name: options[name] for name in ("batch", "concurrency", "ordered")}

    def make(progress: Any) -> Replay:
        return Replay(target, handler, start, end, progress=progress, handler_name=spec, **common)

    hint = f"{spec} names no model (annotate its first parameter with one): it gets the events as dicts"
    return make, None if codec_of(handler) else hint


async def _plan(make: Callable[[Any], Replay | Giving], as_json: bool) -> int:
    replay = make(None)
    async with replay.stream.app:
        plan = await replay.plan()
    click.echo(replays.as_json(plan) if as_json else replays.plan(plan))
    return 0


async def _fork(stream: Stream[Any], group: str, start: str, dry_run: bool, as_json: bool) -> int:
    from rstream.replay import Fork

    fork = Fork(stream, group, start)
    async with stream.app:
        if dry_run:
            plan = await fork.plan()
            click.echo(replays.as_json(plan) if as_json else replays.plan(plan))
        else:
            new = await fork.make()
            click.echo(replays.made_json(new) if as_json else replays.made(new))
    return 0


async def _run(make: Callable[[Any], Replay | Giving], as_json: bool, first: str | None, into: str | None) -> int:
    bar = Bar(first)
    replay = make(bar.show)
    bar.pace = replay.pace
    async with replay.stream.app:
        with _stopping(replay) as stopped_by, bar:
            result = await replay.run()
    click.echo(replays.as_json(result) if as_json else replays.summary(result, into))
    if stopped_by and not result.finished:
        at = f"at {result.position}" if result.position else "before it had done an entry"
        _say(f"stopped {at}: run the same command again to go on")
        return 128 + stopped_by[0]
    return 1 if result.failed or result.invalid or result.gone or result.trimmed else 0


@contextmanager
def _stopping(replay: Replay | Giving) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM stop it gracefully, a second one at once. Yields the signals that came.

    Handlers in the old style, because a handler of the user's may block the loop for long.
    """
    loop, came = asyncio.get_running_loop(), list[int]()

    def abandon(number: int) -> None:
        replay.abandon()
        os._exit(128 + number)

    def on_signal(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            os.write(2, b"\nstopping: what runs may finish; once more, and it ends at once\n")
            loop.call_soon_threadsafe(replay.stop)
        else:  # in a thread: this one may hold what storing needs
            threading.Thread(target=abandon, args=(number,), daemon=True).start()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _log_to_stderr(level: str, format: str) -> None:
    """Failures of handlers, above the progress line."""
    from rstream.logs import to_stderr

    class OverTheBar(logging.StreamHandler[Any]):
        def emit(self, record: logging.LogRecord) -> None:
            if self.stream.isatty():
                self.stream.write("\r\x1b[K")
            super().emit(record)

    to_stderr(level, format, handler=OverTheBar(sys.stderr), text="%(levelname)s %(name)s: %(message)s")
