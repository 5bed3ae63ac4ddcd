"""`rstream replay`: a handler over a window of a stream, with a progress line, to be stopped and gone on with."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.read import POSITION, time_of
from rstream.cli.signals import Stopped, raising
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.event import EntryId
    from rstream.replay import Replay, ReplayPlan, ReplayResult

LINE_EVERY = 10.0
"""Seconds between two lines where nobody watches the progress on a terminal."""


@click.command()
@click.argument("stream")
@click.option("--from", "start", required=True, metavar="X", help=f"Begin here: {POSITION}.")
@click.option("--to", "end", required=True, metavar="X", help="End here, this included.")
@click.option("--handler", "spec", required=True, metavar="MODULE:FUNC",
              help="Called as a consumer's handler is: (event, delivery) or (event), async def or def.")  # fmt: skip
@click.option("--group", "name", metavar="NAME",
              help="Keep the progress under this name, which the handler sees as delivery.group.  "
              "[default: made of the stream, window, key and handler]")  # fmt: skip
@click.option("--key", help="Only the entries of this key.")
@click.option("--concurrency", "-c", type=click.IntRange(min=1), default=16, show_default=True, metavar="N",
              help="Entries handled at once.")  # fmt: skip
@click.option("--ordered/--unordered", default=True, show_default=True,
              help="The entries of one key one at a time and in order; keys in parallel.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what there is to do, and do nothing.")
@click.option("--restart", is_flag=True, help="Begin anew, where an earlier run was stopped.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON on stdout.")
@target_options
def replay(
    stream: str,
    start: str,
    end: str,
    spec: str,
    name: str | None,
    key: str | None,
    concurrency: int,
    ordered: bool,
    dry_run: bool,
    restart: bool,
    as_json: bool,
) -> int:
    """Run a handler over the entries of a window once more. No consumer group of the stream notices.

    Ctrl-C and SIGTERM let running handlers finish, and store exactly what is done; a second one does not wait. The
    same command then goes on from there, over the same window, also after a kill (of which the last second's entries
    run again). An entry whose handler raises, or that cannot be decoded, is named and counted; the others go on.

    The handler gets the events as the model that its first parameter is annotated with, or that of the stream whose
    consumer it is; without either, as dicts.

    \b
    Examples:
      rstream replay orders --from "2h ago" --to now --handler shop.events:bill --dry-run
      rstream replay orders --from 2026-11-20T09:00Z --to 2026-11-20T10:00Z --handler shop.events:bill
      rstream replay digits --from 1763630000000-0 --to 1763630060000-0 --handler vision.v2:classify -c 4
      rstream replay orders --from earliest --to latest --key c1 --handler shop.audit:check --json

    \b
    Exit codes: 0 all handled · 1 an error, or entries failed or are invalid · 130 Ctrl-C · 143 SIGTERM
    """
    from rstream.cli.load import load
    from rstream.consumer import codec_of
    from rstream.errors import ConfigError

    _log_to_stderr()
    try:
        with raising(signal.SIGTERM), stored_app() as app:
            handler = load(spec)
            if not callable(handler):
                raise ConfigError(f"--handler {spec} is a {type(handler).__name__}: it must be a function")
            target = app.open(stream)
            target.sync.layout()

            def make(progress: Callable[[ReplayResult], None]) -> Replay:
                from rstream.replay import Replay

                return Replay(
                    target, handler, start, end, key=key, name=name, concurrency=concurrency, ordered=ordered,
                    restart=restart, progress=progress, handler_name=spec, notice=_say,
                )  # fmt: skip

            hint = f"{spec} names no model (annotate its first parameter with one): it gets the events as dicts"
            first = None if codec_of(handler) else hint
            return asyncio.run(_plan(make, as_json) if dry_run else _run(make, as_json, first))
    except Stopped:
        return 128 + signal.SIGTERM


async def _plan(make: Callable[[Any], Replay], as_json: bool) -> int:
    replay = make(None)
    async with replay.stream.app:
        plan = await replay.plan()
    click.echo(_json(plan) if as_json else _plan_text(plan))
    return 0


async def _run(make: Callable[[Any], Replay], as_json: bool, first: str | None) -> int:
    bar = _Bar(first)
    replay = make(bar.show)
    async with replay.stream.app:
        with _stopping(replay) as stopped_by, bar:
            result = await replay.run()
    if as_json:
        click.echo(_json(result))
    else:
        click.echo(_summary(result))
    if stopped_by and not result.finished:
        at = f"at {result.position}" if result.position else "before it had done an entry"
        _say(f"stopped {at}: run the same command again to go on")
        return 128 + stopped_by[0]
    return 1 if result.failed or result.invalid else 0


@contextmanager
def _stopping(replay: Replay) -> Iterator[list[int]]:
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


class _Bar:
    """How far it is, on stderr: one line that is written over on a terminal, a line now and then elsewhere."""

    def __init__(self, first: str | None) -> None:
        self._first = first  # to be said before anything else, once it runs
        self._live = sys.stderr.isatty()
        self._began: tuple[float, float] | None = None  # when, and how far it was
        self._next = time.monotonic() + LINE_EVERY

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, result: ReplayResult) -> None:
        if self._first:
            _say(self._first)
            self._first = None
        now = time.monotonic()
        self._began = self._began or (now, result.fraction)
        counts = f"{result.done:,} done" + (f", {result.failed:,} failed" if result.failed else "")
        counts += f", {result.invalid:,} invalid" if result.invalid else ""
        if self._live:
            size = max(10, min(30, shutil.get_terminal_size().columns - 60))
            full = int(result.fraction * size)
            bar = f"[{'#' * full}{'.' * (size - full)}] {result.fraction:4.0%}  {counts}{self._left(result, now)}"
            click.echo(f"\r{bar}\x1b[K", nl=False, err=True)
        elif now >= self._next:
            self._next = now + LINE_EVERY
            click.echo(f"{result.name}: {result.fraction:.0%}, {counts}{self._left(result, now)}", err=True)

    def _left(self, result: ReplayResult, now: float) -> str:
        assert self._began is not None
        seconds, share = now - self._began[0], result.fraction - self._began[1]
        if seconds < 2 or share <= 0:
            return ""
        left = int(seconds / share * (1 - result.fraction))
        return f", {left // 60}:{left % 60:02} left"


def _summary(result: ReplayResult) -> str:
    if result.start is None and not result.finished:
        return f"{result.name}: handled nothing"
    if result.start is None:
        return f"{result.name}: nothing to do, stream {result.stream} has no entries in this window"
    text = f"{result.name}: handled {result.handled:,} of window {result.start} to {result.end} of {result.stream}"
    text += f" in {result.seconds:.1f} s"
    if result.earlier:
        text += f" (resumed: {result.earlier:,} were done before)"
    for count, ids, what in (
        (result.failed, result.failed_ids, "failed"),
        (result.invalid, result.invalid_ids, "invalid"),
    ):
        if count:
            text += f"\n{what}: {count:,}: {_ids(ids, count)}"
    return text


def _ids(ids: tuple[EntryId, ...], count: int) -> str:
    return ", ".join(map(str, ids[:10])) + (", … (--json shows more)" if count > 10 else "")


def _plan_text(plan: ReplayPlan) -> str:
    if plan.start is None or plan.end is None:
        return f"{plan.name}: nothing to do, stream {plan.stream} has no entries in this window"
    rows = [
        ("first entry", f"{plan.start}  {time_of(plan.start) or ''}"),
        ("last entry", f"{plan.end}  {time_of(plan.end) or ''}"),
        ("entries", f"{plan.entries:,} in {plan.shards} shard{'s' * (plan.shards != 1)}"),
        ("payload", f"{plan.bytes:,} bytes"),
        ("begins", f"after {plan.resume_after}, where it was stopped" if plan.resume_after else "at the first entry"),
        ("to handle", f"{plan.left:,} entries"),
    ]
    lines = (f"  {what:<12} {text}".rstrip() for what, text in rows)
    return "\n".join([f"{plan.name} over stream {plan.stream}:", *lines, "This was a dry run: nothing was handled."])


def _json(told: ReplayPlan | ReplayResult) -> str:
    from rstream.event import EntryId

    def plain(value: Any) -> Any:
        if isinstance(value, EntryId):
            return str(value)
        return [str(id) for id in value] if isinstance(value, tuple) else value

    return json.dumps({field.name: plain(getattr(told, field.name)) for field in fields(told)}, ensure_ascii=False)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _log_to_stderr() -> None:
    """Failures of handlers, above the progress line."""

    class OverTheBar(logging.StreamHandler[Any]):
        def emit(self, record: logging.LogRecord) -> None:
            if self.stream.isatty():
                self.stream.write("\r\x1b[K")
            super().emit(record)

    handler = OverTheBar(sys.stderr)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(levelname)s %(name)s: %(message)s")
